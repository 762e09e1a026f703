"""Two runs side by side: what differs between them, and what it did."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undiffuse.measuring.quality import METRICS, metric_of
from undiffuse.report.blocks import Block, Figure, Heading, Missing, Table, Text, coded, plain
from undiffuse.report.document import compile_document
from undiffuse.report.pictures import svg
from undiffuse.report.source import Source, read
from undiffuse.report.words import accented, interval, number, shown
from undiffuse.runs import figures
from undiffuse.runs.folder import Run
from undiffuse.training.config import Config
from undiffuse.training.records import Finished, Validation

if TYPE_CHECKING:
    from matplotlib import figure

COMPARABLE = ("data", "size", "subset", "schedule", "predict", "weighting", "times", "chain")
"""Hyperparameters that must be equal for two losses to be of the same thing."""


@dataclass(frozen=True)
class Pair:
    """Two runs. They are called as their folders are, with (a) and (b) where these are alike."""

    one: Source
    other: Source

    @property
    def names(self) -> tuple[str, str]:
        first, second = (source.run.path.resolve().name for source in (self.one, self.other))
        return (first, second) if first != second else (f"{first} (a)", f"{second} (b)")

    @property
    def named(self) -> list[tuple[str, Source]]:
        return list(zip(self.names, (self.one, self.other), strict=True))

    def differing(self) -> list[str]:
        """The hyperparameters that differ."""
        fields = Config.model_fields
        return [f for f in fields if getattr(self.one.config, f) != getattr(self.other.config, f)]


def compare(one: Path, other: Path) -> list[Path]:
    """Write compared-with-OTHER.html and .pdf into the folder of the run `one`. Returns the paths.

    Raises UserError where one of the runs does not exist or is damaged."""
    pair = Pair(read(Run(one)), read(Run(other)))
    title = " and ".join(pair.names)
    pictures = {
        f"samples-{i}.png": source.pictures["samples.png"]
        for i, (_, source) in enumerate(pair.named)
        if "samples.png" in source.pictures
    }
    with figures.own_style():
        pictures["held-out.svg"] = svg(held_out(pair))
    page, document = compile_document(title, "", list(blocks(pair)), pictures)
    name = f"compared-with-{pair.other.run.path.resolve().name}"
    files = {f"{name}.html": page.encode(), f"{name}.pdf": document}
    for file, content in files.items():
        pair.one.run.write(file, content)
    return [pair.one.run.path / file for file in files]


def blocks(pair: Pair) -> Iterator[Block]:
    yield Text(" ".join(summary(pair)))
    yield Heading(1, "What differs")
    yield differences(pair)
    yield Heading(1, "What it did")
    yield from measures(pair)
    yield Figure(
        "held-out",
        f"The loss on held-out images against the minutes of training. {caution(pair)}",
        "Two falling curves, one for each run.",
        0.75,
    )
    yield Heading(1, "Samples")
    yield Text("New images of both runs, in the order in which they were sampled.")
    for i, (name, source) in enumerate(pair.named):
        if "samples.png" in source.pictures:
            yield Figure(f"samples-{i}", plain(name), f"A grid of samples of {name}.", 0.6)
        else:
            yield Missing(f"{plain(name)} has no samples.", source.run.command_for("sample"))


def summary(pair: Pair) -> Iterator[str]:
    """What differs, and which run is nearer to its data, a sentence each."""
    differing = pair.differing()
    if differing:
        listed = ", ".join(f"`{field.replace('_', '-')}`" for field in differing)
        yield f"The two runs differ in {listed}."
    else:
        yield "The two runs have the same hyperparameters."
    ratios = [
        (plain(name), source.evaluation["frechet"])
        for name, source in pair.named
        if source.evaluation and "frechet" in source.evaluation
    ]
    if len(ratios) < 2:
        return
    (first, a), (second, b) = sorted(ratios, key=lambda ratio: float(ratio[1]["ratio"]))
    apart = a["ratio_high"] < b["ratio_low"]
    yield (
        f"The samples of {first} have {number(a['ratio'], 2)} times the Fréchet distance of real "
        f"images, those of {second} {number(b['ratio'], 2)} times. "
        + (
            "The intervals do not overlap. Another seed of training could still change the order."
            if apart
            else "The intervals overlap, so these samples cannot tell them apart."
        )
    )


def differences(pair: Pair) -> Table:
    """A row for each hyperparameter that differs, and rows for what became of the training."""

    def of_training(source: Source) -> dict[str, str]:
        facts = source.about.facts
        weights = sum(parameter.numel() for parameter in source.network.parameters())
        return {
            "training images": f"{facts.training:,} of {plain(facts.name)}",
            "weights": f"{weights:,}",
            "steps": f"{source.steps:,}",
            "minutes of training": f"{source.minutes:.1f}",
            "state": "finished" if source.of(Finished) else "unfinished",
        }

    rows = [
        (
            f"`{field.replace('_', '-')}`",
            *(plain(shown(field, getattr(source.config, field))) for _, source in pair.named),
        )
        for field in pair.differing()
    ]
    one, other = (of_training(source) for _, source in pair.named)
    rows += [(name, one[name], other[name]) for name in one]
    return Table(
        ("", *map(plain, pair.names)), rows, "The hyperparameters that differ, and both trainings."
    )


def measures(pair: Pair) -> Iterator[Block]:
    """A table of what both runs were measured by, or the commands that measure them."""
    for name, source in pair.named:
        if source.evaluation is None:
            what = f"{plain(name)} was not measured."
            yield Missing(what, source.run.command_for("evaluate"))
    one, other = pair.one.evaluation, pair.other.evaluation
    if one is None or other is None:
        return

    def cells(figure: dict[str, Any]) -> tuple[str, str]:
        return number(figure["value"]), interval(figure["low"], figure["high"])

    rows = [
        (plain(accented(metric_of(name).heading)), *cells(one[name]), *cells(other[name]))
        for name in METRICS
        if name in one and name in other
    ]
    n, m = one["sampling"]["n"], other["sampling"]["n"]
    counts = f"{n:,} images each" if n == m else f"{n:,} and {m:,} images; do not compare distances"
    first, second = map(plain, pair.names)
    yield Table(
        ("measure", first, "95% interval", second, "95% interval"),
        rows,
        f"Of {counts}. Intervals say what other samples would give.",
        (1, 2, 3, 4),
    )


def caution(pair: Pair) -> str:
    """Whether the two losses are of the same thing."""
    unequal = [field for field in COMPARABLE if field in pair.differing()]
    if not unequal:
        return "Both losses are of the same thing, so the lower curve is the better one."
    listed = ", ".join(coded(field) for field in unequal)
    return f"The runs differ in {listed}, so their losses cannot be compared."


def held_out(pair: Pair) -> figure.Figure:
    """The held-out loss of both runs against time."""
    drawn = figures.new_figure(5.4, 3.0)
    axis = drawn.subplots()
    for (name, source), colour, style in zip(
        pair.named, figures.COLOURS[1:], ("-o", "--s"), strict=True
    ):
        found = source.of(Validation)
        minutes = [record.time / 60 for record in found]
        losses = [record.loss for record in found]
        axis.plot(minutes, losses, style, color=colour, label=name, markersize=4)
    axis.set(xlabel="minutes of training", ylabel="held-out loss", yscale="log")
    figures.in_decimals(axis)
    axis.legend(fontsize=8)
    return drawn
