"""What the results do not say, and how to repeat the run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from undiffuse.report.blocks import Block, Command, Heading, Text
from undiffuse.report.source import Source


def section(source: Source) -> Iterator[Block]:
    yield Heading(1, "Limits, and how to repeat it")
    yield Text(
        "The features by which images are compared come from a classifier: what it does not see, "
        "these figures do not measure. Intervals say what other samples would give, not "
        "what another training would. The bound and the ODE's likelihood are of different models, "
        "and no order holds between them."
    )
    if source.finished:
        yield Command(
            "This command repeats the run to the same weights, on the same machine and versions:",
            shlex.join(["undiffuse", "train", "--replay", str(source.run.path), "--out", "NEW"]),
        )
