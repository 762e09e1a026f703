"""Blocks that several sections use: source code, and figures of training images."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import undiffuse
from undiffuse.report.blocks import Block, Code, Figure, Missing
from undiffuse.report.source import Source

ROOT = Path(undiffuse.__file__).parent.parent


def code(*functions: Callable[..., Any]) -> Iterator[Code]:
    """The source code of functions or classes, with the file and line of each."""
    for function in functions:
        inner = inspect.unwrap(function)
        lines, first = inspect.getsourcelines(inner)
        file = inspect.getsourcefile(inner)
        assert file is not None
        path = Path(file)
        name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
        yield Code("".join(lines), name, first)


def with_examples(source: Source, figure: Figure) -> Iterator[Block]:
    """A figure that shows training images, if the run folder has some."""
    if "data.png" in source.pictures:
        yield figure
    else:
        yield Missing(
            "A picture is left out, as this run was begun by a version that kept no "
            "training images.",
            "undiffuse train",
        )
