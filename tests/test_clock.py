"""Ending on time: the learning rate that follows from the clock's decisions, and a simulated clock that makes them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from undiffuse.training.clock import (
    FINISH_SECONDS,
    Clock,
    Cut,
    Decision,
    Outlook,
    lr_factor,
    snapshot_steps,
)

# The learning rate


def test_the_learning_rate_warms_up_holds_and_decays_to_zero() -> None:
    """Straight lines: from 1/11 at step 0 to 1 after the warm-up, 1 until the decision, and down to 0 at the end."""
    rates = [lr_factor(step, 10, [Decision(60, 100)]) for step in range(105)]
    assert rates == pytest.approx(np.interp(range(105), [0, 10, 60, 100], [1 / 11, 1, 1, 0]))


def test_nothing_decided_is_held() -> None:
    assert [lr_factor(step, 0, []) for step in (0, 1, 10**9)] == [1, 1, 1]


def test_a_correction_takes_over_where_the_earlier_decay_has_arrived() -> None:
    """At 150, half way down, the end moves from 200 to 180; at 165, half way from there, to 190."""
    decisions = [Decision(100, 200), Decision(150, 180), Decision(165, 190)]
    rates = [lr_factor(step, 10, decisions) for step in range(10, 191)]
    assert rates == pytest.approx(
        np.interp(range(10, 191), [10, 100, 150, 165, 190], [1, 1, 0.5, 0.25, 0])
    )
    assert all(lr_factor(d.step, 10, decisions[:k]) == pytest.approx(lr_factor(d.step, 10, decisions[: k + 1]))
               for k, d in enumerate(decisions) if k)  # fmt: skip


def test_a_correction_does_not_change_what_was_before_it() -> None:
    one, both = [Decision(100, 200)], [Decision(100, 200), Decision(150, 180)]
    assert [lr_factor(s, 10, one) for s in range(150)] == [
        lr_factor(s, 10, both) for s in range(150)
    ]


def test_a_decay_that_begins_within_the_warm_up_is_multiplied_by_it() -> None:
    rates = [lr_factor(step, 99, [Decision(49, 69)]) for step in (48, 49, 59, 69)]
    assert rates == pytest.approx([0.49, 0.5, 0.6 * 0.5, 0])
    assert (
        max(lr_factor(step, 9, [Decision(0, 100)]) for step in range(100)) > 0.9
    )  # decay = 1, the whole run


def test_each_cut_halves_the_rate_from_its_step_on() -> None:
    plain = [lr_factor(step, 10, [Decision(60, 100)]) for step in range(100)]
    halved = [
        lr_factor(step, 10, [Decision(60, 100)], [Cut(5), Cut(70), Cut(70)]) for step in range(100)
    ]
    share = [1.0] * 5 + [1 / 2] * 65 + [1 / 8] * 30
    assert halved == pytest.approx([a * b for a, b in zip(plain, share, strict=True)])


@pytest.mark.parametrize("given", [{}, {"replayed": True}, {"steps": 100}])
def test_setting_back_undoes_what_was_decided_since(given: dict[str, Any]) -> None:
    """But not where all was decided at the beginning."""
    decisions, outlook = [Decision(60, 100), Decision(80, 90)], Outlook(65, 100)
    clock = Clock(lambda: 0.0, 0.4, decisions=list(decisions), outlook=outlook, **given)
    assert clock.set_back(70) == Cut(70)
    assert (clock.decisions, clock.outlook) == (decisions if given else decisions[:1], outlook)
    clock.set_back(50)
    assert (clock.decisions, clock.outlook) == ((decisions, outlook) if given else ([], None))
    assert clock.cuts == [Cut(70), Cut(50)]


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


# The clock, on a machine whose time is made up


def simulate(
    budget: float,
    seconds: Callable[[int, float], float],
    *,
    first: float = 0.0,
    look: float = 1.0,
    decay: float = 0.4,
) -> tuple[Clock, float]:
    """Train to the clock's end in made-up time: (the clock, when the process exits).

    seconds(step, now): what a step takes; first: what the first takes more; look: what a snapshot takes."""
    now = 0.0
    clock = Clock(lambda: now, decay, budget=budget)
    known: list[Decision] = []
    step, due = 0, [0]
    while True:
        if step in due and step != clock.end:
            now += look
            clock.snapshot_seconds = look
        if outlook := clock.look_ahead(step, due):
            assert outlook.step == step
            due = snapshot_steps(outlook.steps, 12)
        if decision := clock.decide(step, due):
            assert decision.step == step < decision.end  # it acts from this step on, never before
            known.append(decision)
        assert clock.decisions == known  # all that acts was returned, to be recorded
        if clock.end is not None and step >= clock.end:
            return clock, now + look + FINISH_SECONDS
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
@pytest.mark.parametrize("minutes", [3, 10])
def test_training_ends_on_the_budget(machine: str, minutes: int) -> None:
    seconds, first = MACHINES[machine]
    clock, exit_ = simulate(
        60 * minutes, lambda step, now: seconds(step, now * 10 / minutes), first=first
    )
    assert exit_ == pytest.approx(60 * minutes, rel=0.05)
    assert all(one.step < other.step for one, other in pairwise(clock.decisions))


def test_the_decay_takes_its_share_of_the_run() -> None:
    clock, _ = simulate(600, lambda step, now: 0.25, decay=0.4)
    start, end = clock.decisions[0].step, clock.decisions[-1].end
    assert (end - start) / end == pytest.approx(0.4, abs=0.02)


def test_the_outlook_is_made_once_and_is_about_right() -> None:
    clock, _ = simulate(600, lambda step, now: 0.25)
    assert clock.outlook is not None
    assert clock.outlook.steps == pytest.approx(clock.end, rel=0.03)
    assert clock.look_ahead(1000, [0]) is None


def test_a_fixed_number_of_steps_needs_no_clock() -> None:
    def elapsed() -> float:
        raise AssertionError("the clock was read")

    clock = Clock(elapsed, 0.4, steps=100)
    assert clock.look_ahead(0, [0]) == Outlook(0, 100)
    assert clock.decide(0, [0]) == Decision(60, 100)
    clock.durations.extend([1.0] * 50)
    assert [clock.decide(step, [0]) for step in range(1, 101)] == [None] * 100
    assert clock.end == 100


def test_a_replayed_clock_decides_nothing() -> None:
    recorded, _ = simulate(60, halving(30))
    replay = Clock(
        lambda: 1e9,
        0.4,
        budget=60,
        decisions=recorded.decisions,
        outlook=recorded.outlook,
        replayed=True,
    )
    replay.durations.extend([1.0] * 50)
    assert recorded.end is not None
    for step in range(recorded.end + 1):
        assert replay.look_ahead(step, [0]) is None
        assert replay.decide(step, [0]) is None
    assert replay.end == recorded.end


def test_an_exhausted_budget_still_ends_the_run() -> None:
    """Resumed after its time is up (the machine was off, say), a run takes one step more and stops."""
    clock = Clock(
        lambda: 700.0, 0.4, budget=600, decisions=[Decision(100, 500)], outlook=Outlook(6, 500)
    )
    clock.durations.extend([0.2] * 10)
    assert clock.decide(400, [0, 500]) == Decision(400, 401)
