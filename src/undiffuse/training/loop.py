"""Training: `fit`, one visible loop that yields what happens as events.

Who reads the events (the console, the run folder) decides what to do with them; the loop knows neither. All of its
randomness is a function of (seed, step), so a state at step n is the same whichever sessions led there.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from undiffuse.base import engine
from undiffuse.base.errors import UserError
from undiffuse.diffusion.denoiser import Denoiser
from undiffuse.diffusion.objective import Problem, loss
from undiffuse.diffusion.times import TIMES
from undiffuse.diffusion.weightings import WEIGHTINGS
from undiffuse.training.clock import Clock, lr_factor, snapshot_steps
from undiffuse.training.compilation import fault_of
from undiffuse.training.events import Decided, Ended, Event, Scored, SetBack, Snapshot, Stepped, Uncompiled
from undiffuse.training.precision import in_precision
from undiffuse.training.probes import quick_samples, score_plan, snapshot, validate
from undiffuse.training.state import State
from undiffuse.training.step import descend, problem_of

if TYPE_CHECKING:
    from torch import Tensor

    from undiffuse.data.dataset import Dataset
    from undiffuse.measuring.scorer import Scorer
    from undiffuse.training.config import Config

KEPT_EVERY = 50  # steps: how far training is set back at most when numbers go wrong


MOST_CUTS = 5


def fit(
    config: Config,
    denoiser: Denoiser,
    state: State,
    training: Dataset,
    held_out: Dataset,
    clock: Clock,
    *,
    precision: str,
    compiled: bool,
    scorer: Scorer | None = None,
    looked: Iterable[int] = (),
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Train `state` from where it is to the clock's end, or until stop() is true; yields events.

    denoiser: around state.network; its schedule and prediction define the loss. looked: the steps of the snapshots
    that an earlier session took. scorer: scores samples at some of the snapshots.

    Where a loss, a gradient or a weight is not finite, training is set back by up to KEPT_EVERY steps and goes on with half of the
    learning rate, MOST_CUTS times; then UserError is raised. (Not further than to where this session began: a run that was also
    resumed in between may be set back to another step than one that was not.) `state` is finite whenever an event is read."""
    weighting, distribution = WEIGHTINGS[config.weighting], TIMES[config.times]
    averaged = replace(denoiser, network=in_precision(state.average, precision))

    def batch_loss(problem: Problem, label: Tensor | None) -> Tensor:
        with engine.arithmetic(precision):
            return loss(state.network, problem, label).mean()

    def snapshots() -> list[int]:
        if clock.outlook is None:
            return [0]
        # None before the outlook: the steps were not known then, and a replay must do the same.
        planned = snapshot_steps(clock.outlook.steps, config.snapshots)
        return [s for s in planned if s == 0 or s >= clock.outlook.step]

    def scores() -> tuple[int, list[int]]:
        if scorer is None or clock.outlook is None:
            return 0, []
        return score_plan(clock.outlook.steps, snapshots(), config, tuple(scorer.floors))

    def look() -> Iterator[Event]:
        """Validation loss, samples and score of the averaged weights; nothing, where it was asked to stop meanwhile."""
        begin, found = time.monotonic(), list[Event]()
        if len(held_out):
            found.append(validate(averaged, weighting, distribution, config, held_out, state.step))
        images = snapshot(averaged, config, state.step)
        clock.snapshot_seconds = time.monotonic() - begin
        n, steps = scores()
        if scorer is not None and (state.step in steps or (steps and state.step == clock.end)):
            begin = time.monotonic()
            parts = list(
                itertools.takewhile(lambda _: not stop(), quick_samples(averaged, config, training, n, state.step))
            )
            if sum(map(len, parts)) < n:
                return
            frechet = scorer(torch.cat(parts))
            clock.score_seconds = time.monotonic() - begin
            found.append(Scored(state.step, frechet, scorer.floors[n], n, clock.score_seconds))
        seen.add(state.step)
        yield from found
        yield Snapshot(state.step, images, clock.snapshot_seconds)  # last: it marks all of this as done

    clock.scored = scores()[1]
    seen = set(looked)
    good = state.copy()
    first = True  # of this session: it compiles, so its time says nothing of the others'
    last = time.monotonic()
    while True:
        step = state.step
        if step in snapshots() and step not in seen and step != clock.end:
            yield from look()
            if step not in seen:
                yield Ended(step, finished=False)
                return
            last = time.monotonic()
        if outlook := clock.look_ahead(step, snapshots()):
            clock.scored = scores()[1]
            yield Decided(step, outlook)
        if decision := clock.decide(step, snapshots()):
            yield Decided(step, decision)
        if clock.end is not None and step >= clock.end:
            break
        if stop():
            yield Ended(step, finished=False)
            return

        problem, label = problem_of(denoiser, config, training, step)
        if first and compiled:
            quick = torch.compile(batch_loss, dynamic=False)
            fault = fault_of(quick, batch_loss, state.network, problem, label, gradients=config.dropout == 0)
            if fault is None:
                batch_loss = quick
            elif config.compile == "on":
                raise UserError(
                    f"torch.compile can't be used here ({fault}); train with --compile off, and another --out"
                )
            else:
                yield Uncompiled(step, fault)

        lr = config.lr * lr_factor(step, config.warmup, clock.decisions, clock.cuts)
        value, wrong = descend(batch_loss, state, problem, label, lr, config)
        now = time.monotonic()
        seconds, last = now - last, now
        if not first:
            clock.durations.append(seconds)
        first = False
        if wrong is None:
            if state.step % KEPT_EVERY == 0:
                good = state.copy()
            yield Stepped(state.step, value, lr, seconds, clock.end)
            continue
        if len(clock.cuts) >= MOST_CUTS:
            state.restore(*good)
            raise UserError(
                f"training diverged: the {wrong} of step {step + 1} was not finite, though the learning rate was halved {MOST_CUTS} times "
                f"before; begin again, in another --out, with a lower --lr than {config.lr / 2**MOST_CUTS:g}, or with --precision fp32"
            )
        state.restore(*good)
        seen = {s for s in seen if s <= state.step}
        yield SetBack(state.step, step + 1, clock.set_back(state.step), f"its {wrong} was not finite")

    if state.step not in seen:
        yield from look()
    yield Ended(state.step, finished=state.step in seen)
