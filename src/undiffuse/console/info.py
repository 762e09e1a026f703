"""The output of `undiffuse info`: a run's state, data and hyperparameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table

from undiffuse.nets import options_of
from undiffuse.runs.folder import About, Run
from undiffuse.training.records import (
    Finished,
    Quality,
    Record,
    SessionStarted,
    StepTaken,
    Validation,
    of_kind,
)


def describe(run: Run) -> Group:
    """A run's state, data and hyperparameters, for the terminal."""
    about, records = run.about(), list(run.records())
    summary = Table(
        box=None, show_header=False, title=str(run.path), title_justify="left", title_style="bold"
    )
    for key, value in state_of(about, records).items():
        summary.add_row(key, value)
    table = Table("hyperparameter", "value", "why", box=box.SIMPLE_HEAD)
    for row in hyperparameters(about, records):
        table.add_row(*row)
    return Group(summary, table)


def as_data(run: Run) -> dict[str, Any]:
    """What `describe` shows, as plain data: the content of `undiffuse info --json`."""
    about, records = run.about(), list(run.records())
    end = of_kind(Finished, records)
    steps, validations = of_kind(StepTaken, records), of_kind(Validation, records)
    qualities, sessions = of_kind(Quality, records), of_kind(SessionStarted, records)
    named = {name.strip(): (value, why) for name, value, why in hyperparameters(about, records)}
    return {
        "run": str(run.path),
        "version": about.version,
        "state": "finished" if end else "unfinished",
        "step": steps[-1].step if steps else 0,
        "seconds": max((record.time for record in records), default=0.0),
        "command": run.command(),
        "data": asdict(about.facts),
        "conditioning": asdict(about.conditioning),
        "config": about.config.model_dump(mode="json"),
        "hyperparameters": {
            name: {"value": value, "why": why} for name, (value, why) in named.items()
        },
        "loss": steps[-1].loss if steps else None,
        "held_out_loss": validations[-1].loss if validations else None,
        "quality": qualities[-1].scalars() if qualities else None,
        "machine": sessions[-1].machine if sessions else None,
        "replay_of": about.replay_of,
        "start": about.start and asdict(about.start),
    }


def state_of(about: About, records: list[Record]) -> dict[str, str]:
    """A run's state and data: heading -> text."""
    facts, conditioning = about.facts, about.conditioning
    steps, end = of_kind(StepTaken, records), of_kind(Finished, records)
    spent = max((record.time for record in records), default=0.0)
    state = "finished" if end else "unfinished; the same command continues it"
    shape = "x".join(str(n) for n in (*facts.shape[1:], facts.shape[0]))
    within = ", within the classes" if conditioning.class_of_cluster else ""
    clusters = f"{len(conditioning.clusters)} of similar images{within}"
    lines = {
        "state": f"{state}; {len(steps):,} steps in {spent / 60:.1f} minutes",
        "data": f"{facts.name}, {facts.training:,} images of {shape} to train on, "
        f"{facts.validation:,} held out",
        "classes": ", ".join(facts.classes) or "none",
        "clusters": clusters if conditioning.clusters else "none",
        "loss": f"{steps[-1].loss:.4f} at the last step" if steps else "none yet",
    }
    for validation in of_kind(Validation, records)[-1:]:
        lines["held-out loss"] = f"{validation.loss:.4f} at step {validation.step:,}"
    for session in of_kind(SessionStarted, records)[-1:]:
        machine = session.machine.items()
        lines["machine"] = ", ".join(f"{key} {value}" for key, value in machine)
    if about.start:
        lines["begun from"] = f"step {about.start.step:,} of {about.start.run}"
    if about.replay_of:
        lines["replays"] = about.replay_of
    return lines


def hyperparameters(about: About, records: list[Record]) -> Iterator[tuple[str, str, str]]:
    """(name, value, reason) of each. The network's own options follow the network."""
    config = about.config
    steps = of_kind(StepTaken, records)
    usual = config.sampling(steps[-1].step if steps else 0, about.conditioning)
    for name, why in about.reasons.items():
        value = (
            getattr(usual, name, getattr(config, name))
            if name == "guidance"
            else getattr(config, name)
        )
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        yield name.replace("_", "-"), "-" if value is None else shown, why
        if name == "net":
            yield from network_options(config.net)


def network_options(net: str) -> Iterator[tuple[str, str, str]]:
    """(name, value, reason) of a network's options."""
    for option in options_of(net):
        value = option.value
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        why = option.reason if value == option.default else "chosen for this run"
        yield f"  {option.name}", shown, why
