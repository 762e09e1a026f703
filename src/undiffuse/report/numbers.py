"""The numbers of figures and tables, and the text's references to them.

The document numbers its figures and tables in their order. So do the blocks here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from undiffuse.report.blocks import Block, Figure, Heading, Table, Text


def labels(blocks: Iterable[Block]) -> dict[int, str]:
    """The labels "Figure 3" and "Table 2", by the places of their blocks."""
    found, counts = {}, {"Figure": 0, "Table": 0}
    for place, block in enumerate(blocks):
        if isinstance(block, (Figure, Table)):
            kind = type(block).__name__
            counts[kind] += 1
            found[place] = f"{kind} {counts[kind]}"
    return found


def referred(blocks: list[Block]) -> list[Block]:
    """The blocks, in which the last text before a figure or table names its number.

    A text of an earlier section names none."""
    before: int | None = None
    named: dict[int, list[str]] = {}
    numbers = labels(blocks)
    for place, block in enumerate(blocks):
        if isinstance(block, Heading):
            before = None
        elif isinstance(block, Text):
            before = place
        elif place in numbers and before is not None:
            named.setdefault(before, []).append(numbers[place])
    return [
        replace(block, words=with_reference(block.words, named[place]))
        if isinstance(block, Text) and place in named
        else block
        for place, block in enumerate(blocks)
    ]


def with_reference(words: str, names: list[str]) -> str:
    """The words with "See Figure 3 and Table 2." at their end, or in brackets before a colon."""
    *first, last = names
    every = f"{', '.join(first)} and {last}" if first else last
    if words.endswith(":"):
        return f"{words[:-1]} ({every}):"
    return f"{words} See {every}."
