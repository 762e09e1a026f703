"""Blocks as a Jupyter notebook. It runs from top to bottom in its run folder.

The output of its cells is in the file already, so a viewer shows all of it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from typing import Any

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
)
from undiffuse.report.markdown import latex, markdown

SETUP = """\
from pathlib import Path

import undiffuse
from undiffuse.report import Report

run = Path()  # the notebook lies in its run folder
report = Report(run)"""


TRY_IT = """\
import torch
from undiffuse.base.images import image_grid

images = undiffuse.sample(run, n=20, seed=1)  # uint8 (20, H, W), or (20, H, W, 3) in colour
tensor = torch.from_numpy(images)
image_grid(tensor[:, None] if images.ndim == 3 else tensor.movedim(-1, 1), columns=10)"""


def notebook(
    title: str, blocks: Iterable[Block], pictures: Mapping[str, bytes], weights: bool
) -> bytes:
    """The notebook's file. pictures: by file name. weights: whether the run has a model.

    A run with a model has a last cell that samples new images."""
    cells = [prose(f"# {title}"), program(SETUP)]
    by_stem = {name.rpartition(".")[0]: name for name in pictures}
    for block in blocks:
        cells += cells_of(block, pictures, by_stem)
    if weights:
        cells += [prose("## Try it\n\nNew images, sampled now:"), program(TRY_IT)]
    for i, cell in enumerate(cells):
        cell["id"] = f"cell-{i}"
    content = {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "language_info": {"name": "python"},
        },
        "cells": cells,
    }
    return readable(json.dumps(content, indent=1, ensure_ascii=False)).encode()


def cells_of(
    block: Block, pictures: Mapping[str, bytes], by_stem: Mapping[str, str]
) -> list[dict[str, Any]]:
    match block:
        case Heading(level, words):
            return [prose(f"{'#' * (level + 1)} {markdown(words)}")]
        case Text(words):
            return [prose(markdown(words))]
        case Equation(mathematics, number, note):
            tag = ", ".join(part for part in (number, note) if part)
            numbered = rf" \tag{{{tag}}}" if tag else ""
            return [prose(f"$$ {latex(mathematics).strip()}{numbered} $$")]
        case Figure(name, caption, alt, _):
            file = by_stem[name]
            return [
                program(f'report.figure("{name}")', picture(pictures[file], file, alt)),
                prose(f"*{markdown(caption)}*"),
            ]
        case Table(header, rows, caption, numeric):
            lines = [header, ["--:" if i in numeric else ":--" for i in range(len(header))], *rows]
            table = "\n".join(
                f"| {' | '.join(cell.replace('|', '&#124;') for cell in map(markdown, line))} |"
                for line in lines
            )
            return [prose(f"{markdown(caption)}\n\n{table}")]
        case Code(source, file, line):
            listing = {
                "text/markdown": f"`{file}`, line {line}\n```python\n{source.rstrip()}\n```",
                "text/plain": source,
            }
            return [program(f'report.source("{file}", {line})', listing)]
        case Missing(what, command):
            return [prose(f"> {markdown(what)} This command makes it: `{command}`")]
        case Command(words, command):
            return [prose(f"{markdown(words)}\n\n```\n{command}\n```")]


def prose(words: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": words}


def program(source: str, shown: dict[str, Any] | None = None) -> dict[str, Any]:
    outputs = (
        [{"output_type": "execute_result", "execution_count": None, "metadata": {}, "data": shown}]
        if shown
        else []
    )
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": {},
        "source": source,
        "outputs": outputs,
    }


def picture(content: bytes, file: str, alt: str) -> dict[str, Any]:
    if file.endswith(".svg"):
        return {"image/svg+xml": content.decode(), "text/plain": alt}
    return {"image/png": base64.b64encode(content).decode(), "text/plain": alt}
