"""What the network learns: the loss (6), its weighting over noise levels, and which noise levels are drawn.

    loss = w(log-SNR) |x_0_hat - x_0|^2,     averaged over an image's values

for every prediction. As x_0_hat is linear in the network's output F, F's own squared error carries w c_out^2:
with uniform weight that is the handout's (6) under every prediction, with `snr` it is plain eps-MSE, with
`snr-plus-1` plain v-MSE.

To add a weighting: a function log-SNR -> weight with `@WEIGHTINGS.add`. To add a distribution of times: a function
from uniform numbers u in [0, 1) to times in (0, 1], its inverse distribution function of 1 - u, with `@TIMES.add`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from undiffuse.diffusion import process

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from undiffuse.diffusion.denoiser import Denoiser


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
