"""Every hyperparameter with its reason, and what the run cost."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from undiffuse.data import clusters
from undiffuse.nets import NETWORKS, options_of
from undiffuse.report.blocks import Block, Heading, Table, Text, coded, plain
from undiffuse.report.source import Source
from undiffuse.report.words import shown
from undiffuse.training import muon
from undiffuse.training.config import Config, described
from undiffuse.training.fields import TABLES
from undiffuse.training.optimizers import OPTIMIZERS
from undiffuse.training.presets import PRESETS
from undiffuse.training.records import CompileFallback, Quality, SessionStarted

INDENT = "\N{EM SPACE}"


HOUSEKEEPING = {"preset", "size", "background", "subset", "snapshots", "snapshot_images"}
"""Hyperparameters that do not change the model, unless the user set them."""


def section(source: Source) -> Iterator[Block]:
    yield Heading(1, "Hyperparameters")
    yield Text(
        "A reason that says _measured_ names what was measured: on MNIST, on two CPU cores, in the "
        "minutes or steps that it states, and not in this run. _Not tuned_ means that nothing else "
        "was tried."
    )
    yield Table(
        HEADER,
        [row for housekeeping, row in hyperparameters(source) if not housekeeping],
        "The hyperparameters, with the reason for each value; below `net` the options of this "
        f"network. {MARKED} {coded(source.config.preset)}.",
    )
    yield Table(
        ("what", "value", "why"),
        list(fixed(source)),
        "Numbers that this software fixes, and that are no flags.",
    )


def fixed(source: Source) -> Iterator[tuple[str, str, str]]:
    """The rows of the numbers that are constants in the code, as far as this run used them."""
    config, about = source.config, source.about
    yield "steps taken", f"{source.steps:,}", "as many as the budget allowed"
    yield (
        "passes over the training images",
        f"{source.steps * config.batch_size / max(1, about.facts.training):.2f}",
        "follows from the steps",
    )
    yield "images held out", f"{about.facts.validation:,}", "one in twenty, at most 1,000"
    precision = str(last_machine(source).get("precision", "unknown"))
    yield "precision", precision, "bf16 where the CPU has it, since it is faster; else fp32"
    if config.optimizer.partition(":")[0] == "muon":
        momentum = OPTIMIZERS.options(config.optimizer).get("momentum", 0.9)
        yield "momentum of Muon", f"{momentum:g}", "the decay of the average gradient; not tuned"
        yield (
            "iterations of Muon",
            str(muon.ITERATIONS),
            "measured in 600 steps: five have the same held-out loss and take a tenth longer",
        )
        shown_coefficients = ", ".join(map(str, muon.NEWTON_SCHULZ))
        yield "coefficients of Muon", shown_coefficients, "those of Jordan et al. 2024"
        yield "scale of an update of Muon", "0.2", "about that of AdamW (Liu et al. 2025)"
        yield "smallest matrix for Muon", "16 rows or columns", "smaller ones go to AdamW; not "
        "tuned"
    yield "epsilon of AdamW", "1e-8", "that of the library; not tuned"
    if about.conditioning.clusters:
        yield (
            "iterations of k-means",
            str(clusters.ITERATIONS),
            "not tuned",
        )
        yield (
            "pixels a side that k-means compares",
            f"{clusters.PIXELS} to {2 * clusters.PIXELS - 1}",
            "not tuned",
        )
    yield "denoised image in sampling", "clipped to -1..1", "no image has values outside"


def appendix(source: Source) -> Iterator[Block]:
    """The hyperparameters that the model does not depend on, and what the run cost."""
    yield Table(
        HEADER,
        [row for housekeeping, row in hyperparameters(source) if housekeeping],
        f"The hyperparameters that had no effect on this model. {MARKED} "
        f"{coded(source.config.preset)}.",
    )
    yield Table(
        ("what", "this run"),
        [(plain(key), plain(value)) for key, value in cost(source)],
        "What the run cost, and what it ran on.",
    )


Row = tuple[str, str, str, str]
"""Name, value, what it is, and the reason for the value; marked-up text."""

HEADER = ("name", "value", "what it is", "why")
MARKED = "An asterisk marks what was changed from the preset"


def hyperparameters(source: Source) -> Iterator[tuple[bool, Row]]:
    """The rows of both tables: (whether it is housekeeping, (name, value, reason)); marked-up."""
    config = source.config
    preset = PRESETS.get(config.preset, {})
    guidance = config.sampling(source.steps, source.about.conditioning).guidance
    without_effect = unused(source)
    for name, why in source.about.reasons.items():
        value = getattr(config, name)
        default = preset[name][0] if name in preset else Config.model_fields[name].default
        usual = value == default or name == "preset" or name in source.about.decided
        mark = "" if usual else " \\*"
        reason = "not used in this run" if name in without_effect else why
        yield (
            name in without_effect or (name in HOUSEKEEPING and usual),
            (
                f"`{name.replace('_', '-')}`{mark}",
                parted(shown(name, guidance if name == "guidance" else value)),
                plain(meaning(name)),
                plain(reason),
            ),
        )
        if name == "net":
            yield from ((False, row) for row in network_options(value, default))


def meaning(name: str) -> str:
    """What a hyperparameter is, with its unit, and without the values that it may have."""
    what = described(name).partition(" - ")[0]
    values = what.find("|")
    if values < 0:
        return what
    before = what[:values].rpartition(": ")[0].partition(": ")[0]
    return before or TABLES[name].kind


def parted(value: str) -> str:
    """A value as marked-up text, which may be broken after its punctuation."""
    return plain(re.sub(r"([:,=/])(?=.)", "\\1\u200b", value))


def network_options(net: str, usual: str) -> Iterator[Row]:
    """The rows of a network's own options. usual: the preset's network."""
    same = net.partition(":")[0] == usual.partition(":")[0]
    of_preset = NETWORKS.options(usual) if same else {}
    for option in options_of(net):
        value, default = option.value, option.default
        mark = "" if value == of_preset.get(option.name, default) else " \\*"
        yield (
            f"{INDENT}`{option.name}`{mark}",
            parted(shown(option.name, value)),
            plain(option.what),
            plain(option.reason if value == default else "chosen for this run"),
        )


def unused(source: Source) -> set[str]:
    """The hyperparameters that had no effect on this run."""
    conditioning, found = source.about.conditioning, set()
    if not conditioning.clusters:
        found.add("clusters")
    if not conditioning.kind:
        found.add("condition_dropout")
    if not conditioning.guidable:
        found |= {"guidance", "guidance_limit"}
    elif source.config.guidance is not None:
        found.add("guidance_limit")
    if source.finished and not source.of(Quality):
        found.add("quality_share")
    return found


def cost(source: Source) -> Iterator[tuple[str, str]]:
    """The rows of the table: what the run cost, and the machine of its last session."""
    sessions = len(source.of(SessionStarted))
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
        "CPU time",
        f"{source.minutes * machine.get('threads', 1):.0f} CPU-minutes at the most, on "
        f"{machine.get('threads', 'unknown')} threads",
    )
    yield "seed", str(source.config.seed)
    for key, value in machine.items():
        yield "instruction set" if key == "cpu" else key, str(value)


def last_machine(source: Source) -> dict[str, Any]:
    """The facts of the machine of the last session.

    Whether the network could be compiled is known only after the session was logged."""
    sessions = source.of(SessionStarted)
    if not sessions:
        return {}
    machine = sessions[-1].machine
    since = source.records[source.records.index(sessions[-1]) :]
    uncompiled = any(isinstance(record, CompileFallback) for record in since)
    return {**machine, "compiled": False} if uncompiled else machine


def flops_per_image(source: Source) -> int:
    """Floating-point operations of a training step, per image.

    A backward pass costs twice as much as a forward pass."""
    with FlopCounterMode(display=False) as counter:
        source.run_network()
    return 3 * counter.get_total_flops()
