"""Every hyperparameter with its reason, and what the run cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from undiffuse.report.blocks import Block, Heading, Table, coded, plain
from undiffuse.report.source import Source
from undiffuse.training.config import Config
from undiffuse.training.presets import PRESETS

UNSET = {
    "subset": "all",
    "size": "the data's",
    "checkpoint_every": "automatic",
    "chain": "continuous",
}
"""The words for a hyperparameter without a value, where "none" would mislead."""


def section(source: Source) -> Iterator[Block]:
    yield Heading(1, "Hyperparameters")
    yield Table(
        ("name", "value", "why"),
        list(hyperparameters(source)),
        "Every hyperparameter, with the reason for its value. An asterisk marks what was changed "
        f"from the preset {coded(source.config.preset)}.",
    )
    yield Table(
        ("what", "this run"),
        [(plain(key), plain(value)) for key, value in cost(source)],
        "What the run cost, and what it ran on.",
    )


def hyperparameters(source: Source) -> Iterator[tuple[str, str, str]]:
    """The rows of the table: name, value and reason, as marked-up text."""
    config, told = source.config, source.about.told
    preset = PRESETS.get(config.preset, {})
    sampling = config.drawing(source.steps, told)
    without_effect = unused(source)
    for name, why in source.about.reasons.items():
        value = getattr(config, name)
        default = preset[name][0] if name in preset else Config.model_fields[name].default
        mark = "" if value == default or name == "preset" else " \\*"
        yield (
            f"`{name.replace('_', '-')}`{mark}",
            plain(shown(name, sampling.get(name, value))),
            "not used in this run" if name in without_effect else plain(why),
        )


def unused(source: Source) -> set[str]:
    """The hyperparameters that had no effect on this run."""
    found = set()
    if not source.about.facts.groups:
        found.add("groups")
    if not source.about.told:
        found |= {"label_dropout", "guidance"}
    if source.finished and not source.of("score"):
        found.add("score_share")
    return found


def shown(name: str, value: object) -> str:
    """A hyperparameter's value in words."""
    if value is None:
        return UNSET.get(name, "none")
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def cost(source: Source) -> Iterator[tuple[str, str]]:
    """The rows of the table: what the run cost, and the machine of its last session."""
    sessions = len(source.of("session"))
    machine = last_machine(source)
    seen = source.steps * source.config.batch_size
    flops = seen * flops_per_image(source)
    yield (
        "images seen",
        f"{seen:,}, or {seen / max(1, source.about.facts.training):.2f} times the training set",
    )
    yield (
        "arithmetic",
        f"{flops / 1e15:.3g} PFLOP (convolutions and matrix products, forward and backward)",
    )
    yield (
        "time",
        f"{source.minutes:.1f} minutes, in {sessions} session{'s' if sessions != 1 else ''}",
    )
    yield (
        "processor time",
        f"{source.minutes * machine.get('threads', 1):.0f} CPU-minutes at the most, on "
        f"{machine.get('threads', 'unknown')} threads",
    )
    yield "seed", str(source.config.seed)
    for key, value in machine.items():
        yield "instruction set" if key == "cpu" else key, str(value)


def last_machine(source: Source) -> dict[str, Any]:
    """The facts of the machine of the last session.

    Whether the network could be compiled is known only after the session was logged."""
    sessions = source.of("session")
    if not sessions:
        return {}
    machine: dict[str, Any] = sessions[-1]["machine"]
    since = source.events[source.events.index(sessions[-1]) :]
    uncompiled = any(event["event"] == "uncompiled" for event in since)
    return {**machine, "compiled": False} if uncompiled else machine


def flops_per_image(source: Source) -> int:
    """Floating-point operations of a training step, per image.

    A backward pass costs twice as much as a forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.device("meta"):
        condition = torch.zeros(1, dtype=torch.long) if source.about.told else None
        source.network(torch.zeros(1, *source.about.facts.shape), torch.zeros(1), condition)
    return 3 * counter.get_total_flops()
