"""What a report says, a file for each section.

To add a section: write a file with a function `section(source)` that yields blocks, and add it to
`SECTIONS`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from undiffuse.report.blocks import Block
from undiffuse.report.sections import (
    evaluation,
    hyperparameters,
    ideas,
    limits,
    model,
    process,
    references,
    results,
    samplers,
    samplers_compared,
    summary,
    training,
    trainings_compared,
)
from undiffuse.report.source import Source

SECTIONS: list[Callable[[Source], Iterator[Block]]] = [
    summary.section,
    ideas.section,
    process.section,
    model.section,
    samplers.section,
    evaluation.section,
    hyperparameters.section,
    training.section,
    results.section,
    samplers_compared.section,
    trainings_compared.section,
    limits.section,
    references.section,
]
"""The sections, in the order of the report."""


def blocks(source: Source) -> list[Block]:
    """The whole report."""
    return [block for section in SECTIONS for block in section(source)]
