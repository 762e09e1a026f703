"""Source code as a report shows it: what it computes, without what the report's text replaces.

Left out are docstrings, checks that only raise an error, and the registration in a table."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import undiffuse
from undiffuse.base.table import Table
from undiffuse.report.blocks import Code, coded, plain
from undiffuse.report.formulas import FORMULAS

ROOT = Path(undiffuse.__file__).parent.parent

REGISTRATION = re.compile(r"[A-Z_]+\.(add|named)")
"""Decorators that put a function into a table."""

FOR_TOOLS = re.compile(r"\s*# (?:type: ignore|fmt:|noqa).*$", re.MULTILINE)
"""Comments that are for programs and not for people."""


def listing(of: Callable[..., Any]) -> Code:
    """The source code of a function or class, with its file and first line."""
    inner = inspect.unwrap(of)
    lines, first = inspect.getsourcelines(inner)
    file = inspect.getsourcefile(inner)
    assert file is not None
    path = Path(file)
    name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
    return Code(essence(textwrap.dedent("".join(lines))), name, first)


def essence(source: str) -> str:
    """Code without docstrings, checks that only raise an error, and registrations in a table.

    The empty line after each goes too. A body of which nothing is left becomes `...`."""
    lines: list[str | None] = list(source.splitlines())

    def leave_out(node: ast.stmt | ast.expr, first: int) -> None:
        last = node.end_lineno or first
        lines[first - 1 : last] = [None] * (last - first + 1)
        if last < len(lines) and not (lines[last] or "").strip():
            lines[last] = None

    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        for decorator in node.decorator_list:
            if REGISTRATION.match(ast.unparse(decorator)):
                leave_out(decorator, decorator.lineno)
        without = [part for part in node.body if is_docstring(part) or only_raises(part)]
        for part in without:
            leave_out(part, part.lineno)
        if len(without) == len(node.body):
            lines[without[0].lineno - 1] = " " * without[0].col_offset + "..."
    kept = "\n".join(line for line in lines if line is not None)
    return FOR_TOOLS.sub("", kept).strip("\n") + "\n"


def is_docstring(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def only_raises(node: ast.stmt) -> bool:
    """Whether a statement checks something and raises an error, and does nothing else."""
    return (
        isinstance(node, ast.If)
        and not node.orelse
        and len(node.body) == 1
        and isinstance(node.body[0], ast.Raise)
    )


OF_PARAMETERS = re.compile(r"To add|[a-z_]\w*(, \w+)*: ")
"""The beginning of a paragraph about parameters, or about adding a function to a table."""


def explanation(of: object) -> str:
    """The docstring of a function, class or module as marked-up text: how the report explains it.

    What it says of parameters, errors, and adding more of its kind is left out."""
    found = inspect.getdoc(of) or ""
    paragraphs = [p for p in found.split("\n\n") if not OF_PARAMETERS.match(p)]
    words = re.sub(r"\s*Raises UserError[^.]*\.", "", "\n\n".join(paragraphs))
    parts = re.split(r"`([^`]*)`", words)
    return "".join(coded(part) if i % 2 else plain(part) for i, part in enumerate(parts)).strip()


def explained(table: Table, spec: str) -> str:
    """What the function of a spec in a table does, with the options that the spec gives it."""
    name = spec.partition(":")[0]
    words = FORMULAS.get((table.kind, name))
    if words is None:
        words = " ".join(explanation(table.function(name)).split())
    options = ", ".join(f"{name} = {value}" for name, value in table.options(spec).items())
    return f"{words} Here {plain(options)}." if options else words
