"""The progress of a run, computed from its records: pace, time left, smoothed loss."""

from __future__ import annotations

import statistics
from collections import deque
from typing import TYPE_CHECKING

from undiffuse.training.records import (
    Cooldown,
    Projection,
    Quality,
    Record,
    SessionStarted,
    StepTaken,
    Validation,
)

if TYPE_CHECKING:
    from undiffuse.training.config import Config

RECENT = 50  # steps: pace and loss are means of the last ones


class Progress:
    """The progress of a run. Call it with the records in order.

    images: the number of training images."""

    def __init__(self, config: Config, images: int) -> None:
        self.config, self.images = config, images
        self.step = 0
        self.begin = 0  # the step at which the run begins
        self.elapsed = 0.0  # seconds of the run, over all sessions
        self.end: int | None = None  # the last step, or its estimate; None where unknown
        self.held_out: float | None = None
        self.quality: Quality | None = None
        self._losses: deque[float] = deque(maxlen=RECENT)
        self._seconds: deque[float] = deque(maxlen=RECENT)

    def __call__(self, record: Record) -> None:
        self.step, self.elapsed = record.step, record.time
        match record:
            case StepTaken():
                self._losses.append(record.loss)
                self._seconds.append(record.seconds)
            case SessionStarted():
                self._seconds.clear()
            case Projection():
                self.end = record.steps
            case Cooldown():
                self.end = record.end
            case Validation():
                self.held_out = record.loss
            case Quality():
                self.quality = record

    @property
    def loss(self) -> float | None:
        """The mean training loss of the last RECENT steps; None before the first."""
        return statistics.fmean(self._losses) if self._losses else None

    @property
    def pace(self) -> float | None:
        """Seconds a step: the median of the last RECENT steps of this session."""
        return statistics.median_high(self._seconds) if self._seconds else None

    @property
    def images_per_second(self) -> float | None:
        """Training images per second at this pace; None where it is not known."""
        return None if not self.pace else self.config.batch_size / self.pace

    @property
    def epoch(self) -> float:
        """The number of passes over the training images so far."""
        return self.step * self.config.batch_size / self.images

    @property
    def share(self) -> float:
        """The share of the budget that is used, 0 to 1."""
        if self.config.minutes is not None:
            return min(1.0, self.elapsed / (60 * self.config.minutes))
        done = self.step - self.begin
        return min(1.0, done / ((self.end or max(self.begin + 1, self.step)) - self.begin))

    @property
    def left(self) -> float | None:
        """The seconds that are left; None where they are not known."""
        if self.config.minutes is not None:
            return 60 * self.config.minutes - self.elapsed
        if self.pace is None or self.end is None:
            return None
        return (self.end - self.step) * self.pace
