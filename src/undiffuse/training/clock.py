"""The clock: ends a run on time, by decisions that are recorded as step numbers.

Training must end on a budget of minutes on a machine of unknown speed, and it must be reproducible.
Therefore the clock only makes decisions, such as: "from step s on, the learning rate falls linearly
to 0 at step e". Each decision is recorded before it takes effect. The learning rate, the average
and the snapshots are functions of the step and of these records. A replay reads the records and
makes no decisions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from undiffuse.training.records import Cooldown, Decision, Projection, Rollback

FINISH_SECONDS = 3.0
"""An estimate of the seconds that the last checkpoint, the figures and the exit take."""

SNAPSHOT_SHARE = 0.03
"""The largest share of a budget of minutes that the snapshots take, if there are not very few."""

FEWEST_SNAPSHOTS = 4
"""The snapshots of a budget that is too short for more, unless fewer are asked for."""


def lr_factor(
    step: int, warmup: int, cooldowns: Sequence[Cooldown], rollbacks: Sequence[Rollback] = ()
) -> float:
    """The learning rate of step `step` (from 0), as a share of the peak.

    It is the product of the linear warm-up, the cooldown, and 1/2 for each rollback."""
    halvings = sum(rollback.step <= step for rollback in rollbacks)
    return min(1.0, (step + 1) / (warmup + 1)) * cooldown_factor(step, cooldowns) / 2**halvings


def cooldown_factor(step: int, cooldowns: Sequence[Cooldown]) -> float:
    """The factor of the cooldowns at step `step`: 1 before the first one.

    A later cooldown starts from the factor that the earlier ones reached."""
    if not cooldowns or step < cooldowns[0].start:
        return 1.0
    *earlier, last = cooldowns
    if step < last.start:
        return cooldown_factor(step, earlier)
    share = max(0, last.end - step) / max(1, last.end - last.start)
    return cooldown_factor(last.start, earlier) * share


def snapshot_steps(steps: int, count: int) -> list[int]:
    """`count` step numbers from 0 to `steps`. The intervals grow evenly.

    Samples change most in the early steps."""
    triangle = [k * (k + 1) // 2 for k in range(count)]
    return sorted({round(steps * k / triangle[-1]) for k in triangle})


def affordable_snapshots(most: int, budget: float | None, each: float) -> int:
    """The number of snapshots: at most `most`, and few enough for the budget of seconds.

    each: the seconds of a snapshot."""
    if budget is None or not each:
        return most
    return min(most, max(FEWEST_SNAPSHOTS, int(SNAPSHOT_SHARE * budget / each)))


@dataclass
class Clock:
    """Makes the decisions of one run.

    elapsed: returns the seconds of the run so far, over all its sessions. decay: the share of the
    run in which the learning rate falls. budget: seconds from start to exit, or None. steps: a
    fixed number of steps, or None. replayed: decisions are read, not made.

    begin: the step at which the run begins, which is not 0 in a longer run. rate: the share of the
    peak learning rate there.

    cooldowns, projection, rollbacks: the decisions so far. durations: seconds of the last steps.
    snapshot_seconds, quality_seconds: of the last snapshot and the last measurement of quality.
    quality_steps: the steps at which quality is measured."""

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
    quality_steps: Sequence[int] = ()
    begin: int = 0
    rate: float = 1.0
    delayed: bool = False  # whether there was a rollback since the last decision

    def read(self, decisions: Iterable[Decision]) -> None:
        """Adopt the decisions of earlier sessions, or of the run that is replayed."""
        for decision in decisions:
            match decision:
                case Cooldown():
                    self.cooldowns.append(decision)
                case Projection():
                    self.projection = decision
                case Rollback():
                    self.rollbacks.append(decision)

    def now(self) -> float:
        """The seconds of the run so far, in milliseconds' precision, for records."""
        return round(self.elapsed(), 3)

    @property
    def end(self) -> int | None:
        """The step at which training ends; None while it is undecided."""
        return self.cooldowns[-1].end if self.cooldowns else None

    def seconds_per_step(self) -> float:
        """The mean seconds of the last steps."""
        return sum(self.durations) / len(self.durations)

    def steps_left(self, snapshots: Sequence[int], step: int) -> int:
        """The number of further steps that fit into the budget.

        The time of the remaining snapshots, measurements of quality and of the exit is subtracted
        first. snapshots: the steps of all snapshots."""
        assert self.budget is not None
        left = self.budget - self.elapsed() - FINISH_SECONDS - self.snapshot_seconds
        later = sum(1 for s in self.quality_steps if s > step)
        left -= self.quality_seconds * max(bool(self.quality_steps), later)
        due = sum(1 for s in snapshots if s > step) - 1
        return max(1, int((left - max(0, due) * self.snapshot_seconds) / self.seconds_per_step()))

    def look_ahead(self, step: int, snapshots: Sequence[int], most: int) -> Projection | None:
        """The expected numbers of steps and snapshots, as a decision that is made once; else None.

        For a fixed number of steps it is made at once. With a budget of seconds it is made after a
        few timed steps. most: the largest number of snapshots."""
        if self.projection or self.replayed or (self.steps is None and not self.timed):
            return None
        steps = self.steps
        if steps is None:
            steps = step + self.steps_left(snapshots, step)
        count = affordable_snapshots(most, self.budget, self.snapshot_seconds)
        self.projection = Projection(step, self.now(), steps, count)
        return self.projection

    @property
    def timed(self) -> bool:
        """Whether enough steps were timed. The first step compiles, so `fit` does not count it."""
        return len(self.durations) >= 5

    def decide(self, step: int, snapshots: Sequence[int]) -> Cooldown | None:
        """A new cooldown before step `step`, or None. It holds at once, so record it."""
        if self.replayed:
            return None
        start, end = step, None
        if self.steps is not None:
            if not self.cooldowns:
                falling = round(self.decay * (self.steps - self.begin))
                start, end = self.steps - falling, self.steps
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
            planned, fit = last.end - step, self.steps_left(snapshots, step)
            # The end is decided again, more often as it comes closer, and at once where the
            # machine has become so slow that only half of the steps fit.
            due = step - last.start >= planned or self.delayed or fit <= planned / 2
            self.delayed = False
            end = step + fit if due and planned > 0 and fit != planned else None
        if end is None:
            return None
        self.cooldowns.append(Cooldown(step, self.now(), start, end))
        return self.cooldowns[-1]

    def roll_back(self, step: int, failed: int, reason: str) -> Rollback:
        """Decide to continue from `step` with half of the learning rate.

        failed, reason: see `Rollback`. With a budget of seconds, decisions after `step` are made
        again."""
        if self.steps is None and not self.replayed:
            self.cooldowns[:] = [cooldown for cooldown in self.cooldowns if cooldown.start <= step]
            if self.projection and self.projection.step > step:
                self.projection = None
            self.delayed = True
        self.rollbacks.append(Rollback(step, self.now(), failed, reason))
        return self.rollbacks[-1]
