"""Training: `fit`, one visible loop that yields what happens as events.

Who reads the events (the console, the run folder) decides what to do with them; the loop knows neither. All of its
randomness is a function of (seed, step), so a state at step n is the same whichever sessions led there.
"""

from __future__ import annotations

import functools
import math


@functools.cache  # it is asked for at every step
def ema_exponent(width: float) -> float:
    """gamma of the power-function average whose width is `width` of the run: Karras et al. 2024 (arXiv:2312.02696), (126).

    The width is sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))), which falls with gamma: solved by bisection."""
    low, high = 0.0, 1e6
    for _ in range(100):
        gamma = (low + high) / 2
        wide = math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) > width
        low, high = (gamma, high) if wide else (low, gamma)
    return (low + high) / 2


def ema_decay(step: int, gamma: float) -> float:
    """How much of the average step `step` (from 1) keeps: Karras et al. 2024 (arXiv:2312.02696), (127). 0 at step 1."""
    return math.pow(1 - 1 / step, gamma + 1)
