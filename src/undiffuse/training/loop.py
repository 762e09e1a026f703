"""The training loop. It yields what happens as records.

The readers of the records, such as the console and the run folder, decide what to do with them. The
loop does not know them. All random choices are functions of (seed, step), so the state at a step
does not depend on how the run was divided into sessions.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from undiffuse.base.cache import cache_folder
from undiffuse.base.compiler import prepared_compiler
from undiffuse.base.engine import Engine, in_precision
from undiffuse.base.errors import UserError
from undiffuse.base.process import own_randomness
from undiffuse.base.team import by_a_member
from undiffuse.training.clock import Clock, lr_factor, snapshot_steps
from undiffuse.training.compilation import compiled_loss
from undiffuse.training.probes import quality_plan, quick_samples, snapshot, validate
from undiffuse.training.records import (
    CompileFallback,
    Finished,
    Quality,
    Record,
    Snapshot,
    StepTaken,
    Stopped,
)
from undiffuse.training.step import Gradient, train_step

if TYPE_CHECKING:
    from torch import Tensor

    from undiffuse.diffusion.denoiser import Denoiser
    from undiffuse.training.experiment import Experiment
    from undiffuse.training.probes import Scorer

KEPT_EVERY = 50  # steps between the states that a rollback can restore
MOST_ROLLBACKS = 5


def never() -> bool:
    """False: the default of `stop`."""
    return False


def fit(
    experiment: Experiment,
    clock: Clock,
    engine: Engine,
    *,
    scorer: Scorer | None = None,
    snapshots_done: Iterable[int] = (),
    stop: Callable[[], bool] = never,
    insist: bool = False,
) -> Iterator[Record]:
    """Train from the step of the state to the clock's end, or until stop() is true.

    Yields records. The state is finite whenever a record is yielded. scorer: measures the quality
    of samples at some snapshots; None for no quality. snapshots_done: the steps of snapshots that
    earlier sessions took. insist: raise UserError where compiling fails.

    Where a loss, a gradient or a weight is not finite, training is rolled back by at most
    KEPT_EVERY steps and continues with half of the learning rate. After MOST_ROLLBACKS rollbacks it
    raises UserError. A rollback goes back to the start of this session at most, so a resumed run
    may be rolled back to another step than a run in one session."""
    loop = Loop(experiment, clock, engine, scorer, stop, set(snapshots_done), insist)
    return loop.records()


@dataclass
class Loop:
    """The loop with the values that it keeps between steps. `fit` explains the fields."""

    experiment: Experiment
    clock: Clock
    engine: Engine
    scorer: Scorer | None
    stop: Callable[[], bool]
    snapshots_done: set[int]
    insist: bool
    good: tuple[dict[str, Tensor], int] = field(init=False)  # the state that a rollback restores
    first: bool = True  # whether the next step is the session's first, whose time is not typical

    def __post_init__(self) -> None:
        self.state = self.experiment.state
        self.config = self.experiment.config
        self.good = self.state.copy()
        # `compile` may replace both.
        self.gradient, self.compiled = Gradient(self.plain_loss, self.state.network), False

    def plain_loss(self, batch: Any) -> Tensor:
        """The loss of each image of a batch, (B,), without compilation."""
        with self.engine.arithmetic():
            return self.experiment.objective.loss(self.state.network, batch)

    @property
    def averaged(self) -> Denoiser:
        """The denoiser with the averaged weights, which makes the samples."""
        network = in_precision(self.state.average, self.engine.precision)
        return replace(self.experiment.denoiser, network=network)

    # --- Snapshots ---

    @property
    def snapshots(self) -> list[int]:
        """The steps of the snapshots. Before the projection only the run's first is known."""
        projection, begin = self.clock.projection, self.clock.begin
        if projection is None:
            return [begin]
        # No snapshot before the projection's step, not even in a replay, which knows it earlier.
        planned = snapshot_steps(projection.steps - begin, projection.snapshots)
        steps = [begin + step for step in planned]
        return [step for step in steps if step == begin or step >= projection.step]

    @property
    def sampled_as(self) -> int:
        """The step whose default guidance all snapshots have: the last one, as it is expected.

        So snapshots differ by their training only. Before the projection it is the present one."""
        projection = self.clock.projection
        return self.state.step if projection is None else projection.steps

    def quality_plan(self) -> tuple[int, list[int]]:
        """(samples of a measurement of quality; the steps of the measurements)."""
        if self.scorer is None or self.clock.projection is None:
            return 0, []
        counts = tuple(self.scorer.floors)
        steps = self.clock.projection.steps - self.clock.begin
        return quality_plan(steps, self.snapshots, self.config, counts)

    def take_snapshot(self) -> Iterator[Record]:
        """Measure the held-out loss, the samples and the quality of the averaged weights.

        Yields no record where stop() becomes true meanwhile. The snapshot is the last record: it
        marks the others as complete."""
        step, begin, found = self.state.step, time.monotonic(), list[Record]()
        if len(self.experiment.held_out):
            found.append(validate(self.experiment, self.averaged, step, self.clock.now()))
        images = snapshot(self.averaged, self.config, self.sampled_as)
        self.clock.snapshot_seconds = time.monotonic() - begin
        n, steps = self.quality_plan()
        if step in steps or (steps and step == self.clock.end):
            quality = self.measure_quality(n)
            if quality is None:
                return
            found.append(quality)
        self.snapshots_done.add(step)
        yield from found
        yield Snapshot(step, self.clock.now(), self.clock.snapshot_seconds, images)

    def measure_quality(self, n: int) -> Quality | None:
        """The quality of n samples; None where stop() becomes true meanwhile."""
        assert self.scorer is not None
        step, begin = self.state.step, time.monotonic()
        batches = quick_samples(self.averaged, self.experiment, n, self.sampled_as)
        parts = list(itertools.takewhile(lambda _: not self.stop(), batches))
        if sum(map(len, parts)) < n:
            return None
        frechet = self.scorer(torch.cat(parts))
        seconds = self.clock.quality_seconds = time.monotonic() - begin
        return Quality(step, self.clock.now(), frechet, self.scorer.floors[n], n, seconds)

    # --- Steps ---

    def records(self) -> Iterator[Record]:
        """Take steps and snapshots until the end, and yield what happens."""
        clock, state = self.clock, self.state
        clock.quality_steps = self.quality_plan()[1]
        last = time.monotonic()
        while True:
            step = state.step
            if step in self.snapshots and step not in self.snapshots_done and step != clock.end:
                yield from self.take_snapshot()
                if step not in self.snapshots_done:
                    yield Stopped(step, clock.now())
                    return
                last = time.monotonic()
            if projection := clock.look_ahead(step, self.snapshots, self.config.snapshots):
                clock.quality_steps = self.quality_plan()[1]
                yield projection
            if cooldown := clock.decide(step, self.snapshots):
                yield cooldown
            if clock.end is not None and step >= clock.end:
                break
            if self.stop():
                yield Stopped(step, clock.now())
                return
            if self.first and self.engine.compiled:
                yield from self.compile()
            factor = lr_factor(step, self.config.warmup, clock.cooldowns, clock.rollbacks)
            lr = self.config.lr * clock.rate * factor
            value, wrong = self.take_step(lr) if self.compiled else by_a_member(self.take_step, lr)
            now = time.monotonic()
            seconds, last = now - last, now
            if not self.first:
                clock.durations.append(seconds)
            self.first = False
            if wrong is None:
                if state.step % KEPT_EVERY == 0:
                    self.good = state.copy()
                yield StepTaken(state.step, clock.now(), value, lr, round(seconds, 6))
            else:
                yield from self.roll_back(step, wrong)
        if state.step not in self.snapshots_done:
            yield from self.take_snapshot()
        done = state.step in self.snapshots_done
        yield (Finished if done else Stopped)(state.step, clock.now())

    def take_step(self, lr: float) -> tuple[float, str | None]:
        """See `train_step`."""
        batch = self.experiment.batch(self.state.step)
        return train_step(self.gradient, self.state, batch, lr, self.config)

    def compile(self) -> Iterator[Record]:
        """Compile the loss. Yields a record where that fails; raises UserError for `insist`.

        The compiled loss takes the whole batch and all threads: two compiled halves, side by side,
        took a third longer."""
        cache, network = cache_folder(), self.state.network
        batch = self.experiment.batch(self.state.step)
        with own_randomness(0), prepared_compiler(cache and cache / "compiler"):
            batch_loss, fault = compiled_loss(self.plain_loss, network, batch)
        if fault is None:
            self.gradient, self.compiled = Gradient(batch_loss, network, shards=1), True
            return
        if self.insist:
            raise UserError(f"torch.compile can't be used here ({fault}); train with compile=off")
        reason = fault.encode(errors="replace").decode()[:1000]
        yield CompileFallback(self.state.step, self.clock.now(), reason)

    def roll_back(self, step: int, wrong: str) -> Iterator[Record]:
        """Restore the last finite state and halve the learning rate.

        step, wrong: the step (from 0) that failed, and what was not finite. Raises UserError after
        MOST_ROLLBACKS rollbacks."""
        self.state.restore(*self.good)
        if len(self.clock.rollbacks) >= MOST_ROLLBACKS:
            lowest = self.config.lr / 2**MOST_ROLLBACKS
            raise UserError(
                f"training diverged: the {wrong} of step {step + 1} was not finite, though the "
                f"learning rate was halved {MOST_ROLLBACKS} times; begin a new run in another "
                f"folder (out=FOLDER) with lr={lowest:g} or less, or with precision=fp32"
            )
        self.snapshots_done = {s for s in self.snapshots_done if s <= self.state.step}
        yield self.clock.roll_back(self.state.step, step + 1, f"its {wrong} was not finite")
