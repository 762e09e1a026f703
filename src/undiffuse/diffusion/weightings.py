"""Weightings: how much each noise level counts in the loss.

A weighting w multiplies the squared error |x_0_hat - x_0|^2, for every prediction. x_0_hat is
linear in the network's output F, so the squared error of F has the weight w c_out^2. With `uniform`
the loss is the handout's (6) under every prediction. With `snr` it is plain eps-MSE, and with
`snr-plus-1` plain v-MSE.

To add a weighting: a function log-SNR -> weight with `@WEIGHTINGS.add`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from undiffuse.base.table import Table

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTINGS = Table("weighting")


@WEIGHTINGS.add
def uniform(log_snr: Tensor) -> Tensor:
    """w = 1: plain x_0-MSE, the handout's (6)."""
    return log_snr * 0 + 1


@WEIGHTINGS.add
def snr(log_snr: Tensor) -> Tensor:
    """w = SNR: plain eps-MSE, "L_simple" of Ho et al. 2020 (arXiv:2006.11239), (14)."""
    return log_snr.exp()


@WEIGHTINGS.add
def snr_plus_1(log_snr: Tensor) -> Tensor:
    """w = SNR + 1: plain v-MSE. Salimans & Ho 2022 (arXiv:2202.00512), section 4."""
    return log_snr.exp() + 1


@WEIGHTINGS.add
def max_snr_1(log_snr: Tensor) -> Tensor:
    """w = max(SNR, 1): the "truncated SNR" of Salimans & Ho 2022 (arXiv:2202.00512), section 4."""
    return log_snr.exp().clamp(min=1)


@WEIGHTINGS.add
def min_snr(log_snr: Tensor, *, gamma: float = 5.0) -> Tensor:
    """w = min(SNR, gamma): Hang et al. 2023 (arXiv:2303.09556), section 3.4, for prediction x0."""
    return log_snr.exp().clamp(max=gamma)


@WEIGHTINGS.add
def edm(log_snr: Tensor, *, sigma_data: float = 0.5) -> Tensor:
    """w = SNR + 1/sigma_data^2: it gives the F of prediction `edm` unit weight.

    Karras et al. 2022 (arXiv:2206.00364), table 1."""
    return log_snr.exp() + sigma_data**-2


@WEIGHTINGS.add
def sigmoid(log_snr: Tensor, *, bias: float = -1.0) -> Tensor:
    """w = SNR sigmoid(bias - log-SNR).

    Kingma & Gao 2023 (arXiv:2303.00848), Hoogeboom et al. 2024 (arXiv:2410.19324)."""
    return (log_snr - bias).sigmoid() * math.exp(bias)
