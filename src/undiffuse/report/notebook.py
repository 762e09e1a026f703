"""Blocks as a Jupyter notebook. It runs from top to bottom in its run folder.

The output of its cells is in the file already, so a viewer shows all of it."""

from __future__ import annotations

import ast
import base64
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

import undiffuse
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
from undiffuse.report.numbers import labels

SETUP = """\
from pathlib import Path

import undiffuse
from undiffuse.report import Report

run = Path()  # the notebook lies in its run folder
report = Report(run)"""


TRY_IT = (
    (
        "A sample of the model, and the same image with more and more noise, by the jump (3).",
        """\
import torch
from undiffuse.base.images import image_grid
from undiffuse.base.pixels import to_uint8

model = undiffuse.load(run)
image = model.sample(1, seed=1)  # uint8 (1, H, W), or (1, H, W, 3) in colour
noisy = [model.noised(image, t) for t in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)]  # x_t, float (1, C, H, W)
image_grid(to_uint8(torch.cat(noisy)), columns=6)""",
    ),
    (
        "What the network makes of each: the denoised image.",
        """\
classes = model.classes[:1] if model.classes else None
denoised = [model(x_t, max(t, 0.01), classes) for x_t, t in zip(noisy, (0, 0.2, 0.4, 0.6, 0.8, 1))]
image_grid(to_uint8(torch.cat(denoised)), columns=6)""",
    ),
    (
        "Ten images from the same noises: by (7) in the first row, by (8) in the second, by DDIM "
        "in the third.",
        """\
def sampled(sampler):
    images = torch.from_numpy(model.sample(10, sampler=sampler, steps=25, guidance=1, seed=2))
    return images[:, None] if images.ndim == 3 else images.movedim(-1, 1)


rows = [sampled(name) for name in ("posterior-mean", "ddpm", "ddim")]
image_grid(torch.cat(rows), columns=10)""",
    ),
    (
        "The spread of a pixel over the images of each sampler, in 8-bit values.",
        """\
def spread(images):
    return images.double().std(0).square().mean().sqrt().item()


names = ("posterior-mean", "ddpm", "ddim")
{name: round(spread(row), 1) for name, row in zip(names, rows)}""",
    ),
    (
        "How quickly the noise takes over: the log SNR against time.",
        """\
from matplotlib.figure import Figure

t = torch.linspace(0.01, 1, 100)
figure = Figure(figsize=(4, 2.5), layout="constrained")
axis = figure.subplots()
axis.plot(t, model.denoiser.noise_level(t).log_snr)
axis.set(xlabel="t", ylabel="log SNR")
figure""",
    ),
)
"""Cells that use the run's model: what each shows, and its program."""


def notebook(
    title: str, blocks: Iterable[Block], pictures: Mapping[str, bytes], run: Path, weights: bool
) -> bytes:
    """The notebook's file. pictures: by file name. weights: whether the run has a model.

    A run with a model has more cells at the end, which sample from it."""
    cells = [prose(f"# {title}"), program(SETUP)]
    by_stem = {name.rpartition(".")[0]: name for name in pictures}
    blocks = list(blocks)
    numbers = labels(blocks)
    for place, block in enumerate(blocks):
        if isinstance(block, Figure | Table):
            block = replace(block, caption=f"{numbers[place]}: {block.caption}")
        cells += cells_of(block, pictures, by_stem)
    if weights:
        cells.append(prose("## Try it"))
        for (words, source), shown in zip(TRY_IT, outputs(run), strict=True):
            cells += [prose(words), program(source, shown)]
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


def outputs(run: Path) -> Iterator[dict[str, Any]]:
    """What the cells of TRY_IT show, by MIME type. They are run here, one after the other."""
    names: dict[str, Any] = {"run": run, "undiffuse": undiffuse}
    for _, source in TRY_IT:
        *statements, last = ast.parse(source).body
        assert isinstance(last, ast.Expr)
        exec(compile(ast.Module(statements, []), "<notebook>", "exec"), names)  # noqa: S102
        value = eval(compile(ast.Expression(last.value), "<notebook>", "eval"), names)  # noqa: S307
        yield as_output(value)


def as_output(value: Any) -> dict[str, Any]:
    """What a notebook shows of a value, by MIME type: a picture or its text."""
    content = io.BytesIO()
    if isinstance(value, Image.Image):
        value.save(content, "PNG")
    elif hasattr(value, "savefig"):
        value.savefig(content, format="png", metadata={"Software": None})
    else:
        return {"text/plain": repr(value)}
    return {
        "image/png": base64.b64encode(content.getvalue()).decode(),
        "text/plain": f"<{type(value).__name__}>",
    }


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
        case Figure(name, caption, alt):
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
