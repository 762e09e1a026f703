"""The average of the weights over the steps. Samples are made with the averaged weights."""

from __future__ import annotations

import functools
import math


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


def ema_decay(step: int, gamma: float) -> float:
    """The share of the average that step number `step` (from 1) keeps. It is 0 at step 1.

    Karras et al. 2024 (arXiv:2312.02696), (127)."""
    return math.pow(1 - 1 / step, gamma + 1)
