"""What a report is made of: blocks, in a small vocabulary that a page, a document and a notebook can all show.

Text is marked up as in Typst: *strong*, _emphasis_, `code`, $mathematics$, and #link("address")[words]. Whatever comes from
outside (names of data, of classes, of files) goes through `plain` or `coded` first.
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
    """number: the handout's, such as "3", or "" for none. note: a word beside the number, such as "as printed"."""

    mathematics: str
    number: str = ""
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """name: of the picture, without its ending. alt: what one would say of it to somebody who cannot see it. width: its share of the page."""

    name: str
    caption: str
    alt: str
    width: float = 1.0


@dataclass(frozen=True)
class Table:
    """rows: cells of marked-up text. numeric: the columns, from 0, that are aligned to the right."""

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    caption: str
    numeric: tuple[int, ...] = ()


@dataclass(frozen=True)
class Code:
    """Source code as it ran, with where it stands: file and first line."""

    source: str
    file: str
    line: int


@dataclass(frozen=True)
class Missing:
    """Something that this run has not got: what, and the command that makes it."""

    what: str
    command: str


@dataclass(frozen=True)
class Command:
    """A command to type, after the words that say what it does."""

    words: str
    command: str


Block = Heading | Text | Equation | Figure | Table | Code | Missing | Command


SPECIAL = re.compile(r"([\\#$*_`<>@\[\]=~\"'/-])")


def plain(words: object) -> str:
    """Words from outside as marked-up text: every character stands for itself."""
    return SPECIAL.sub(r"\\\1", str(words))


def coded(words: object) -> str:
    """Words from outside, set as code."""
    return f"#raw({json.dumps(str(words), ensure_ascii=False)})"


SYMBOLS = {
    "dot.c": r"\cdot",
    "dots.h": r"\dots",
    "dots.h.c": r"\cdots",
    "tilde.op": r"\sim",
    "arrow.r": r"\to",
    "eq.def": r":=",
    "lt.eq": r"\le",
    "gt.eq": r"\ge",
    "in": r"\in",
    "slash": "/",
    "sum": r"\sum",
    "product": r"\prod",
    "approx": r"\approx",
    "infinity": r"\infty",
    "quad": r"\quad",
    "log": r"\log",
    "times": r"\times",
    "RR": r"\mathbb{R}",
    "EE": r"\mathbb{E}",
    "dif": r"\mathrm{d}",
    **{
        name: f"\\{name}"
        for name in ("alpha", "beta", "gamma", "sigma", "theta", "lambda", "mu", "eta", "tau", "pi")
    },
    "epsilon": r"\varepsilon",
}


FUNCTIONS = {
    "sqrt": r"\sqrt{%s}",
    "macron": r"\bar{%s}",
    "hat": r"\hat{%s}",
    "cal": r"\mathcal{%s}",
    "bold": r"\mathbf{%s}",
    "norm": r"\lVert %s \rVert",
    "frac": r"\frac{%s}{%s}",
}


TOKEN = re.compile(
    r'"(?P<words>[^"]*)"|(?P<name>[A-Za-z]+(?:\.[a-z]+)*)|(?P<script>[_^])|(?P<other>\s+|.)'
)


def latex(mathematics: str) -> str:
    """Mathematics in Typst's notation as LaTeX. ValueError for a name that is in neither table."""
    found, rest = _sequence(mathematics, 0, closing="")
    assert rest == len(mathematics)
    return found


def _sequence(text: str, at: int, closing: str) -> tuple[str, int]:
    """(LaTeX of text from `at` to the bracket or comma that ends it, where that is)."""
    out, depth = "", 0
    while at < len(text):
        if depth == 0 and text[at] in closing:
            return out, at
        match = TOKEN.match(text, at)
        assert match is not None
        at = match.end()
        if match["words"] is not None:
            out += rf"\text{{{match['words']}}}"
        elif match["name"]:
            piece, at = _name(text, match["name"], at)
            out += piece
        elif match["script"] and text[at : at + 1] == "(":
            inner, at = _sequence(text, at + 1, ")")
            out, at = f"{out}{match['script']}{{{inner}}}", at + 1
        elif match["script"]:
            inner_match = TOKEN.match(text, at)
            assert inner_match is not None
            name = inner_match["name"]
            words = inner_match["words"]
            other = inner_match[0] if words is None else rf"\text{{{words}}}"
            inner, at = _name(text, name, inner_match.end()) if name else (other, inner_match.end())
            out += f"{match['script']}{{{inner.strip()}}}"
        else:
            depth += {"(": 1, ")": -1}.get(match[0], 0)
            out += {"{": r"\{", "}": r"\}"}.get(match[0], match[0])
    return out, at


def _name(text: str, name: str, at: int) -> tuple[str, int]:
    if len(name) == 1:
        return name, at
    if name in FUNCTIONS and text[at : at + 1] == "(":
        arguments, end = [], "("
        while end != ")":
            argument, at = _sequence(text, at + 1, ",)")
            arguments.append(argument.strip())
            end = text[at]
        return FUNCTIONS[name] % tuple(arguments), at + 1
    if name in SYMBOLS:
        return SYMBOLS[name] + " ", at
    raise ValueError(f"no LaTeX is known for {name} in {text}")


MARKS = re.compile(
    r"\\(?P<escaped>.)|`(?P<code>[^`]*)`|\$(?P<mathematics>[^$]*)\$|\*(?P<strong>[^*]*)\*|(?<!\w)_(?P<emphasis>[^_]*)_(?!\w)"
    r'|#raw\((?P<raw>"(?:[^"\\]|\\.)*")\)'
    r'|#link\("(?P<address>[^"]*)"\)\[(?P<words>[^\]]*)\]'
)


def markdown(words: str) -> str:
    """Marked-up text as Markdown, its mathematics as LaTeX."""

    def converted(match: re.Match[str]) -> str:
        found = {name: value for name, value in match.groupdict().items() if value is not None}
        match found:
            case {"escaped": character}:
                return f"\\{character}" if character in "\\`*_#$[]<>" else character
            case {"code": inner}:
                return f"`{inner}`"
            case {"raw": inner}:
                return f"`{json.loads(inner)}`"
            case {"mathematics": inner}:
                return f"${latex(inner).strip()}$"
            case {"strong": inner}:
                return f"**{markdown(inner)}**"
            case {"emphasis": inner}:
                return f"*{markdown(inner)}*"
            case {"address": address, "words": inner}:
                return f"[{markdown(inner)}]({address})"
        raise AssertionError(found)

    return MARKS.sub(converted, words)
