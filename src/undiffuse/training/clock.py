"""Ending on time: what the clock decides, as step numbers, and the learning rate that follows.

Training must end on a budget of minutes on a machine of unknown speed, and yet be reproducible. So
the clock only makes decisions: "from step s on, the learning rate falls linearly to 0 at step e".
Each decision is recorded before it acts. Everything else (learning rate, averages, snapshots) is a
function of the step and of these records. A replay reads the records instead of the clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from undiffuse.training.records import Cooldown, Decision, Projection, Rollback

FINISH_SECONDS = 3.0
"""What the last checkpoint, the figures and the exit take, before anything has been measured."""


def lr_factor(
    step: int, warmup: int, cooldowns: Sequence[Cooldown], rollbacks: Sequence[Rollback] = ()
) -> float:
    """The learning rate of 0-based step `step` as a share of its peak.

    It is the linear warm-up times the decided cooldown, halved at each rollback."""
    halvings = sum(rollback.step <= step for rollback in rollbacks)
    return min(1.0, (step + 1) / (warmup + 1)) * cooldown_factor(step, cooldowns) / 2**halvings


def cooldown_factor(step: int, cooldowns: Sequence[Cooldown]) -> float:
    """1 until the first cooldown; each takes over from the factor that the earlier ones reached."""
    if not cooldowns or step < cooldowns[0].start:
        return 1.0
    *earlier, last = cooldowns
    if step < last.start:
        return cooldown_factor(step, earlier)
    share = max(0, last.end - step) / max(1, last.end - last.start)
    return cooldown_factor(last.start, earlier) * share


def snapshot_steps(steps: int, count: int) -> list[int]:
    """`count` step numbers from 0 to `steps`. The intervals grow: most changes early on."""
    triangle = [k * (k + 1) // 2 for k in range(count)]
    return sorted({round(steps * k / triangle[-1]) for k in triangle})


@dataclass
class Clock:
    """The decisions of one run.

    elapsed: () -> seconds spent on the run so far, over all its sessions. decay: share of the run
    in which the learning rate falls. budget: seconds from the run's start to its exit, None for a
    fixed number of `steps`. replayed: decisions are only read."""

    elapsed: Callable[[], float]
    decay: float
    budget: float | None = None
    steps: int | None = None
    cooldowns: list[Cooldown] = field(default_factory=list)
    projection: Projection | None = None
    rollbacks: list[Rollback] = field(default_factory=list)
    replayed: bool = False
    durations: deque[float] = field(default_factory=lambda: deque(maxlen=50))
    snapshot_seconds: float = 0.0
    quality_seconds: float = 0.0
    quality_steps: Sequence[int] = ()  # the steps at which quality is measured
    delayed: bool = False  # since the last decision, by a rollback

    def read(self, decisions: Iterable[Decision]) -> None:
        """Take over the decisions of earlier sessions."""
        for decision in decisions:
            match decision:
                case Cooldown():
                    self.cooldowns.append(decision)
                case Projection():
                    self.projection = decision
                case Rollback():
                    self.rollbacks.append(decision)

    def now(self) -> float:
        """Seconds of the run so far, as records have them."""
        return round(self.elapsed(), 3)

    @property
    def end(self) -> int | None:
        """The step at which training ends, as far as that is decided."""
        return self.cooldowns[-1].end if self.cooldowns else None

    def seconds_per_step(self) -> float:
        return sum(self.durations) / len(self.durations)

    def steps_left(self, snapshots: Sequence[int], step: int) -> int:
        """How many more steps fit, with the snapshots and qualities until then and the finish."""
        assert self.budget is not None
        left = self.budget - self.elapsed() - FINISH_SECONDS - self.snapshot_seconds
        later = sum(1 for s in self.quality_steps if s > step)
        left -= self.quality_seconds * max(bool(self.quality_steps), later)
        due = sum(1 for s in snapshots if s > step) - 1
        return max(1, int((left - max(0, due) * self.snapshot_seconds) / self.seconds_per_step()))

    def look_ahead(self, step: int, snapshots: Sequence[int]) -> Projection | None:
        """The projection, once: at once for a fixed number of steps, else after a few of them."""
        if self.projection or self.replayed or (self.steps is None and not self.timed):
            return None
        steps = self.steps
        if steps is None:
            steps = step + self.steps_left(snapshots, step)
        self.projection = Projection(step, self.now(), steps)
        return self.projection

    @property
    def timed(self) -> bool:
        """Whether enough steps were timed. The first one compiles, so `fit` does not report it."""
        return len(self.durations) >= 5

    def decide(self, step: int, snapshots: Sequence[int]) -> Cooldown | None:
        """The decision before step `step` is taken, None for none. In force at once: record it."""
        if self.replayed:
            return None
        start, end = step, None
        if self.steps is not None:
            if not self.cooldowns:
                start, end = self.steps - round(self.decay * self.steps), self.steps
        elif not self.durations:
            return None
        elif not self.cooldowns:
            usable = 0.0
            if self.budget is not None:
                usable = self.budget - FINISH_SECONDS - self.snapshot_seconds
            if self.elapsed() >= (1 - self.decay) * usable:
                end = step + self.steps_left(snapshots, step)
        else:
            last = self.cooldowns[-1]
            # The closer to the end, the more often.
            due = step - last.start >= last.end - step or self.delayed
            left = self.steps_left(snapshots, step) if due and last.end > step else None
            self.delayed = False
            end = None if left is None or step + left == last.end else step + left
        if end is None:
            return None
        self.cooldowns.append(Cooldown(step, self.now(), start, end))
        return self.cooldowns[-1]

    def roll_back(self, step: int, failed: int, reason: str) -> Rollback:
        """Training goes on from `step`: later decisions are taken anew, the rate is halved."""
        if self.steps is None and not self.replayed:
            self.cooldowns[:] = [cooldown for cooldown in self.cooldowns if cooldown.start <= step]
            if self.projection and self.projection.step > step:
                self.projection = None
            self.delayed = True
        self.rollbacks.append(Rollback(step, self.now(), failed, reason))
        return self.rollbacks[-1]
