"""The average of the weights over the steps, of which images are sampled."""

from __future__ import annotations

import functools
import math


@functools.cache  # it is asked for at every step
def ema_exponent(width: float) -> float:
    """gamma of the power-function average that is `width` of the run wide.

    Karras et al. 2024 (arXiv:2312.02696), (126): the width is
    sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))), which falls with gamma. Solved by bisection."""
    low, high = 0.0, 1e6
    for _ in range(100):
        gamma = (low + high) / 2
        wide = math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) > width
        low, high = (gamma, high) if wide else (low, gamma)
    return (low + high) / 2


def ema_decay(step: int, gamma: float) -> float:
    """How much of the average step `step` (from 1) keeps; 0 at step 1.

    Karras et al. 2024 (arXiv:2312.02696), (127)."""
    return math.pow(1 - 1 / step, gamma + 1)
