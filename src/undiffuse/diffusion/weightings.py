"""What the network learns: the loss (6), its weighting over noise levels, and which noise levels are drawn.

    loss = w(log-SNR) |x_0_hat - x_0|^2,     averaged over an image's values

for every prediction. As x_0_hat is linear in the network's output F, F's own squared error carries w c_out^2:
with uniform weight that is the handout's (6) under every prediction, with `snr` it is plain eps-MSE, with
`snr-plus-1` plain v-MSE.

To add a weighting: a function log-SNR -> weight with `@WEIGHTINGS.add`. To add a distribution of times: a function
from uniform numbers u in [0, 1) to times in (0, 1], its inverse distribution function of 1 - u, with `@TIMES.add`.
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
    """1: plain x_0-MSE, the handout's (6)."""
    return log_snr * 0 + 1


@WEIGHTINGS.add
def snr(log_snr: Tensor) -> Tensor:
    """SNR: plain eps-MSE, "L_simple" of Ho et al. 2020 (arXiv:2006.11239), (14)."""
    return log_snr.exp()


@WEIGHTINGS.add
def snr_plus_1(log_snr: Tensor) -> Tensor:
    """SNR + 1: plain v-MSE. Salimans & Ho 2022 (arXiv:2202.00512), section 4."""
    return log_snr.exp() + 1


@WEIGHTINGS.add
def max_snr_1(log_snr: Tensor) -> Tensor:
    """max(SNR, 1): the "truncated SNR" of Salimans & Ho 2022 (arXiv:2202.00512), section 4."""
    return log_snr.exp().clamp(min=1)


@WEIGHTINGS.add
def min_snr(log_snr: Tensor, *, gamma: float = 5.0) -> Tensor:
    """min(SNR, gamma): Hang et al. 2023 (arXiv:2303.09556), section 3.4, for a prediction of x_0."""
    return log_snr.exp().clamp(max=gamma)


@WEIGHTINGS.add
def edm(log_snr: Tensor, *, sigma_data: float = 0.5) -> Tensor:
    """SNR + 1/sigma_data^2, which gives the F of prediction `edm` unit weight: Karras et al. 2022 (arXiv:2206.00364), table 1."""
    return log_snr.exp() + sigma_data**-2


@WEIGHTINGS.add
def sigmoid(log_snr: Tensor, *, bias: float = -1.0) -> Tensor:
    """SNR sigmoid(bias - log-SNR): Kingma & Gao 2023 (arXiv:2303.00848), Hoogeboom et al. 2024 (arXiv:2410.19324)."""
    return (log_snr - bias).sigmoid() * math.exp(bias)
