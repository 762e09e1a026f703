"""What a budget allows on this machine. A few steps are timed, and nothing is written."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from undiffuse.base import engine
from undiffuse.data.splits import with_held_out
from undiffuse.measuring.scorer import scorer_for
from undiffuse.training.clock import FINISH_SECONDS, Clock, affordable_snapshots
from undiffuse.training.experiment import Experiment, load_configured, make_experiment
from undiffuse.training.loop import fit
from undiffuse.training.options import SessionOptions, resolve
from undiffuse.training.records import StepTaken

if TYPE_CHECKING:
    from undiffuse.base.engine import Engine
    from undiffuse.training.config import Config

TIMED_STEPS = 8  # after the first step, which compiles


def plan(config: Config, options: SessionOptions = SessionOptions()) -> str:
    """What the configuration's budget allows on this machine, as lines of text.

    A few steps are trained and timed. Nothing is written. Raises UserError where training would."""
    whole = load_configured(config)
    experiment = make_experiment(config, whole)
    own, notes = resolve(options, config, experiment.images)
    begin = time.monotonic()
    clock, first = timed(experiment, own)
    pace = sorted(clock.durations)[len(clock.durations) // 2]
    starting = begin - engine.STARTED + first
    budget = None if config.minutes is None else 60 * config.minutes
    count = affordable_snapshots(config.snapshots, budget, clock.snapshot_seconds)
    snapshots = count * clock.snapshot_seconds + FINISH_SECONDS
    share = config.quality_share if config.quality_share and scorer_for(whole) else 0.0
    each = pace / (1 - share)
    steps = experiment.steps
    if steps is None:
        assert budget is not None
        steps = max(1, int((budget - starting - snapshots) / each))
    minutes = (starting + snapshots + steps * each) / 60
    how = f"{own.precision}{', compiled' if own.compiled else ''}"
    seen, images = steps * config.batch_size, len(experiment.training)
    compiling = ", most of it compiling" if own.compiled else ""
    quality = f"; measuring quality takes {share:.0%} of the rest" if share else ""
    lines = [
        *(f"note: {note}" for note in (*whole.notes, *notes)),
        f"a step of {config.batch_size} images takes {pace:.3f} s here: "
        f"{config.batch_size / pace:,.0f} images/s ({how})",
        f"starting takes {starting:.0f} s{compiling}; {count} snapshots take "
        f"{snapshots:.0f} s{quality}",
        f"in {minutes:.1f} minutes: {steps:,} steps, {seen:,} images, {seen / images:.2f} epochs "
        f"of {images:,} images",
        largest_subset(seen, images),
    ]
    return "\n".join(lines)


def timed(experiment: Experiment, own: Engine) -> tuple[Clock, float]:
    """(a clock that has timed a few steps; the seconds of the first step, which compiles)."""
    # Two snapshots: one before the first step, and one at a step that is not reached.
    quick = replace(experiment, config=experiment.config.model_copy(update={"snapshots": 2}))
    clock = Clock(lambda: 0.0, experiment.config.decay, steps=TIMED_STEPS + 1)
    begin = time.monotonic()
    ready = first = 0.0
    for record in fit(quick, clock, own):
        now = time.monotonic()
        if not isinstance(record, StepTaken):
            ready = now - begin
        elif record.step == 1:
            first = now - begin - ready
        elif record.step > TIMED_STEPS:
            break
    return clock, first


def largest_subset(seen: int, images: int) -> str:
    """A sentence: the largest subset of which `seen` images see each training image once.

    images: the number of training images."""
    if seen >= images:
        return f"largest sensible subset: all {images:,} images, each is seen at least once"
    subset = with_held_out(seen)
    return (
        f"largest sensible subset: {subset:,} images, {seen:,} of them to train on, each seen once "
        f"(--subset {subset}); a step costs the same with more, but they would not all be seen"
    )
