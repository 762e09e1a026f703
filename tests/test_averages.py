"""Averages of other widths, put together from those that a run kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from undiffuse import Model, api
from undiffuse.base.tensors import load_tensors, save_tensors
from undiffuse.runs.averages import averaged, kept_averages
from undiffuse.runs.folder import Run
from undiffuse.training.averages import (
    WIDE_EVERY,
    combination,
    ema_decay,
    ema_exponent,
    overlap,
    wide_exponent,
)

Command = Callable[..., str]


@pytest.mark.parametrize(("a", "b"), [((100, 5.0), (100, 5.0)), ((60, 17.0), (100, 6.9))])
def test_the_overlap_of_two_profiles(a: tuple[int, float], b: tuple[int, float]) -> None:
    s = np.linspace(0, 100, 400_001)

    def profile(t: int, gamma: float) -> np.ndarray:
        return np.where(s <= t, (gamma + 1) * s**gamma / t ** (gamma + 1.0), 0)

    expected = np.trapezoid(profile(*a) * profile(*b), s)
    assert overlap(*a, *b) == pytest.approx(expected, rel=1e-4)
    assert overlap(*b, *a) == pytest.approx(expected, rel=1e-4)


def average_of(
    values: np.ndarray, gamma: float, steps: list[int], every: int = 1
) -> dict[int, float]:
    """The power-function average of values at some steps, as training computes it."""
    mean, found = 0.0, {}
    for step, value in enumerate(values, 1):
        if step % every == 0:
            decay = ema_decay(step / every, gamma)
            mean = decay * mean + (1 - decay) * value
        if step in steps:
            decay = ema_decay(step / (step % every), gamma) if step % every else 1.0
            found[step] = decay * mean + (1 - decay) * value
    return found


@pytest.mark.parametrize("width", [0.03, 0.05, 0.07, 0.1, 0.15])
def test_another_width_is_put_together(width: float) -> None:
    """Of weights that wander: the average of that width, as if it had been kept."""
    values = np.random.default_rng(0).normal(size=3000).cumsum()
    steps = [50, 150, 300, 500, 743, 1040, 1387, 1783, 2229, 2724, 3000]
    narrow, wide, wanted = ema_exponent(0.05), wide_exponent(0.05), ema_exponent(width)
    one, two = average_of(values, narrow, steps), average_of(values, wide, steps, WIDE_EVERY)
    profiles = [(step, narrow) for step in steps]
    profiles += [(step, wide) for step in steps]
    weights, error = combination(profiles, 3000, wanted)
    found = weights @ np.array([*one.values(), *two.values()])
    exact = average_of(values, wanted, [3000])[3000]
    assert weights.sum() == pytest.approx(1)
    assert error < 0.12
    assert abs(found - exact) < 0.03 * values.std()
    alone = average_of(values, narrow, [3000])[3000]
    assert abs(found - exact) < 0.3 * abs(alone - exact) or width == 0.05


def test_a_width_that_is_out_of_reach() -> None:
    own = ema_exponent(0.05)
    _, error = combination([(900, own), (1000, own)], 1000, ema_exponent(0.2))
    assert error > 0.3


def test_the_runs_own_width_is_the_runs_model(run: Path) -> None:
    config = Run(run).about().config
    model, error = averaged(Run(run), config.ema)
    assert error < 1e-4
    own = Run(run).model().network.state_dict()
    for name, value in model.network.state_dict().items():
        torch.testing.assert_close(value, own[name], rtol=1e-4, atol=1e-4)


def test_the_command(run: Path, tmp_path: Path, command: Command) -> None:
    width, out = Run(run).about().config.ema, tmp_path / "a.safetensors"
    said = command("average", run, "--width", width, "--out", out)
    assert f"width {width:g}: held-out loss " in said
    assert Model.load(out).description == Run(run).model().description
    assert "there is a file of that name; use --overwrite" in command(
        "average", run, "--width", width, "--out", out
    )
    assert kept_averages(Run(run))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--width", "0.5"], "width must be more than 0 and at most 0.25"),
        (["--width", "0.1", "0.5"], "width must be more than 0 and at most 0.25"),
        (["--width", "0.2", "0.1", "--out", "a.safetensors"], "takes the model of one width"),
        (["--width", "0.2", "--out", "a.png"], "write FILE.safetensors"),
    ],
)
def test_what_cannot_be_is_refused(
    run: Path, tmp_path: Path, command: Command, words: list[str], sentence: str
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    assert sentence in command("average", copy, *words)


def test_a_run_of_an_earlier_version_goes_on_without_the_wide_average(
    train: Callable[..., Path], tiny: dict[str, Any], tmp_path: Path
) -> None:
    """Its checkpoint has no tensors of it. Its own average goes on to the same bits."""
    run = tmp_path / "run"
    api.train(run, **{**tiny, "checkpoint_every": 4})
    tensors, metadata = load_tensors(run / "checkpoint.safetensors")
    old = {name: value for name, value in tensors.items() if not name.startswith("wide/")}
    assert len(old) < len(tensors)
    longer = tmp_path / "longer"
    for path in (run / "checkpoint.safetensors", run / "before-decay.safetensors"):
        found, about = load_tensors(path)
        kept = {name: value for name, value in found.items() if not name.startswith("wide/")}
        save_tensors(path, kept, {"step": about["step"]})
    api.train(longer, longer=run, steps=8)
    assert kept_averages(Run(longer), "wide") == []
    assert kept_averages(Run(longer))
    assert metadata["step"]
