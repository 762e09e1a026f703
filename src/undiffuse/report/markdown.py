"""Marked-up text as Markdown, and its mathematics as LaTeX: for the notebook."""

from __future__ import annotations

import json
import re

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
    "top": r"\top",
    "partial": r"\partial",
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
    """Mathematics in Typst's notation as LaTeX.

    Raises ValueError for a name that is neither in SYMBOLS nor in FUNCTIONS."""
    found, rest = _sequence(mathematics, 0, closing="")
    assert rest == len(mathematics)
    return found


def _sequence(text: str, at: int, closing: str) -> tuple[str, int]:
    """(the LaTeX of a part of text, where the part ends).

    The part begins at `at`, and ends before a character of `closing` outside of brackets."""
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
    r"\\(?P<escaped>.)|`(?P<code>[^`]*)`|\$(?P<mathematics>[^$]*)\$|\*(?P<strong>[^*]*)\*"
    r"|(?<!\w)_(?P<emphasis>[^_]*)_(?!\w)"
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
