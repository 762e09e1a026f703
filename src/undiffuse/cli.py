"""The command `undiffuse`: one function a verb."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, field, make_dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from undiffuse import __version__
from undiffuse.base import engine
from undiffuse.base.errors import UserError
from undiffuse.base.lazy import lazy
from undiffuse.study import STUDIES, make_study
from undiffuse.training.config import FORMER, Config, among
from undiffuse.training.options import SessionOptions, make_options
from undiffuse.training.presets import make_config

if TYPE_CHECKING:
    import torch
    from rich import console as rich_console
    from rich.console import Console

    from undiffuse import api
    from undiffuse import report as reports
    from undiffuse.console import info as info_table
    from undiffuse.console import live, results
    from undiffuse.runs import destinations, evaluation, folder, signals
    from undiffuse.runs import plan as plans
else:
    torch = lazy("torch")
    rich_console = lazy("rich.console")
    api, reports = lazy("undiffuse.api"), lazy("undiffuse.report")
    info_table, live = lazy("undiffuse.console.info"), lazy("undiffuse.console.live")
    results = lazy("undiffuse.console.results")
    destinations, evaluation = (
        lazy("undiffuse.runs.destinations"),
        lazy("undiffuse.runs.evaluation"),
    )
    folder, plans = lazy("undiffuse.runs.folder"), lazy("undiffuse.runs.plan")
    signals = lazy("undiffuse.runs.signals")

STOPPED = 128  # plus the signal's number: 130 after Ctrl-C, 143 after SIGTERM

NETWORK = {
    "channels": (
        tuple[int, ...],
        "channels of each level of the network: --net NAME:channels=64/128",
    ),
    "blocks": (tuple[int, ...], "residual blocks of each level"),
    "attention": (tuple[bool, ...], "attention at each level"),
    "heads": (int, "attention heads"),
    "dropout": (float, "dropout inside the blocks"),
}
"""Flags that stand for options of the network's spec."""

FORMER_FLAGS = {new: f"--{old.replace('_', '-')}" for old, new in FORMER.items()}


def flags_of(preset: Config) -> Any:
    """The flags of `train` as a plain dataclass: hyperparameters, network and session options.

    The parser sees to their types only: what fits together is the configuration's business, and its
    complaint one sentence."""

    def flag(name: str, kind: Any, text: str | None, default: Any) -> tuple[str, Any, Any]:
        aliases = [FORMER_FLAGS[name]] if name in FORMER_FLAGS else None
        return (
            name,
            Annotated[kind, tyro.conf.arg(help=text, aliases=aliases)],
            field(default=default),
        )

    own = [
        flag(name, hyper.annotation, hyper.description, getattr(preset, name))
        for name, hyper in Config.model_fields.items()
    ]
    network = [flag(name, kind | None, text, None) for name, (kind, text) in NETWORK.items()]
    session = [
        flag(name, option.annotation, option.description, option.default)
        for name, option in SessionOptions.model_fields.items()
    ]
    return make_dataclass("hyperparameters", [*own, *network, *session], frozen=True)()


def chosen(flags: Any) -> tuple[Config, SessionOptions]:
    """(the configuration, the session's options) of the flags. Raises UserError."""
    values = asdict(flags)
    options = {name: values.pop(name) for name in SessionOptions.model_fields}
    preset = values.pop("preset")
    return make_config(preset, **values), make_options(**options)


def train_verb(preset: Any) -> Callable[..., None]:
    """The verb `train`, whose flags have the values of `preset` as defaults."""

    def train(
        flags: Any = preset,
        out: Path | None = None,
        replay: Path | None = None,
        plan: bool = False,
    ) -> None:
        """Train a diffusion model, or go on with a run: the same command again resumes it.

        Args:
            out: the run folder (default: runs/PRESET)
            replay: repeat this finished run step by step, to the same weights; needs --out
            plan: time a few steps, print what the budget allows, and train nothing
        """
        config, options = chosen(flags)
        if replay is not None:
            config = replayed(replay, config, out, plan)
        if plan:
            say(plans.plan(config, options))
            return
        path = out or Path("runs") / config.preset
        done = folder.Run(path).exists() and folder.Run(path).finished()
        try:
            with live.Watcher(config, path, stdout()) as watcher:
                api.train_config(
                    config, path, options, replay=replay, started=engine.STARTED, watch=watcher
                )
        except signals.Interrupted as stop:
            leave(
                stop.signal,
                f"{path}: stopped by {stop} and saved; the same command goes on from here",
            )
        end = folder.Run(path).finished()
        assert end is not None
        state = "was already finished" if done else "finished"
        say(f"{path}: {state}, {end.step:,} steps in {end.time / 60:.1f} minutes")
        say(f"  {path}/samples/step_{end.step:06d}.png  its last samples")
        say(f"  {path}/timeline.png, {path}/loss.png")
        say(f"  {sys.argv[0] if '/' in sys.argv[0] else 'undiffuse'} sample {path}  samples more")

    train.__annotations__["flags"] = OmitArgPrefixes[type(preset)]  # type: ignore[misc]  # a type made at run time
    return train


def replayed(run: Path, asked: Config, out: Path | None, plan: bool) -> Config:
    """The configuration of a run to replay. UserError for flags that do not go with that."""
    if out is None:
        raise UserError("--replay needs --out, a new folder for the repeated run")
    if plan or asked != make_config():
        raise UserError(
            "--replay repeats the other run's configuration, so it takes no flag of a "
            "hyperparameter, no --preset and no --plan"
        )
    return folder.Run(run).about().config


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
        steps: sampling steps, any number; each is one network call (heun: two, the last one) (default: as many as the run's sample_calls allow)
        classes: only these classes, by name or number, in a conditional run (default: all in turn)
        guidance: classifier-free guidance, 1 is none; two network calls a step (default: the run's)
        clip: clip the denoised image to the range of images
        seed: the same seed gives the same images, whatever the batch size
        batch_size: images at a time
        precision: bf16 is faster where the CPU has it, and moves 8-bit values by a few
        out: a grid FILE.png, an archive FILE.npz (images, labels), or FOLDER/ for one PNG an image (default: RUN/samples.png)
        trajectory: also show the way from noise to image of the first ten, as FILE.gif or as FILE.png
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
    """Measure a run's images, likelihood and novelty, into RUN/metrics.json; or the images of any .npz file.

    Args:
        run: the run folder
        images: in place of a run: FILE.npz with `images`, uint8 (n, H, W) or (n, H, W, 3), and maybe `labels`; needs --data, --out
        n: how many images to sample
        sampler: as for undiffuse sample (default: the run's)
        steps: sampling steps (default: as many as the run's sample_calls allow)
        grid: the times visited (default: the run's)
        guidance: classifier-free guidance (default: the run's)
        seed: of the samples, and of every random choice in the measurements
        precision: of the sampling; bf16 is faster where the CPU has it
        quality: Frechet and kernel distances, precision and recall, class balance, classification accuracy score
        likelihood: bits per dimension: the variational bounds and the ODE's
        novelty: the audit for copies of training images. Quality and novelty are of the same images: where only one is measured, what metrics.json had of the other goes
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
    if images is not None and (data is None or out is None):
        raise UserError(
            "--images needs --data, what to compare with, and --out, the file for the metrics"
        )
    if run is not None and (data is not None or size is not None or out is not None):
        raise UserError(
            "--data, --size and --out go with --images; a run knows its data, and keeps its metrics.json"
        )
    if images is not None and (n, sampler, steps, grid, guidance, bits_images, ode_images, save, precision) != (
        10_000, None, None, None, None, None, 500, None, "fp32",
    ):  # fmt: skip
        raise UserError(
            "--images are measured as they are: only --data, --size, --out, --seed and the parts go with them"
        )
    with live.Stages(stdout()) as stages:
        if images is not None:
            assert data is not None
            assert out is not None
            found = evaluation.evaluate_images(
                images, data, out, size=size, parts=parts, seed=seed, watch=stages
            )
        else:
            assert run is not None
            found = evaluation.evaluate_run(
                run, n, sampler=sampler, steps=steps, grid=grid, guidance=guidance, seed=seed, precision=precision,
                parts=parts, bits_images=bits_images, ode_images=ode_images, save=save, watch=stages,
            )  # fmt: skip
    stdout().print(results.figures_table(found))
    say(f"{out or f'{run}/metrics.json'}: all of it")


def study(
    what: Positional[Literal[STUDIES]],  # type: ignore[valid-type]  # names of a table
    run: Positional[Path],
    minutes: float | None = None,
    seeds: int = 1,
    seed: int = 0,
) -> None:
    """Compare choices, everything else being the same, into RUN/study/; the report takes it in. Goes on where it was interrupted.

    Args:
        what: samplers: (7), (8) as printed, (8), DDIM, Heun and DPM-Solver++ at several numbers of steps, from the same noise | schedules, predictions, or sizes of a subset of the data: a training for each, with the run's other hyperparameters
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
    """Write the report of a run: what it is, its code beside its equations, every hyperparameter, and all that was measured.

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


def stdout() -> Console:
    return rich_console.Console(markup=False, emoji=False)


def say(line: str) -> None:
    """Print a line as one line."""
    live.say(stdout(), line)


def main() -> None:
    """Run the command. A user's mistake is one sentence and exit code 2."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        print(f"undiffuse {__version__}")
        return
    engine.keep_freed_memory()
    try:
        run_verb(arguments)
    except SystemExit as end:
        if end.code in (STOPPED + signal.SIGINT, STOPPED + signal.SIGTERM):
            sys.stdout.flush()
            sys.stderr.flush()
            # All is saved and tidied up. Python's own way out waits for the compilers that other threads have called, ten seconds and more.
            os._exit(int(end.code))
        raise


def run_verb(arguments: list[str]) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, frame: leave(number))
    try:
        verbs: dict[str, Callable[..., Any]] = {
            "train": train_verb(flags_of(preset_of(arguments))),
            "sample": sample,
            "evaluate": evaluate,
            "study": study,
            "report": report,
            "info": info,
        }
        tyro.extras.subcommand_cli_from_dict(
            verbs,
            prog="undiffuse",
            description="Understand, train and trust a small diffusion model on a CPU. 'undiffuse train' begins; see 'undiffuse VERB --help'.",
            args=arguments,
        )
    except UserError as error:
        fail(with_flags(str(error)))
    except KeyboardInterrupt:
        leave(signal.SIGINT)
    except BrokenPipeError:
        raise SystemExit(STOPPED + 13) from None
    except OSError as error:
        if error.filename is None:
            raise
        fail(f"{error.filename} can't be used ({error.strerror}); give another path, or mend that")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "can't allocate memory" not in str(
            error
        ):  # so torch says it
            raise
        fail(
            "there is not enough memory for this; take fewer or smaller images at a time, or a smaller network"
        )


def leave(number: int, sentence: str = "") -> NoReturn:
    """End after a signal, which only the main thread gets; more of them change nothing."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    if sentence:
        say(sentence)
    raise SystemExit(STOPPED + number) from None


def with_flags(sentence: str) -> str:
    """An error of the library, which names parameters, with the names of the flags."""
    fields = "|".join((*Config.model_fields, *SessionOptions.model_fields))

    def flag(name: str) -> str:
        return f"--{name.replace('_', '-')}"

    def given(match: re.Match[str]) -> str:
        return flag(match[1]) + ("" if match[2] == "True" else f" {match[2]}")

    sentence = re.sub(rf"\b({fields})=([\w.]*\w)", given, sentence)
    names = f"{fields}|{'|'.join(NETWORK)}|n|classes"
    return re.sub(rf"^({names})(?=:| must )", lambda match: flag(match[1]), sentence)


def fail(sentence: str) -> None:
    print(f"undiffuse: {sentence}", file=sys.stderr)
    raise SystemExit(2)


def preset_of(arguments: list[str]) -> Config:
    """The preset that `--preset NAME` chooses, without its minutes where another budget is asked for."""
    name = "fast"
    for flag, value in pairwise([*arguments, ""]):
        if flag.startswith("--preset="):
            name = flag.partition("=")[2]
        elif flag == "--preset":
            name = value
    other = any(argument.partition("=")[0] in ("--epochs", "--steps") for argument in arguments)
    return (
        make_config(name)
        if not other or arguments[:1] != ["train"]
        else make_config(name).model_copy(update={"minutes": None})
    )
