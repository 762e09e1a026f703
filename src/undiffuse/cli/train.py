"""The verb `train`. Its flags are the fields of the configuration and of the session's options."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import asdict, field, make_dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import OmitArgPrefixes

from undiffuse.base import engine
from undiffuse.base.errors import UserError
from undiffuse.base.lazy import lazy
from undiffuse.cli.arguments import ALIASES, flag_of
from undiffuse.cli.output import Forgiving, by_default, leave, say, stdout
from undiffuse.training.config import BUDGETS, Config, described
from undiffuse.training.options import SessionOptions, make_options
from undiffuse.training.presets import PRESETS, make_config

if TYPE_CHECKING:
    from undiffuse import api
    from undiffuse.console import live
    from undiffuse.runs import folder, signals
    from undiffuse.runs import plan as plans
else:
    api, live = lazy("undiffuse.api"), lazy("undiffuse.console.live")
    folder, signals = lazy("undiffuse.runs.folder"), lazy("undiffuse.runs.signals")
    plans = lazy("undiffuse.runs.plan")

NETWORK = {
    "channels": (
        tuple[int, ...],
        "channels of each level, as in --net NAME:channels=64/128",
    ),
    "blocks": (tuple[int, ...], "residual blocks of each level"),
    "attention": (tuple[bool, ...], "attention at each level"),
    "heads": (int, "attention heads"),
    "dropout": (float, "dropout inside the blocks"),
}
"""Flags for options of the network: name -> (type, description). They are part of --net's spec."""

WRITTEN = "out|save|trajectory|overwrite"
"""Flags for what is written and how, which errors of the library name as well."""


def flags_of(preset: Config) -> Any:
    """The flags of `train` as a plain dataclass: hyperparameters, network and session options.

    preset: the default values. The parser checks types only. The configuration checks whether the
    values fit together, so that an error is one sentence."""

    def flag(name: str, kind: Any, text: str | None, default: Any) -> tuple[str, Any, Any]:
        aliases = [old for old, new in ALIASES.items() if new == flag_of(name)] or None
        return (
            name,
            Annotated[kind, tyro.conf.arg(help=text, aliases=aliases)],
            field(default=default),
        )

    own = [
        flag(name, hyper.annotation, help_of(name, preset), getattr(preset, name))
        for name, hyper in Config.model_fields.items()
    ]
    network = [flag(name, kind | None, text, None) for name, (kind, text) in NETWORK.items()]
    session = [
        flag(name, option.annotation, option.description, option.default)
        for name, option in SessionOptions.model_fields.items()
    ]
    return make_dataclass("hyperparameters", [*own, *network, *session], frozen=True)()


def help_of(name: str, preset: Config) -> str:
    """The help of a hyperparameter: what it is, and the reason for its value in the preset."""
    what, _, why = described(name).partition(" - ")
    return f"{what} - {PRESETS[preset.preset].get(name, (None, why))[1]}"


def chosen(flags: Any) -> tuple[Config, SessionOptions]:
    """(the configuration, the session's options) of the flags.

    Raises UserError for values that do not fit."""
    values = asdict(flags)
    options = {name: values.pop(name) for name in SessionOptions.model_fields}
    preset = values.pop("preset")
    return make_config(preset, **values), make_options(**options)


def train_verb(preset: Any) -> Callable[..., None]:
    """The verb `train`. preset: the flags with their default values, from `flags_of`."""

    def train(
        flags: Any = preset,
        out: Annotated[Path | None, by_default("runs/PRESET")] = None,
        replay: Annotated[Path | None, by_default("none")] = None,
        longer: Annotated[
            Path | None, tyro.conf.arg(name="from"), by_default("none, a run begins untrained")
        ] = None,
        plan: bool = False,
    ) -> None:
        """Train a diffusion model. The same command again resumes an unfinished run.

        Args:
            out: the run folder
            replay: repeat this finished run step by step, to the same weights; needs --out, and
                the same --precision and --compile
            longer: train this finished run for longer, as a new run; needs --out, and one of
                --minutes, --epochs and --steps, the further ones
            plan: time a few steps and print what the budget allows, without training
        """
        config, options = chosen(flags)
        if longer is not None:
            config = lengthened(longer, config, out, plan or replay is not None)
        elif replay is not None:
            config = replayed(replay, config, out, plan)
        if plan:
            say(plans.plan(config, options))
            return
        path = out or Path("runs") / config.preset
        run = folder.Run(path)
        if run.exists():
            run.about()  # refuses a folder of another version before its log is read
        done = run.finished()
        stream = Forgiving()
        console = stdout(stream)
        try:
            with live.Watcher(config, path, console) as watcher:
                api.train_config(
                    config, path, options, replay=replay, longer=longer,
                    started=engine.STARTED, watch=watcher,
                )  # fmt: skip
        except signals.Interrupted as stop:
            leave(
                stop.signal,
                f"{path}: stopped by {stop} and saved; the same command goes on from here",
                console,
            )
        announce(run, "was already finished" if done else "finished", stream)

    train.__annotations__["flags"] = OmitArgPrefixes[type(preset)]  # type: ignore[misc]
    return train


def announce(run: folder.Run, state: str, stream: Forgiving) -> None:
    """Say that a run is finished, and what there is to see."""
    console = stdout(stream)
    path, end = run.path, run.finished()
    assert end is not None
    say(f"{path}: {state}, {end.step:,} steps in {end.time / 60:.1f} minutes", console)
    say(f"  {path}/samples/step_{end.step:06d}.png", console)
    say(f"  {path}/timeline.png, {path}/loss.png", console)
    say(f"  more samples: {own_command()} sample {path}", console)
    if stream.failed is not None:
        print(
            f"undiffuse: {path} is {state}, but its progress could not be shown "
            f"({stream.failed.strerror})",
            file=sys.stderr,
        )


def own_command() -> str:
    """How the command was called, for a command that can be copied."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return f"{Path(sys.executable).name} -m undiffuse"
    return str(called) if "/" in sys.argv[0] else "undiffuse"


def replayed(run: Path, asked: Config, out: Path | None, plan: bool) -> Config:
    """The configuration of a run to replay.

    asked, out, plan: the other flags. Raises UserError for flags that do not go with --replay."""
    if out is None:
        raise UserError("--replay needs --out, a new folder for the repeated run")
    if plan or asked != make_config():
        raise UserError(
            "--replay repeats the other run's configuration, so it takes no flag of a "
            "hyperparameter, no --preset and no --plan"
        )
    source = folder.Run(run)
    return source.about().config.model_copy(update={"data": source.data_place()})


def lengthened(run: Path, asked: Config, out: Path | None, other: bool) -> Config:
    """The configuration of a run that goes on from `run`.

    asked, out: the other flags. other: whether --plan or --replay is given. Raises UserError for
    flags that do not go with --from."""
    if out is None:
        raise UserError("--from needs --out, a new folder for the longer run")
    no_budget = dict.fromkeys(BUDGETS)
    budget = {name: getattr(asked, name) for name in BUDGETS}
    if other or asked.model_copy(update=no_budget) != make_config().model_copy(update=no_budget):
        raise UserError(
            "--from takes the other run's configuration, so it takes no flag of a hyperparameter "
            "but --minutes, --epochs or --steps, no --preset, no --replay and no --plan"
        )
    return api.of_longer(run, out, **budget)


def preset_of(arguments: list[str]) -> Config:
    """The configuration of the preset that `--preset NAME` chooses.

    Its minutes are None where the arguments give --epochs or --steps."""
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


def with_flags(sentence: str) -> str:
    """An error's sentence with the names of flags. The library's errors name parameters."""
    fields = "|".join((*Config.model_fields, *SessionOptions.model_fields))

    def given(match: re.Match[str]) -> str:
        return flag_of(match[1]) + ("" if match[2] == "True" else f" {match[2]}")

    sentence = re.sub(rf"\b({fields}|{WRITTEN})=(\S+?)(?=[:;,)]?(?:\s|$))", given, sentence)
    names = f"{fields}|{'|'.join(NETWORK)}|n|classes|bits_images|ode_images"
    return re.sub(rf"^({names})(?=:| must )", lambda match: flag_of(match[1]), sentence)
