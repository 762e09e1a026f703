"""What a budget allows on this machine: a few timed steps, before anything is spent."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from undiffuse.base import engine
from undiffuse.base.cache import cache_folder
from undiffuse.data.loading import load_dataset
from undiffuse.data.splits import with_held_out
from undiffuse.measuring.scorer import scorer_for
from undiffuse.training.clock import FINISH_SECONDS, Clock
from undiffuse.training.events import Stepped
from undiffuse.training.experiment import build_network, grouped, make_denoiser, prepare, refuse_too_large, total_steps
from undiffuse.training.loop import fit
from undiffuse.training.rehearsal import rehearse
from undiffuse.training.state import new_state, stepped_tensors

if TYPE_CHECKING:
    from undiffuse.training.config import Config

TIMED_STEPS = 8


def plan(config: Config) -> str:
    """A few lines on how many steps and epochs the configuration's budget gives, after timing some; writes nothing.

    Raises UserError where training would."""
    rehearse(config)
    whole = load_dataset(config.data, config.size)
    training, held_out, facts = prepare(config, whole)
    training, held_out, facts = grouped(config, training, held_out, facts)
    steps = total_steps(config, len(training))
    precision, compiled, notes = engine.resolve(config, steps and steps * config.batch_size, cache_folder())
    network = build_network(config, facts)
    refuse_too_large(stepped_tensors(config, network))
    clock = Clock(lambda: 0.0, config.decay, steps=TIMED_STEPS + 1)
    begin = time.monotonic()
    ready = first = 0.0
    timed = config.model_copy(update={"snapshots": 2})  # at the first step, and at one that is not reached
    events = fit(
        timed, make_denoiser(network, config, facts), new_state(config, network), training, held_out, clock,
        precision=precision, compiled=compiled,
    )  # fmt: skip
    for event in events:
        now = time.monotonic()
        if not isinstance(event, Stepped):
            ready = now - begin
        elif event.step == 1:
            first = now - begin - ready
        elif event.step > TIMED_STEPS:
            break
    pace = sorted(clock.durations)[len(clock.durations) // 2]
    starting = begin - engine.STARTED + first
    snapshots = config.snapshots * clock.snapshot_seconds + FINISH_SECONDS
    scoring = config.score_share if config.score_share and scorer_for(whole) else 0.0
    each = pace / (1 - scoring)
    if steps is None:
        assert config.minutes is not None
        steps = max(1, int((60 * config.minutes - starting - snapshots) / each))
    minutes = (starting + snapshots + steps * each) / 60
    seen = steps * config.batch_size
    lines = [
        *(f"note: {note}" for note in notes),
        f"a step of {config.batch_size} images takes {pace:.3f} s here: {config.batch_size / pace:,.0f} images/s ({precision}{', compiled' if compiled else ''})",
        f"starting takes {starting:.0f} s{', most of it compiling' if compiled else ''}; {config.snapshots} snapshots take {snapshots:.0f} s"
        + (f"; scores take {scoring:.0%} of the rest" if scoring else ""),
        f"in {minutes:.1f} minutes: {steps:,} steps, {seen:,} images, {seen / len(training):.2f} epochs of {len(training):,} images",
    ]
    if seen >= len(training):
        lines.append(f"largest sensible subset: all {len(training):,} images, each is seen at least once")
    else:
        subset = with_held_out(seen)
        lines.append(
            f"largest sensible subset: {subset:,} images, {seen:,} of them to train on, each seen once (--subset {subset}); "
            "a step costs the same with more, but they would not all be seen"
        )
    return "\n".join(lines)
