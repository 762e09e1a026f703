"""Evaluation: how good generated images are, how likely the model holds real ones, and whether it copies.

Every figure comes with its 95% interval, and beside it the same figure of real images that were not trained on, at the
same number of images: its control, or floor. What cannot be given for a data set is listed with the reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable

Watch = Callable[[str, float], None]


def unwatched(stage: str, done: float) -> None:
    pass


class Stopwatch:
    """A `Watch` that passes on what it is told, and knows how long each stage took."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.begun: dict[str, float] = {}

    def __call__(self, stage: str, done: float) -> None:
        self.begun.setdefault(stage, time.monotonic())
        self.watch(stage, done)

    def seconds(self) -> dict[str, float]:
        """The seconds of each stage so far, in order: until the next one began, the last one until now."""
        ends = [*self.begun.values(), time.monotonic()][1:]
        return {
            stage: round(end - self.begun[stage], 1)
            for stage, end in zip(self.begun, ends, strict=True)
        }
