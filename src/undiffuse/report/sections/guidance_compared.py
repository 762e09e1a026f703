"""The study of guidance: quality and variety against its strength, by several methods."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from undiffuse.report.blocks import Block, Figure, Heading, Table, Text, plain
from undiffuse.report.sections._shared import unfinished
from undiffuse.report.source import Source
from undiffuse.report.words import distance, number


def section(source: Source) -> Iterator[Block]:
    study = source.guided
    if study is None:
        return
    rows = study["rows"]
    yield Heading(1, "Strengths of guidance compared")
    yield from unfinished(study, "guidance", "The comparison", "sampled", source)
    weaker = ""
    if study["weaker_step"] is not None:
        weaker = (
            f" The earlier snapshot is that of step {study['weaker_step']:,}: guidance leads away "
            "from its prediction for the same condition, in place of the unconditional one."
        )
    yield Text(
        f"{study['n']:,} images each, from the same noise. _Precision_ is the share of images that "
        "look real, and _recall_ the share of real images that the model can make. Stronger "
        f"guidance should raise precision and lower recall.{weaker} CFG++ puts the unconditional "
        "prediction's noise back after each step, which only DDIM among these samplers does, so "
        "its row of comparison is DDIM without guidance."
    )
    yield Table(
        ("method", "strength", "calls", "Fréchet distance", "95% interval", "precision", "recall"),
        [
            (
                plain(row["method"]),
                f"{row['guidance']:g}",
                str(row["calls"]),
                *distance(row),
                f"{row['precision']:.3f}",
                f"{row['recall']:.3f}",
            )
            for row in rows
        ],
        f"Guidance, {study['n']:,} images each. Real images have the distance "
        f"{number(study['real_frechet'])}.",
        tuple(range(1, 7)),
    )
    yield Figure(
        "guidance",
        "Quality and variety against the strength of guidance.",
        "Three charts of curves, one for each method: distance, precision and recall.",
    )
    yield Text(verdict(rows))


def verdict(rows: list[dict[str, Any]]) -> str:
    """Which row has the smallest distance, and whether that is by more than chance."""
    best = min(rows, key=lambda row: float(row["frechet"]))
    none = next((row for row in rows if row["guidance"] == 1), best)
    if best is none:
        return "The smallest distance is that without guidance."
    apart = best["frechet_high"] < none["frechet_low"]
    return (
        f"The smallest distance is that of {plain(best['method'])} with strength "
        f"{best['guidance']:g}. "
        + (
            "It is smaller than without guidance by more than the intervals."
            if apart
            else "It does not differ from that without guidance by more than the intervals."
        )
    )
