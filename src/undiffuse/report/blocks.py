"""What a report is made of: a few kinds of blocks. A page, a document and a notebook show them all.

Text is marked up as in Typst: *strong*, _emphasis_, `code`, $mathematics$ and
#link("address")[words]. Names of data, classes and files come from outside: they go through `plain`
or `coded` first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Heading:
    """level: 1 for a section, 2 for a part of one."""

    level: int
    words: str


@dataclass(frozen=True)
class Text:
    """A paragraph, or several with blank lines between them."""

    words: str


@dataclass(frozen=True)
class Equation:
    """An equation in Typst's notation.

    number: that of the handout, such as "3", or "". note: words beside the number, or ""."""

    mathematics: str
    number: str = ""
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A picture with its caption.

    name: the picture's file name without its ending. alt: a description for people who cannot see
    it. width: its share of the page's width. here: whether it stands at this place on paper, and
    not at the nearest top or bottom of a page."""

    name: str
    caption: str
    alt: str
    width: float = 1.0
    here: bool = False


@dataclass(frozen=True)
class Table:
    """A table of marked-up text. numeric: the columns of numbers, counted from 0.

    Those are aligned to the right."""

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    caption: str
    numeric: tuple[int, ...] = ()


@dataclass(frozen=True)
class Code:
    """Source code that the run used, with its file and first line."""

    source: str
    file: str
    line: int


@dataclass(frozen=True)
class Missing:
    """A result that the run does not have yet, and the command that makes it."""

    what: str
    command: str


@dataclass(frozen=True)
class Command:
    """A command to type, and words that say what it does."""

    words: str
    command: str


Block = Heading | Text | Equation | Figure | Table | Code | Missing | Command


SPECIAL = re.compile(r"([\\#$*_`<>@\[\]=~\"'/-])")


def plain(words: object) -> str:
    """Words from outside as marked-up text. Each character stands for itself."""
    return SPECIAL.sub(r"\\\1", str(words))


def coded(words: object) -> str:
    """Words from outside, set as code."""
    return f"#raw({json.dumps(str(words), ensure_ascii=False)})"
