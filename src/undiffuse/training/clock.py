"""Ending on time: what the clock decides, as step numbers, and the learning rate that follows from them.

Training must end on a budget of minutes on a machine of unknown speed, and yet be reproducible. So the clock only
ever makes decisions: "from step s on, the learning rate falls linearly to 0 at step e". Each is recorded before it
acts, and everything else (learning rate, averages, snapshots) is a function of the step and of these records. A
replay reads the records instead of the clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

FINISH_SECONDS = 3.0
"""What the last checkpoint, the figures and the exit take, before anything has been measured."""


@dataclass(frozen=True)
class Decision:
    """From step `step` on the learning rate falls linearly to 0 at step `end`, where training ends."""

    step: int
    end: int


@dataclass(frozen=True)
class Outlook:
    """How many steps the run was expected to have, from its first few: the snapshots are spread over these."""

    step: int
    steps: int


@dataclass(frozen=True)
class Cut:
    """From step `step` on the learning rate is half of what it was: training was set back there, as numbers had gone wrong."""

    step: int


def lr_factor(step: int, warmup: int, decisions: Sequence[Decision], cuts: Sequence[Cut] = ()) -> float:
    """The learning rate of 0-based step `step` as a share of its peak: linear warm-up times the decided decay, halved at each cut."""
    halvings = sum(cut.step <= step for cut in cuts)
    return min(1.0, (step + 1) / (warmup + 1)) * decay_factor(step, decisions) / 2**halvings


def decay_factor(step: int, decisions: Sequence[Decision]) -> float:
    """1 until the first decision; each takes over from the factor that the earlier ones have reached."""
    if not decisions or step < decisions[0].step:
        return 1.0
    *earlier, last = decisions
    if step < last.step:
        return decay_factor(step, earlier)
    return decay_factor(last.step, earlier) * max(0, last.end - step) / max(1, last.end - last.step)


def snapshot_steps(steps: int, count: int) -> list[int]:
    """`count` step numbers from 0 to `steps`, at evenly growing intervals: most is to be seen early on."""
    triangle = [k * (k + 1) // 2 for k in range(count)]
    return sorted({round(steps * k / triangle[-1]) for k in triangle})


@dataclass
class Clock:
    """The decisions of one run. budget: seconds from the run's start to its exit, None for a fixed number of steps.

    elapsed: () -> seconds spent on the run so far, over all its sessions. replayed: decisions are only read."""

    elapsed: Callable[[], float]
    decay: float
    budget: float | None = None
    steps: int | None = None
    decisions: list[Decision] = field(default_factory=list)
    outlook: Outlook | None = None
    cuts: list[Cut] = field(default_factory=list)
    replayed: bool = False
    durations: deque[float] = field(default_factory=lambda: deque(maxlen=50))
    snapshot_seconds: float = 0.0
    score_seconds: float = 0.0
    scored: Sequence[int] = ()  # the steps at which samples are scored
    delayed: bool = False  # since the last decision, by going back

    @property
    def end(self) -> int | None:
        """The step at which training ends, as far as that is decided."""
        return self.decisions[-1].end if self.decisions else None

    def seconds_per_step(self) -> float:
        return sum(self.durations) / len(self.durations)

    def steps_left(self, snapshots: Sequence[int], step: int) -> int:
        """How many more steps fit into the budget, with the snapshots and scores due until then and the finish."""
        assert self.budget is not None
        left = self.budget - self.elapsed() - FINISH_SECONDS - self.snapshot_seconds
        left -= self.score_seconds * max(bool(self.scored), sum(1 for s in self.scored if s > step))
        due = sum(1 for s in snapshots if s > step) - 1
        return max(1, int((left - max(0, due) * self.snapshot_seconds) / self.seconds_per_step()))

    def look_ahead(self, step: int, snapshots: Sequence[int]) -> Outlook | None:
        """The outlook, once: at once for a fixed number of steps, else after a few timed steps."""
        if self.outlook or self.replayed or (self.steps is None and not self.timed):
            return None
        self.outlook = Outlook(step, self.steps if self.steps is not None else step + self.steps_left(snapshots, step))
        return self.outlook

    @property
    def timed(self) -> bool:
        """Whether enough steps were timed: the first one compiles, so `fit` does not report it."""
        return len(self.durations) >= 5

    def decide(self, step: int, snapshots: Sequence[int]) -> Decision | None:
        """The clock's decision before step `step` is taken, None for none. It is in force at once: record it first."""
        if self.replayed:
            return None
        if self.steps is not None:
            decision = None if self.decisions else Decision(self.steps - round(self.decay * self.steps), self.steps)
        elif not self.durations:
            return None
        elif not self.decisions:
            usable = self.budget - FINISH_SECONDS - self.snapshot_seconds if self.budget is not None else 0.0
            due = self.elapsed() >= (1 - self.decay) * usable
            decision = Decision(step, step + self.steps_left(snapshots, step)) if due else None
        else:
            last = self.decisions[-1]
            due = step - last.step >= last.end - step or self.delayed  # the closer to the end, the more often
            end = step + self.steps_left(snapshots, step) if due and last.end > step else last.end
            self.delayed = False
            decision = Decision(step, end) if end != last.end else None
        if decision:
            self.decisions.append(decision)
        return decision

    def set_back(self, step: int) -> Cut:
        """Training goes on from step `step` once more: what was decided since is decided anew, and the learning rate is halved."""
        if self.steps is None and not self.replayed:
            self.decisions[:] = [decision for decision in self.decisions if decision.step <= step]
            self.outlook = self.outlook if self.outlook and self.outlook.step <= step else None
            self.delayed = True
        self.cuts.append(Cut(step))
        return self.cuts[-1]
