"""The average of the weights over the steps. Samples are made with the averaged weights."""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray


@functools.cache  # every step calls it
def ema_exponent(width: float) -> float:
    """The exponent gamma of a power-function average.

    width: the width of the average, as a share of the steps so far. Karras et al. 2024
    (arXiv:2312.02696), (126): the width is sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))), which
    falls with gamma. It is solved by bisection."""
    low, high = 0.0, 1e6
    for _ in range(100):
        gamma = (low + high) / 2
        wide = math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) > width
        low, high = (gamma, high) if wide else (low, gamma)
    return (low + high) / 2


WIDE_EVERY = 8
"""The wide average takes one step in so many, so that it costs training next to nothing."""


def wide_exponent(width: float) -> float:
    """The exponent of the second average, of about twice the width of the first.

    From both, averages of other widths are put together after training."""
    return ema_exponent(min(2 * width, 0.28))  # the width of gamma = 0 is 0.289


def wide_decay(step: int, since: int, width: float) -> float:
    """The share of the wide average that its step at `step` keeps, `since` steps after its last."""
    return ema_decay(step / since, wide_exponent(width)) if since else 1.0


def ema_decay(step: float, gamma: float) -> float:
    """The share of the average that step number `step` (from 1) keeps. It is 0 at step 1.

    Karras et al. 2024 (arXiv:2312.02696), (127)."""
    return math.pow(1 - 1 / step, gamma + 1)


def overlap(t_a: float, gamma_a: float, t_b: float, gamma_b: float) -> float:
    """The integral of the product of two averages' profiles.

    The profile of the power-function average at step t is (gamma + 1) s^gamma / t^(gamma + 1) for
    s up to t. Karras et al. 2024 (arXiv:2312.02696), appendix C.2."""
    both, first = gamma_a + gamma_b + 1, min(t_a, t_b)
    log = both * math.log(first) - (gamma_a + 1) * math.log(t_a) - (gamma_b + 1) * math.log(t_b)
    return (gamma_a + 1) * (gamma_b + 1) / both * math.exp(log)


def combination(
    kept: list[tuple[int, float]], step: int, gamma: float
) -> tuple[NDArray[np.float64], float]:
    """(the weights (N,) of kept averages whose sum is nearest to another; the relative error).

    kept: (step, gamma) of each. The wanted average is that of `gamma` at `step`. The error is that
    of the profile: 0 where it is met exactly, 1 where nothing of it is. Karras et al. 2024,
    algorithm 3: least squares, with weights whose sum is 1."""
    products = np.array([[overlap(*a, *b) for b in kept] for a in kept])
    wanted = np.array([overlap(*a, step, gamma) for a in kept])
    count, one = len(kept), np.ones(len(kept))
    system = np.block([[products, one[:, None]], [one[None], np.zeros((1, 1))]])
    weights = np.linalg.lstsq(system, np.append(wanted, 1.0), rcond=1e-10)[0][:count]
    size = overlap(step, gamma, step, gamma)
    square = size - 2 * weights @ wanted + weights @ products @ weights
    return weights, math.sqrt(max(square, 0.0) / size)
