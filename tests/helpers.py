"""Plain functions that several test files use. Fixtures are in conftest.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undiffuse.diffusion import process
from undiffuse.diffusion.denoiser import PREDICTIONS
from undiffuse.diffusion.grids import GRIDS
from undiffuse.diffusion.schedule import SCHEDULES

# Which cases are tested


def covering(
    *factors: Sequence[Any], allowed: Callable[..., bool] = lambda *row: True
) -> list[tuple[Any, ...]]:
    """Few rows that hold every allowed pair: any value of one factor beside any of another.

    A row has one value of each factor. The choice is greedy: the row with most new pairs is next.
    It has about as many rows as the two longest factors have pairs, not as many as the product."""
    pairs = {
        row: set(combinations(enumerate(row), 2)) for row in product(*factors) if allowed(*row)
    }
    missing = set().union(*pairs.values())
    chosen = []
    while missing:
        chosen.append(max(pairs, key=lambda row: len(missing & pairs[row])))
        missing -= pairs[chosen[-1]]
    return chosen


def at(schedule: str, t: float) -> tuple[float, float]:
    """alpha(t) and sigma(t)."""
    alpha, sigma = SCHEDULES[schedule](torch.tensor([t], dtype=torch.float64))
    return alpha.item(), sigma.item()


def ends_in_pure_noise(schedule: str) -> bool:
    return at(schedule, 1)[0] < 1e-6


def possible(schedule: str, prediction: str) -> bool:
    """Prediction eps divides by alpha, so it needs some signal at t = 1."""
    return prediction != "eps" or not ends_in_pure_noise(schedule)


def predictions_for(schedule: str) -> list[str]:
    return [prediction for prediction in PREDICTIONS if possible(schedule, prediction)]


PRESERVING = [s for s in SCHEDULES if abs(np.hypot(*at(s, 0.5)) - 1) < 1e-12]
"""Schedules with alpha^2 + sigma^2 = 1, for which the handout's formulas hold."""


USABLE_GRIDS = [*(grid for grid in GRIDS if grid != "fitted"), "fitted:times=1/0.6/0"]
"""Every time grid. `fitted` needs the times that were found for a model."""


# What is compared


def close(
    one: Tensor, two: Tensor, tolerance: float, case: object = "", *, absolute: float | None = None
) -> None:
    """Equal within a tolerance, which is relative and, where no other is given, absolute.

    `case` begins the message of a failure."""
    absolute = tolerance if absolute is None else absolute
    torch.testing.assert_close(
        one, two, rtol=tolerance, atol=absolute, msg=lambda said: f"{case}: {said}"
    )


# What is sampled


def toy(x: Tensor, log_snr: Tensor, condition: Tensor | None = None) -> Tensor:
    """A network that is no perfect denoiser. Its output leaves [-1, 1], so clipping changes it."""
    return 1.5 * (1.3 * x + process.expand(0.1 * log_snr, x)).tanh()
