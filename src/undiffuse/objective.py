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
from typing import TYPE_CHECKING, NamedTuple

from undiffuse import process
from undiffuse.registry import Table

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from torch import Tensor

    from undiffuse.denoiser import Denoiser

WEIGHTINGS = Table("weighting")
TIMES = Table("time distribution")


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


@TIMES.named("uniform")
def uniform_times(u: Tensor) -> Tensor:
    """t uniform on (0, 1]."""
    return 1 - u


@TIMES.add
def logit_normal(u: Tensor, *, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """logit(t) normal: Esser et al. 2024 (arXiv:2403.03206), section 3.1."""
    import torch

    return (mean + std * torch.special.ndtri((1 - u).clamp(1e-12, 1 - 1e-12))).sigmoid()


def draw_times(
    distribution: Callable[[Tensor], Tensor],
    count: int,
    stream: np.random.Generator,
    *,
    stratified: bool,
    steps: int | None,
) -> Tensor:
    """Times (count,) for a batch, float64, in (0, 1]; i/steps for i in {2..steps} where a chain has `steps` steps.

    stratified: one uniform number in each of `count` equal parts, so that every batch covers all noise levels
    (Kingma et al. 2021, arXiv:2107.00630, appendix I.1); else independent. Step 1 is left out, as in the handout."""
    import numpy as np
    import torch

    u = stream.random(count)
    if stratified:
        u = (stream.permutation(count) + u) / count
    t = distribution(torch.from_numpy(np.minimum(u, 1 - 2**-53)))
    return t if steps is None else ((t * (steps - 1)).ceil().clamp(min=1) + 1) / steps


class Problem(NamedTuple):
    """A batch as a regression problem for the network: weight * mean((F(x, log_snr, label) - target)^2); float32.

    x, target: (B, C, H, W).  log_snr, weight: (B,), the weight being w c_out^2."""

    x: Tensor
    log_snr: Tensor
    target: Tensor
    weight: Tensor


def regression(
    denoiser: Denoiser, weighting: Callable[[Tensor], Tensor], x_0: Tensor, noise: Tensor, t: Tensor
) -> Problem:
    """Images and noise (B, C, H, W) at times t (B,), as the network's regression problem.

    The target (x_0 - c_skip x_t) / c_out is assembled from x_0 and noise in closed form, because the difference
    would cancel where there is little noise."""
    level = denoiser.noise_level(t)
    c_skip, c_out, c_in = denoiser.coefficients(level)
    of_x_0 = (1 - c_skip * level.alpha) / c_out
    of_noise = -c_skip * level.sigma / c_out
    return Problem(
        x=process.expand(c_in, x_0) * process.jump(x_0, noise, level.alpha, level.sigma),
        log_snr=level.log_snr.to(x_0.dtype),
        target=process.expand(of_x_0, x_0) * x_0 + process.expand(of_noise, x_0) * noise,
        weight=(weighting(level.log_snr) * c_out**2).to(x_0.dtype),
    )


def loss(network: Callable[..., Tensor], problem: Problem, label: Tensor | None = None) -> Tensor:
    """(6) for each image: w |x_0_hat - x_0|^2 / (C H W), shape (B,)."""
    error = network(problem.x, problem.log_snr, label) - problem.target
    return problem.weight * error.square().mean(dim=(1, 2, 3))
