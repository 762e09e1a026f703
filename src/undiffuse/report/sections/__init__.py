"""What a report says, a file for each section.

To add a section: write a file with a function `section(source)` that yields blocks, and add it to
`SECTIONS`. To write for other readers: a function (source) -> blocks with `@AUDIENCES.add`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from undiffuse.base.table import Table
from undiffuse.report.blocks import Block, Code
from undiffuse.report.sections import (
    appendix,
    discussion,
    edits,
    evaluation,
    grading,
    grids_compared,
    guidance_compared,
    hyperparameters,
    ideas,
    learning,
    limits,
    model,
    network,
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
    network.section,
    learning.section,
    samplers.section,
    hyperparameters.section,
    training.section,
    evaluation.section,
    results.section,
    samplers_compared.section,
    guidance_compared.section,
    grids_compared.section,
    edits.section,
    trainings_compared.section,
    discussion.section,
    limits.section,
]
"""The sections, in the order of the report. The references and the appendix follow them."""


AUDIENCES = Table("audience")
"""Whom a report is for -> a function (source) -> its blocks."""


@AUDIENCES.add
def student(source: Source) -> list[Block]:
    """The whole report, as it is handed in."""
    found = [block for section in SECTIONS for block in section(source)]
    return ended(found, list(appendix.section(source)))


@AUDIENCES.add
def instructor(source: Source) -> list[Block]:
    """The whole report, and before its appendix what to look for when grading one."""
    found = [block for section in (*SECTIONS, grading.section) for block in section(source)]
    return ended(found, list(appendix.section(source)))


@AUDIENCES.add
def paper(source: Source) -> list[Block]:
    """The method, the table and the results, without code and without an appendix."""
    left_out = (ideas.section, learning.section)
    chosen = [section for section in SECTIONS if section not in left_out]
    found = [block for section in chosen for block in section(source)]
    return ended([block for block in found if not isinstance(block, Code)], [])


def ended(found: list[Block], after: list[Block]) -> list[Block]:
    """Blocks with the references that they need, and then those of the appendix."""
    return [*found, *references.section([*found, *after]), *after]
