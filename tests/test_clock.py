"""Ending on time: the learning rate that follows from the clock's decisions.

And a simulated clock that makes them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from undiffuse.training.clock import FINISH_SECONDS, Clock, lr_factor, snapshot_steps
from undiffuse.training.records import Cooldown, Projection, Rollback


def cooldown(start: int, end: int) -> Cooldown:
    """One that was decided at its start, as with a budget of minutes."""
    return Cooldown(start, 0.0, start, end)


def rollback(step: int) -> Rollback:
    return Rollback(step, 0.0, step + 1, "its loss was not finite")


# The learning rate


def test_the_learning_rate_warms_up_holds_and_cools_down_to_zero() -> None:
    """Straight lines: from 1/11 at step 0 to 1 after the warm-up, and down to 0 at the end."""
    rates = [lr_factor(step, 10, [cooldown(60, 100)]) for step in range(105)]
    assert rates == pytest.approx(np.interp(range(105), [0, 10, 60, 100], [1 / 11, 1, 1, 0]))


def test_nothing_decided_is_held() -> None:
    assert [lr_factor(step, 0, []) for step in (0, 1, 10**9)] == [1, 1, 1]


def test_a_correction_takes_over_where_the_earlier_cooldown_has_arrived() -> None:
    """At 150, half way down, the end moves from 200 to 180; at 165, half way from there, to 190."""
    cooldowns = [cooldown(100, 200), cooldown(150, 180), cooldown(165, 190)]
    rates = [lr_factor(step, 10, cooldowns) for step in range(10, 191)]
    assert rates == pytest.approx(
        np.interp(range(10, 191), [10, 100, 150, 165, 190], [1, 1, 0.5, 0.25, 0])
    )
    for k, later in enumerate(cooldowns[1:], start=1):
        before, after = cooldowns[:k], cooldowns[: k + 1]
        assert lr_factor(later.start, 10, before) == pytest.approx(
            lr_factor(later.start, 10, after)
        )


def test_a_correction_does_not_change_what_was_before_it() -> None:
    one, both = [cooldown(100, 200)], [cooldown(100, 200), cooldown(150, 180)]
    assert [lr_factor(s, 10, one) for s in range(150)] == [
        lr_factor(s, 10, both) for s in range(150)
    ]


def test_a_cooldown_that_begins_within_the_warm_up_is_multiplied_by_it() -> None:
    rates = [lr_factor(step, 99, [cooldown(49, 69)]) for step in (48, 49, 59, 69)]
    assert rates == pytest.approx([0.49, 0.5, 0.6 * 0.5, 0])
    # With decay = 1 the cooldown is the whole run.
    assert max(lr_factor(step, 9, [cooldown(0, 100)]) for step in range(100)) > 0.9


def test_each_rollback_halves_the_rate_from_its_step_on() -> None:
    plain = [lr_factor(step, 10, [cooldown(60, 100)]) for step in range(100)]
    rollbacks = [rollback(5), rollback(70), rollback(70)]
    halved = [lr_factor(step, 10, [cooldown(60, 100)], rollbacks) for step in range(100)]
    share = [1.0] * 5 + [1 / 2] * 65 + [1 / 8] * 30
    assert halved == pytest.approx([a * b for a, b in zip(plain, share, strict=True)])


@pytest.mark.parametrize("given", [{}, {"replayed": True}, {"steps": 100}])
def test_rolling_back_undoes_what_was_decided_since(given: dict[str, Any]) -> None:
    """But not where all was decided at the beginning."""
    cooldowns, projection = [cooldown(60, 100), cooldown(80, 90)], Projection(65, 0.0, 100, 12)
    clock = Clock(lambda: 7.0, 0.4, cooldowns=list(cooldowns), projection=projection, **given)
    first = clock.roll_back(70, 75, "its loss was not finite")
    assert first == Rollback(70, 7.0, 75, "its loss was not finite")
    kept = cooldowns if given else cooldowns[:1]
    assert (clock.cooldowns, clock.projection) == (kept, projection)
    second = clock.roll_back(50, 51, "its gradient was not finite")
    kept, known = (cooldowns, projection) if given else ([], None)
    assert (clock.cooldowns, clock.projection) == (kept, known)
    assert clock.rollbacks == [first, second]


def test_a_clock_takes_over_the_decisions_of_earlier_sessions() -> None:
    """In the order in which they were made; the last projection counts."""
    made = [
        Projection(6, 1.0, 100, 12),
        rollback(50),
        Projection(56, 2.0, 90, 12),
        cooldown(60, 95),
        cooldown(80, 90),
    ]
    clock = Clock(lambda: 0.0, 0.4, budget=60)
    clock.read(made)
    assert (clock.cooldowns, clock.rollbacks) == (made[3:], made[1:2])
    assert (clock.projection, clock.end) == (made[2], 90)


# Snapshots


def test_snapshots_come_at_evenly_growing_intervals() -> None:
    steps = snapshot_steps(6600, 12)
    intervals = [b - a for a, b in pairwise(steps)]
    assert intervals == [100 * k for k in range(1, 12)]
    assert (steps[0], steps[-1]) == (0, 6600)


@pytest.mark.parametrize(("steps", "count"), [(1, 12), (12, 12), (1000, 12), (997, 5), (50, 2)])
def test_first_and_last_step_are_always_among_the_snapshots(steps: int, count: int) -> None:
    found = snapshot_steps(steps, count)
    assert (found[0], found[-1]) == (0, steps)
    assert found == sorted(set(found))
    assert len(found) <= count
    assert steps < 100 or len(found) == count


@pytest.mark.parametrize(
    ("minutes", "snapshot", "most", "count"),
    [(10, 1.0, 12, 12), (3, 1.0, 12, 5), (1, 1.0, 12, 4), (1, 0.25, 12, 7), (1, 9.0, 2, 2)],
)
def test_snapshots_take_a_small_share_of_the_budget(
    minutes: float, snapshot: float, most: int, count: int
) -> None:
    """At most 3%, unless that would be fewer than four."""
    clock = Clock(lambda: 5.0, 0.4, 60 * minutes, snapshot_seconds=snapshot)
    clock.durations.extend([0.1] * 5)
    projection = clock.look_ahead(6, [0], most)
    assert projection is not None
    assert projection.snapshots == count


# The clock, on a machine with made-up time


def simulate(
    budget: float,
    seconds: Callable[[int, float], float],
    *,
    first: float = 0.0,
    snapshot: float = 1.0,
    decay: float = 0.4,
) -> tuple[Clock, float]:
    """Train to the clock's end in made-up time: (the clock, when the process exits).

    seconds(step, now): what a step takes. first: what the first takes more. snapshot: what a
    snapshot takes."""
    now = 0.0
    clock = Clock(lambda: now, decay, budget=budget)
    known: list[Cooldown] = []
    step, due = 0, [0]
    while True:
        if step in due and step != clock.end:
            now += snapshot
            clock.snapshot_seconds = snapshot
        if projection := clock.look_ahead(step, due, 12):
            assert (projection.step, projection.time) == (step, round(now, 3))
            due = snapshot_steps(projection.steps, projection.snapshots)
        if decision := clock.decide(step, due):
            assert (decision.step, decision.time) == (step, round(now, 3))
            assert decision.start == step < decision.end  # it acts from this step on, never before
            known.append(decision)
        assert clock.cooldowns == known  # all that acts was returned, to be recorded
        if clock.end is not None and step >= clock.end:
            return clock, now + snapshot + FINISH_SECONDS
        took = seconds(step, now)
        now += took + (first if step == 0 else 0)
        if step:
            clock.durations.append(took)
        step += 1


def halving(at: float) -> Callable[[int, float], float]:
    """0.2 s a step, and twice that from `at` seconds on."""
    return lambda step, now: 0.2 if now < at else 0.4


NOISE = np.random.default_rng(0).lognormal(-1.6, 0.5, 10_000)
MACHINES = {
    "steady": (lambda step, now: 0.25, 0.0),
    "slow to compile": (lambda step, now: 0.25, 60.0),
    "a large network": (lambda step, now: 9.0, 30.0),
    "very fast": (lambda step, now: 0.02, 0.0),
    "noisy": (lambda step, now: NOISE[step], 5.0),
    "twice as fast half way": (lambda step, now: 0.4 if now < 300 else 0.2, 5.0),
    "pauses now and then": (lambda step, now: 5.0 if step % 100 == 99 else 0.2, 5.0),
    **{f"half as fast after {at} s": (halving(at), 5.0) for at in (60, 200, 300, 400, 500, 540)},
}


@pytest.mark.parametrize("machine", MACHINES)
def test_training_ends_on_the_budget(machine: str) -> None:
    """Of 3 minutes, and of 10."""
    seconds, first = MACHINES[machine]
    for minutes in (3, 10):
        clock, exit_ = simulate(
            60 * minutes, lambda step, now, m=minutes: seconds(step, now * 10 / m), first=first
        )
        assert exit_ == pytest.approx(60 * minutes, rel=0.05), minutes
        assert all(one.start < other.start for one, other in pairwise(clock.cooldowns))


@pytest.mark.parametrize("slower", [3, 10, 60])
@pytest.mark.parametrize("at", [60, 300, 350, 400, 450, 500, 540, 580])
def test_a_machine_that_becomes_very_slow_ends_about_on_the_budget(at: float, slower: int) -> None:
    """As one does where another program begins to use it. The last steps may come late."""
    _, exit_ = simulate(600, lambda step, now: 0.2 if now < at else 0.2 * slower, first=5.0)
    assert exit_ < 600 + 0.05 * 600 + 2 * 0.2 * slower


def test_the_cooldown_takes_its_share_of_the_run() -> None:
    clock, _ = simulate(600, lambda step, now: 0.25, decay=0.4)
    start, end = clock.cooldowns[0].start, clock.cooldowns[-1].end
    assert (end - start) / end == pytest.approx(0.4, abs=0.02)


def test_the_projection_is_made_once_and_is_about_right() -> None:
    clock, _ = simulate(600, lambda step, now: 0.25)
    assert clock.projection is not None
    assert clock.projection.steps == pytest.approx(clock.end, rel=0.03)
    assert clock.look_ahead(1000, [0], 12) is None


def test_a_fixed_number_of_steps_needs_no_clock() -> None:
    """Whatever it says; the records alone have the time."""
    clock = Clock(iter([2.0, 3.0]).__next__, 0.4, steps=100)
    assert clock.look_ahead(0, [0], 12) == Projection(0, 2.0, 100, 12)
    assert clock.decide(0, [0]) == Cooldown(0, 3.0, 60, 100)
    clock.durations.extend([1.0] * 50)
    assert [clock.decide(step, [0]) for step in range(1, 101)] == [None] * 100
    assert clock.end == 100


def test_a_replayed_clock_decides_nothing() -> None:
    recorded, _ = simulate(60, halving(30))
    replay = Clock(
        lambda: 1e9,
        0.4,
        budget=60,
        cooldowns=recorded.cooldowns,
        projection=recorded.projection,
        replayed=True,
    )
    replay.durations.extend([1.0] * 50)
    assert recorded.end is not None
    for step in range(recorded.end + 1):
        assert replay.look_ahead(step, [0], 12) is None
        assert replay.decide(step, [0]) is None
    assert replay.end == recorded.end


def test_an_exhausted_budget_still_ends_the_run() -> None:
    """A run that is resumed after its time is up takes one step more and stops."""
    clock = Clock(
        lambda: 700.0,
        0.4,
        budget=600,
        cooldowns=[cooldown(100, 500)],
        projection=Projection(6, 0.0, 500, 12),
    )
    clock.durations.extend([0.2] * 10)
    assert clock.decide(400, [0, 500]) == Cooldown(400, 700.0, 400, 401)
