"""The progress of an evaluation: the stage, the share done, and how long each stage takes."""

from __future__ import annotations

import time
from collections.abc import Callable

Watch = Callable[[str, float], None]
"""Called with (stage, share of the stage that is done)."""


def unwatched(stage: str, done: float) -> None:
    """A `Watch` that does nothing."""


class Stopwatch:
    """A `Watch` that passes each call on to another, and measures how long each stage takes."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.begun: dict[str, float] = {}

    def __call__(self, stage: str, done: float) -> None:
        self.begun.setdefault(stage, time.monotonic())
        self.watch(stage, done)

    def seconds(self) -> dict[str, float]:
        """The seconds of each stage so far, in order.

        A stage ends when the next one begins. The last one ends now."""
        ends = [*self.begun.values(), time.monotonic()][1:]
        return {
            stage: round(end - self.begun[stage], 1)
            for stage, end in zip(self.begun, ends, strict=True)
        }
