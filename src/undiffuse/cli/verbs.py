"""The verbs on a run: sample, evaluate, study, report, info."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from undiffuse.base.errors import UserError
from undiffuse.base.lazy import lazy
from undiffuse.cli.output import leave, say, stdout
from undiffuse.study import STUDIES, make_study
from undiffuse.training.config import among

if TYPE_CHECKING:
    import torch

    from undiffuse import api
    from undiffuse import report as reports
    from undiffuse.console import info as info_table
    from undiffuse.console import live, results
    from undiffuse.runs import destinations, evaluation, folder, signals
else:
    torch, api = lazy("torch"), lazy("undiffuse.api")
    info_table, results = lazy("undiffuse.console.info"), lazy("undiffuse.console.results")
    live, reports = lazy("undiffuse.console.live"), lazy("undiffuse.report")
    destinations, folder = lazy("undiffuse.runs.destinations"), lazy("undiffuse.runs.folder")
    evaluation, signals = lazy("undiffuse.runs.evaluation"), lazy("undiffuse.runs.signals")


def sample(
    run: Positional[Path],
    n: int = 64,
    sampler: Annotated[
        str | None, tyro.conf.arg(help=f"{among('sampler')} (default: the run's)")
    ] = None,
    steps: int | None = None,
    grid: Annotated[
        str | None,
        tyro.conf.arg(help=f"{among('grid', 'the times visited: ')} (default: the run's)"),
    ] = None,
    classes: Annotated[tuple[str, ...] | None, tyro.conf.arg(aliases=["--label"])] = None,
    guidance: float | None = None,
    clip: bool = True,
    seed: int = 0,
    batch_size: int = 256,
    precision: Literal["fp32", "bf16"] = "fp32",
    out: str | None = None,
    trajectory: Path | None = None,
) -> None:
    """Sample new images from a run.

    Args:
        run: the run folder
        n: how many images
        steps: sampling steps, any number; each is one network call (heun: two, the last
            one) (default: as many as the run's sample_calls allow)
        classes: only these classes, by name or number, in a conditional run (default: all in turn)
        guidance: classifier-free guidance, 1 is none; two network calls a step (default:
            the run's)
        clip: clip the denoised image to the range of images
        seed: the same seed gives the same images, whatever the batch size
        batch_size: images at a time
        precision: bf16 is faster where the CPU has it, and moves 8-bit values by a few
        out: a grid FILE.png, an archive FILE.npz (images, labels), or FOLDER/ for one PNG
            an image (default: RUN/samples.png)
        trajectory: also show the way from noise to image of the first ten, as FILE.gif or
            as FILE.png
    """
    request = api.load(run).request(
        n, classes, sampler=sampler, steps=steps, grid=grid, guidance=guidance, clip=clip,
        seed=seed, batch_size=batch_size, precision=precision,
    )  # fmt: skip
    to = destinations.destination(out or str(run / "samples.png"))
    if trajectory is not None:
        destinations.check_trajectory(trajectory, to)
    begin = time.monotonic()
    images: list[torch.Tensor] = []
    with stdout().status(f"sampling {n} images") as status:
        for batch in request.batches():
            images.append(batch)
            status.update(f"sampled {sum(map(len, images)):,} of {n:,}")
    seconds = time.monotonic() - begin
    names = request.model.classes
    destinations.save_images(to, torch.cat(images), request.classes, names, request.note)
    say(
        f"{to}: {n:,} images by {request.sampling.sampler}, {request.steps} steps, "
        f"{request.calls} network calls each, in {seconds:.1f} s"
    )
    if trajectory is not None:
        destinations.save_trajectory(trajectory, request.stages(10))
        say(f"{trajectory}: the way from noise of the first {min(n, 10)}")


def evaluate(
    run: Positional[Path | None] = None,
    images: Path | None = None,
    n: int = 10_000,
    sampler: str | None = None,
    steps: int | None = None,
    grid: str | None = None,
    guidance: float | None = None,
    seed: int = 0,
    precision: Literal["fp32", "bf16"] = "fp32",
    quality: bool = True,
    likelihood: bool = True,
    novelty: bool = True,
    bits_images: int | None = None,
    ode_images: int = 500,
    save: str | None = None,
    data: str | None = None,
    size: int | None = None,
    out: Path | None = None,
) -> None:
    """Measure a run's images, likelihood and novelty, into RUN/metrics.json; or any .npz
    file's images.

    Args:
        run: the run folder
        images: in place of a run: FILE.npz with `images`, uint8 (n, H, W) or (n, H, W, 3), and
            maybe `labels`; needs --data, --out
        n: how many images to sample
        sampler: as for undiffuse sample (default: the run's)
        steps: sampling steps (default: as many as the run's sample_calls allow)
        grid: the times visited (default: the run's)
        guidance: classifier-free guidance (default: the run's)
        seed: of the samples, and of every random choice in the measurements
        precision: of the sampling; bf16 is faster where the CPU has it
        quality: Frechet and kernel distances, precision and recall, class balance,
            classification accuracy score
        likelihood: bits per dimension: the variational bounds and the ODE's
        novelty: the audit for copies of training images. Quality and novelty are of the
            same images: where only one is measured, what metrics.json had of the other
            goes
        bits_images: test images for the bounds (default: all)
        ode_images: test images for the ODE's likelihood, 0 for none
        save: also keep the samples: FILE.npz, FILE.png or FOLDER/
        data: the data set to compare --images with
        size: resize that data set, as in training
        out: where the metrics of --images go
    """
    parts = evaluation.Parts(quality, likelihood, novelty)
    if (run is None) == (images is None):
        raise UserError("give either a run folder, or --images FILE.npz with --data and --out")
    if run is not None:
        if data is not None or size is not None or out is not None:
            raise UserError(
                "--data, --size and --out go with --images; a run knows its data, and keeps its "
                "metrics.json"
            )
        with live.Stages(stdout()) as stages:
            found = evaluation.evaluate_run(
                run, n, sampler=sampler, steps=steps, grid=grid, guidance=guidance, seed=seed,
                precision=precision, parts=parts, bits_images=bits_images, ode_images=ode_images,
                save=save, watch=stages,
            )  # fmt: skip
    if images is not None:
        of_a_run = (n, sampler, steps, grid, guidance, bits_images, ode_images, save, precision)
        found = evaluate_file(images, data, size, out, parts, seed, of_a_run)
    stdout().print(results.figures_table(found))
    say(f"{out or f'{run}/metrics.json'}: all of it")


def evaluate_file(
    images: Path,
    data: str | None,
    size: int | None,
    out: Path | None,
    parts: evaluation.Parts,
    seed: int,
    of_a_run: tuple[Any, ...],
) -> dict[str, Any]:
    """Measure the images of a file. of_a_run: flags that must have their defaults here."""
    if data is None or out is None:
        raise UserError(
            "--images needs --data, what to compare with, and --out, the file for the metrics"
        )
    if of_a_run != (10_000, None, None, None, None, None, 500, None, "fp32"):
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
    minutes: float | None = None,
    seeds: int = 1,
    seed: int = 0,
) -> None:
    """Compare choices, everything else being the same, into RUN/study/; the report takes it
    in. Goes on where it was interrupted.

    Args:
        what: samplers: (7), (8) as printed, (8), DDIM, Heun and DPM-Solver++ at several
            numbers of steps, from the same noise | schedules, predictions, or sizes of a
            subset of the data: a training for each, with the run's other hyperparameters
        run: the run folder
        minutes: how long it may take in all (default: 2 for samplers, 30 for the others)
        seeds: trainings with each choice
        seed: the first seed
    """
    ready = make_study(what, run, minutes, seeds, seed)
    say(ready.plan())
    try:
        with live.Stages(stdout()) as stages:
            for doing, done, _ in ready.rows():
                stages(doing, done)
    except signals.Interrupted as stop:
        leave(stop.signal, f"{run}: study stopped by {stop}; the same command goes on from here")
    say(f"{ready.sheet.path}: all of it; undiffuse report {run} takes it in")


def report(run: Positional[Path]) -> None:
    """Write the report of a run: what it is, its code beside its equations, every
    hyperparameter, and all that was measured.

    Args:
        run: the run folder
    """
    for path in reports.write_report(run):
        say(str(path))


def info(run: Positional[Path]) -> None:
    """Show what a run is: its state, its data, and every hyperparameter with its reason.

    Args:
        run: the run folder
    """
    stdout().print(info_table.describe(folder.Run(run)))
