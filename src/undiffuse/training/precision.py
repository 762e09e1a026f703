"""Training: `fit`, one visible loop that yields what happens as events.

Who reads the events (the console, the run folder) decides what to do with them; the loop knows neither. All of its
randomness is a function of (seed, step), so a state at step n is the same whichever sessions led there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from undiffuse.base import engine

if TYPE_CHECKING:
    from torch import Tensor

    from undiffuse.diffusion.denoiser import Network


def in_precision(network: Network, precision: str) -> Network:
    """The network, computing in `precision` ("bf16" or "fp32"); its input and output are float32 either way."""

    def call(x: Tensor, log_snr: Tensor, label: Tensor | None) -> Tensor:
        with engine.arithmetic(precision):
            out = network(x, log_snr, label)
        return out.float()

    return call
