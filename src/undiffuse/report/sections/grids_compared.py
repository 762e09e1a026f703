"""The study of grids: which times sampling should visit at few network calls."""

from __future__ import annotations

from collections.abc import Iterator

from undiffuse.report.blocks import Block, Heading, Table, Text, plain
from undiffuse.report.sections._shared import unfinished
from undiffuse.report.source import Source
from undiffuse.report.words import distance, number


def section(source: Source) -> Iterator[Block]:
    study = source.gridded
    if study is None:
        return
    rows = study["rows"]
    yield Heading(1, "Times of the steps compared")
    yield from unfinished(study, "grids", "The comparison", "sampled", source)
    yield Text(
        f"{study['n']:,} images each, from the same noise, by {plain(study['sampler'])} with "
        f"guidance {number(study['guidance'])}. The grid _fitted_ was found for this model: its "
        "steps are short where the denoised image changes fast with the log SNR."
    )
    yield Table(
        ("grid", "calls", "steps", "Fréchet distance", "95% interval"),
        [
            (
                plain(row["grid"].partition(":")[0]),
                str(row["calls"]),
                str(row["steps"]),
                *distance(row),
            )
            for row in rows
        ],
        f"Grids, {study['n']:,} images each. Real images have the distance "
        f"{number(study['real_frechet'])}.",
        tuple(range(1, 5)),
    )
