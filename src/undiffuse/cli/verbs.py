"""The verbs on a run: sample, evaluate, study, report, info."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import tyro
from tyro.conf import Positional

from undiffuse.base import engine
from undiffuse.base.errors import UserError
from undiffuse.base.lazy import lazy
from undiffuse.base.schema import finite
from undiffuse.cli.output import by_default, leave, say, stdout
from undiffuse.diffusion.guidance import GUIDANCES
from undiffuse.study import STUDIES, make_study
from undiffuse.training.fields import among

if TYPE_CHECKING:
    import torch

    from undiffuse import api
    from undiffuse import report as reports
    from undiffuse.console import info as info_table
    from undiffuse.console import live, results
    from undiffuse.model import Request
    from undiffuse.report import side_by_side
    from undiffuse.runs import destinations, evaluation, folder, signals, widths
    from undiffuse.study import grids
else:
    torch, api = lazy("torch"), lazy("undiffuse.api")
    info_table, results = lazy("undiffuse.console.info"), lazy("undiffuse.console.results")
    live, reports = lazy("undiffuse.console.live"), lazy("undiffuse.report")
    side_by_side = lazy("undiffuse.report.side_by_side")
    destinations, folder = lazy("undiffuse.runs.destinations"), lazy("undiffuse.runs.folder")
    evaluation, signals = lazy("undiffuse.runs.evaluation"), lazy("undiffuse.runs.signals")
    widths, grids = lazy("undiffuse.runs.widths"), lazy("undiffuse.study.grids")


OF_RUN = by_default("the run's")
WITHIN_CALLS = by_default("as many as the run's sample_calls allow")


Classes = Annotated[  # not `| None`: a class may be called None
    tuple[str, ...], tyro.conf.arg(aliases=["--class", "--label"]), by_default("all classes")
]


def sample(
    run: Positional[Path],
    n: int = 64,
    sampler: Annotated[str | None, tyro.conf.arg(help=among("sampler")), OF_RUN] = None,
    steps: Annotated[int | None, WITHIN_CALLS] = None,
    grid: Annotated[str | None, tyro.conf.arg(help=among("grid", "their times: ")), OF_RUN] = None,
    classes: Classes = (),
    guidance: Annotated[float | None, OF_RUN] = None,
    guidance_interval: Annotated[tuple[float, float] | None, OF_RUN] = None,
    guidance_method: Annotated[
        str | None, tyro.conf.arg(help=" | ".join(GUIDANCES)), OF_RUN
    ] = None,
    clip: bool = True,
    seed: int = 0,
    batch_size: int = 256,
    precision: Literal["fp32", "bf16"] = "fp32",
    out: Annotated[str | None, by_default("RUN/samples.png")] = None,
    overwrite: bool = False,
    trajectory: Annotated[Path | None, by_default("none")] = None,
) -> None:
    """Sample new images from a run.

    Args:
        run: the run folder
        n: number of images
        steps: number of sampling steps; a step is one network call, with heun two except the last
        classes: only these classes, by name or number, in turn; for conditional runs
        guidance: classifier-free guidance; 1 is none, other values take two network calls a step
        guidance_interval: log-SNRs from and to which guidance is used; -15 15 for all
        clip: clip the denoised image to the range of images
        seed: the same seed gives the same images with any batch size
        batch_size: images that are sampled at once
        precision: bf16 is faster where the CPU has it, and changes some 8-bit values by a few units
        out: FILE.png for a grid, FILE.npz for an archive of images and labels, or FOLDER/ for a
            PNG file of each image
        overwrite: replace the images that an earlier call wrote into FOLDER/, where other files
            stay, or a file that undiffuse did not write
        trajectory: also write the steps from noise to image of the first ten: FILE.gif or FILE.png
    """
    request = api.load(run).request(
        n, classes or None, sampler=sampler, steps=steps, grid=grid_of(run, grid),
        guidance=guidance, guidance_interval=guidance_interval, guidance_method=guidance_method,
        clip=clip, seed=seed, batch_size=batch_size, precision=precision,
    )  # fmt: skip
    to = destinations.destination(out or str(run / "samples.png"), overwrite=overwrite)
    if trajectory is not None:
        destinations.check_trajectory(trajectory, to, overwrite=overwrite)
    begin = time.monotonic()
    images = sampled_images(request)
    seconds = time.monotonic() - begin
    destinations.save_images(
        to, images, request.classes, request.denoiser.conditioning.classes, request.note
    )
    say(
        f"{to}: {n:,} images by {request.sampling.sampler}, {request.steps} steps, "
        f"{request.calls} network calls each, in {seconds:.1f} s"
    )
    if trajectory is not None:
        destinations.save_trajectory(trajectory, request.stages(10))
        say(f"{trajectory}: the steps from noise to image of the first {min(n, 10)}")


def sampled_images(request: Request) -> torch.Tensor:
    """The images of a request, uint8 (n, C, H, W). The terminal shows how many there are."""
    images: list[torch.Tensor] = []
    with stdout().status(f"sampling {request.n:,} images") as status:
        for batch in request.batches():
            images.append(batch)
            status.update(f"sampled {sum(map(len, images)):,} of {request.n:,}")
    return torch.cat(images)


def grid_of(run: Path | None, grid: str | None) -> str | None:
    """The grid that a user names. "fitted" is the one that was found for the run."""
    return grids.fitted_to(run) if grid == "fitted" and run is not None else grid


Precision: TypeAlias = Annotated[
    Literal["fp32", "bf16"] | None, by_default("fp32, or the CPU's faster one with --quick")
]


def refuse_other_source(
    run: Path | None, images: Path | None, size: int | None, out: Path | None
) -> None:
    """Raises UserError unless a run or images are given, and the flags fit what is given."""
    if (run is None) == (images is None):
        raise UserError("give either a run folder, or --images FILE.npz with --data and --out")
    if run is not None and (size, out) != (None, None):
        raise UserError("--size and --out go with --images; leave them out for a run")


def evaluate(
    run: Annotated[Positional[Path | None], by_default("none, with --images")] = None,
    images: Annotated[Path | None, by_default("the run's samples")] = None,
    quick: bool = False,
    n: Annotated[int | None, by_default("10,000, or 2,000 with --quick")] = None,
    sampler: Annotated[str | None, OF_RUN] = None,
    steps: Annotated[int | None, WITHIN_CALLS] = None,
    grid: Annotated[str | None, OF_RUN] = None,
    guidance: Annotated[float | None, OF_RUN] = None,
    guidance_interval: Annotated[tuple[float, float] | None, OF_RUN] = None,
    seed: int = 0,
    precision: Precision = None,
    quality: bool = True,
    likelihood: bool = True,
    novelty: bool = True,
    bits_images: Annotated[int | None, by_default("all, or 1,000 with --quick")] = None,
    ode_images: Annotated[int | None, by_default("500, or 0 with --quick")] = None,
    save: Annotated[str | None, by_default("none")] = None,
    data: Annotated[str | None, OF_RUN] = None,
    size: Annotated[int | None, by_default("the size in the data set")] = None,
    out: Annotated[Path | None, by_default("RUN/metrics.json")] = None,
) -> None:
    """Measure the quality, likelihood and novelty of a run, or of the images of a file.

    Args:
        run: the run folder
        images: FILE.npz with `images`, uint8 (n, H, W[, 3]), maybe `labels`; or FOLDER/ of files
        quick: measure fewer images, in about three minutes; the intervals are wider
        n: number of images to sample
        sampler: as for undiffuse sample
        steps: number of sampling steps
        grid: times of the steps, as for undiffuse sample
        guidance: classifier-free guidance; 1 is none
        guidance_interval: log-SNRs from and to which guidance is used; -15 15 for all
        seed: seed of the samples and of every random choice in the measurements
        precision: precision of sampling; bf16 is faster where the CPU has it
        quality: Frechet and kernel distances, precision, recall, class balance and other metrics
        likelihood: bits per dimension: the variational bounds and the ODE's
        novelty: the audit for copies of training images, on the same images as quality; where only
            one of the two is measured, metrics.json loses the other
        bits_images: test images for the bounds
        ode_images: test images for the ODE's likelihood; 0 leaves it out
        save: also write the samples: FILE.npz, FILE.png or FOLDER/
        data: data set to compare --images with; for a run, where its data are now
        size: resize the images of that data set to SIZE x SIZE pixels
        out: file for the results of --images
    """
    parts = evaluation.Parts(quality, likelihood, novelty)
    of_a_run = given(
        n=n, sampler=sampler, steps=steps, grid=grid_of(run, grid), guidance=guidance,
        guidance_interval=guidance_interval, precision=precision, bits_images=bits_images,
        ode_images=ode_images, save=save,
    )  # fmt: skip
    refuse_other_source(run, images, size, out)
    if images is not None:
        found = evaluate_file(images, data, size, out, parts, seed, quick or bool(of_a_run))
    elif run is not None:
        found = evaluate_run(run, quick, seed=seed, parts=parts, data=data, **of_a_run)
    stdout().print(results.figures_table(found))
    say(f"{out or f'{run}/metrics.json'}: all results")


def given(**flags: Any) -> dict[str, Any]:
    """Those of the flags that were given."""
    return {name: value for name, value in flags.items() if value is not None}


def evaluate_run(run: Path, quick: bool, **options: Any) -> dict[str, Any]:
    """Measure a run. options: those of `evaluation.evaluate_run` that were given."""
    if quick:
        fewer = {"n": 2000, "bits_images": 1000, "ode_images": 0}
        options = {**fewer, "precision": engine.fastest(), **options}
    with live.Stages(stdout()) as stages:
        return evaluation.evaluate_run(run, watch=stages, **options)


def evaluate_file(
    images: Path,
    data: str | None,
    size: int | None,
    out: Path | None,
    parts: evaluation.Parts,
    seed: int,
    only_of_a_run: bool,
) -> dict[str, Any]:
    """Measure the images of a file. only_of_a_run: whether a flag was given that only runs have.

    Raises UserError where --data or --out is missing, or where one of those flags is given."""
    if data is None or out is None:
        raise UserError(
            "--images needs --data, the data set to compare with, and --out, the file for the "
            "metrics"
        )
    if only_of_a_run:
        raise UserError(
            "--images are measured as they are: only --data, --size, --out, --seed and the parts "
            "go with them"
        )
    with live.Stages(stdout()) as stages:
        return evaluation.evaluate_images(
            images, data, out, size=size, parts=parts, seed=seed, watch=stages
        )


def study(
    what: Positional[Literal[STUDIES]],  # type: ignore[valid-type]  # names of a table
    run: Positional[Path],
    minutes: Annotated[float | None, by_default("1 to 4, or 30 where it trains")] = None,
    seeds: int = 1,
    seed: int = 0,
    values: Annotated[tuple[str, ...], by_default("all of the study")] = (),
) -> None:
    """Compare choices while everything else stays the same, into RUN/study/. The report shows the
    results. The same command resumes an interrupted study.

    Args:
        what: samplers: (7), (8) as printed, (8), DDIM, Heun and DPM-Solver++, each with several
            numbers of steps, from the same noise | progress: the quality of samples as training
            went on | guidance: quality and variety against its strength | grids: the times of the
            steps, fitted to the run and others | restoration: what each method makes of real
            images that were masked, shrunk, blurred or noised | the others: a training for each
            schedule, prediction or size of the data set, with the run's other hyperparameters
        run: the run folder
        minutes: minutes for the whole study
        seeds: number of trainings for each choice
        seed: the first seed
        values: only these, such as `linear cosine` for the study of schedules
    """
    ready = make_study(what, run, minutes, seeds, seed, values)
    say(ready.plan())
    try:
        with live.Stages(stdout()) as stages:
            for doing, done, _ in ready.rows():
                stages(doing, done)
    except signals.Interrupted as stop:
        leave(stop.signal, f"{run}: study stopped by {stop}; the same command goes on from here")
    say(f"{ready.sheet.path}: all results")
    say(f"  in the report: undiffuse report {run}")


def average(
    run: Positional[Path],
    width: Annotated[tuple[float, ...], by_default("0.02, 0.03, 0.05, 0.07, 0.1, 0.15")] = (),
    out: Annotated[Path | None, by_default("none")] = None,
    overwrite: bool = False,
) -> None:
    """Average the weights of a finished run over other widths, from the averages that it kept.
    Prints the loss on held-out images of each.

    Args:
        run: the run folder
        width: widths of the average, as shares of the steps; the run's own is its flag --ema
        out: FILE.safetensors for the model, of one width; undiffuse.Model.load reads it
        overwrite: replace a file of that name
    """
    found = widths.of_run(run, width or widths.USUAL, out, overwrite=overwrite)
    for row in found:
        say(row)


def report(
    run: Positional[Path],
    other: Annotated[Positional[Path | None], by_default("none")] = None,
    audience: Annotated[
        Literal["student", "instructor", "paper"], tyro.conf.arg(name="for")
    ] = "student",
    author: Annotated[str, by_default("none")] = "",
    course: Annotated[str, by_default("none")] = "",
) -> None:
    """Write the report of a run: its equations beside their code, every hyperparameter with its
    reason, and all measurements. Prints the main findings.

    Args:
        run: the run folder
        other: a second run; then what differs between the two is written, and what it did
        audience: student, which is the whole report; instructor, with what to look for when
            grading; or paper, without code
        author: the author's name, below the title
        course: the course, below the title
    """
    if other is not None:
        if (audience, author, course) != ("student", "", ""):
            raise UserError("--for, --author and --course go with one run; leave them out for two")
        for path in side_by_side.compare(run, other):
            say(str(path))
        return
    made = reports.Report(run, audience=audience, author=author, course=course)
    for path in made.write():
        say(str(path))
    for finding in made.findings:
        say(finding)
    say(f"To read the report, open {run / 'report.html'} in a browser.")


def info(
    run: Positional[Path], as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
) -> None:
    """Show a run: its state, its data, and every hyperparameter with its reason.

    Args:
        run: the run folder
        as_json: print one JSON object in place of tables
    """
    if as_json:
        content = info_table.as_data(folder.Run(run))
        print(json.dumps(finite(content), indent=2, allow_nan=False))
    else:
        stdout().print(info_table.describe(folder.Run(run)))
