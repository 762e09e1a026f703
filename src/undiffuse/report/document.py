"""Blocks as a Typst document, which is compiled to a page (HTML) and to a document (PDF)."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Literal

from undiffuse.base.errors import UserError
from undiffuse.base.files import readable
from undiffuse.report.blocks import (
    Block,
    Code,
    Command,
    Equation,
    Figure,
    Heading,
    Missing,
    Table,
    Text,
    coded,
    plain,
)

ACCENTS = {"\u0304": "\u00af", "\u0302": "^"}
"""Combining accents, which the compiler writes over symbols, and the same accents by themselves.

Browsers set a combining accent beside its symbol."""


def typst_source(title: str, byline: str, blocks: Iterable[Block]) -> str:
    """The whole document. Its pictures lie beside it, as NAME.svg or NAME.png.

    byline: a line below the title, or ""."""
    below = f", byline: [{plain(byline)}]" if byline else ""
    head = f'#import "style.typ": *\n#show: report.with(title: [{plain(title)}]{below})\n'
    return "\n\n".join([head, *map(typst, blocks), ""])


def typst(block: Block) -> str:
    match block:
        case Heading(level, words):
            return f"{'=' * level} {words}"
        case Text(words):
            return words
        case Equation(mathematics, number, note):
            tag = f"({number})" if number else ""
            return f"#numbered($ {mathematics} $, [{tag}{f' {note}' if note else ''}])"
        case Figure(name, caption, alt, width, here):
            placement = "none" if here else "auto"
            return (
                f"#picture({json.dumps(name)}, {json.dumps(alt, ensure_ascii=False)}, {width:.0%}, "
                f"{placement}, [{caption}])"
            )
        case Table(header, rows, caption, numeric):
            shown = [
                [f"#num[{cell}]" if i in numeric else cell for i, cell in enumerate(row)]
                for row in [header, *rows]
            ]
            cells = "\n".join(", ".join(f"[{cell}]" for cell in row) + "," for row in shown)
            columns = ", ".join("right" if i in numeric else "left" for i in range(len(header)))
            return f"#tabular(({columns},), ({widths(rows)},), [{caption}],\n{cells}\n)"
        case Code(source, file, line):
            fence = "`" * 4
            return (
                f"#where({json.dumps(file)}, {line})\n\n{fence}python\n{source.rstrip()}\n{fence}"
            )
        case Missing(what, command):
            return f"#missing[{what} This command makes it:][{coded(command)}]"
        case Command(words, command):
            return f"#instruction[{words}][{coded(command)}]"


LONG = 28
"""From so many characters in a cell on, a column gets a share of the width that is left."""


def widths(rows: Sequence[tuple[str, ...]]) -> str:
    """The width of each column: as wide as its cells, or a share where some cell is long.

    The shares are by the square root of the longest cells, so that no column is very narrow."""
    longest = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ", ".join(f"{x**0.5:.1f}fr" if x >= LONG else "auto" for x in longest)


def compile_document(
    title: str, byline: str, blocks: Iterable[Block], pictures: Mapping[str, bytes]
) -> tuple[str, bytes]:
    """(the page, the document). byline: below the title, or "". pictures: by file name."""
    try:
        import typst as compiler  # an optional dependency
    except ImportError as error:
        raise UserError(
            "a report needs the typst library; install it with: pip install 'undiffuse[report]'"
        ) from error

    files = resources.files("undiffuse.report")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "style.typ").write_bytes((files / "style.typ").read_bytes())
        (place / "main.typ").write_bytes(readable(typst_source(title, byline, blocks)).encode())
        named = {Path(name).stem: name for name in pictures}
        (place / "pictures.json").write_bytes(json.dumps(named).encode())
        for name, content in pictures.items():
            (place / name).write_bytes(content)

        def compiled(form: Literal["html", "pdf"]) -> bytes:
            world = compiler.Compiler(
                place / "main.typ", root=place, ignore_system_fonts=True, sys_inputs={"form": form}
            )
            try:
                found = world.compile(format=form)
            except compiler.TypstError as error:
                raise UserError(
                    f"the report can't be set ({error}); is a picture of the run damaged?"
                ) from error
            assert isinstance(found, bytes)
            return found

        page, document = compiled("html").decode(), compiled("pdf")
    css = (files / "style.css").read_text(encoding="utf-8")
    for combining, spacing in ACCENTS.items():
        page = page.replace(f"<mo>{combining}</mo>", f"<mo>{spacing}</mo>")
    return page.replace("</head>", f"<style>{css}</style></head>", 1), document
