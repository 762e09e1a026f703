"""Blocks that several sections use: source code, and figures of training images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from undiffuse.report.blocks import Block, Code, Figure, Missing
from undiffuse.report.listing import listing
from undiffuse.report.source import Source


def code(*functions: Callable[..., Any]) -> Iterator[Code]:
    """The source code of functions or classes, with the file and line of each."""
    yield from map(listing, functions)


def unfinished(
    study: dict[str, Any], name: str, what: str, done: str, source: Source
) -> Iterator[Missing]:
    """What a study still lacks, and the command that goes on with it; nothing for a whole study.

    name: of the study. what: the study, as the sentence begins. done: with its cases."""
    have, cases = len(study["rows"]), study["cases"]
    if have < cases:
        yield Missing(
            f"{what} is not whole: {have} of {cases} cases have been {done}.",
            source.run.command_for("study", name),
        )


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
