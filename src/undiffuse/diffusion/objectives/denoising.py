"""The denoising objective: the handout's loss (6), for every prediction.

    loss = w(log-SNR) |x_0_hat - x_0|^2,     averaged over an image's values

As x_0_hat is linear in the network's output F, F's own squared error carries w c_out^2. With uniform
weight that is the handout's (6) under every prediction, with `snr` it is plain eps-MSE, with
`snr-plus-1` plain v-MSE.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from undiffuse.diffusion import process
from undiffuse.diffusion.objectives._table import OBJECTIVES

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from undiffuse.diffusion.denoiser import Denoiser


class DenoisingBatch(NamedTuple):
    """A batch as the network's regression problem: weight * mean((F - target)^2); float32.

    x, target: (B, C, H, W). log_snr, weight: (B,), the weight being w c_out^2. condition: (B,) or
    None. F = network(x, log_snr, condition)."""

    x: Tensor
    log_snr: Tensor
    target: Tensor
    weight: Tensor
    condition: Tensor | None = None


def denoising_batch(
    denoiser: Denoiser,
    weighting: Callable[[Tensor], Tensor],
    x_0: Tensor,
    noise: Tensor,
    t: Tensor,
    condition: Tensor | None = None,
) -> DenoisingBatch:
    """Images and noise (B, C, H, W) at times t (B,), as the network's regression problem.

    The target (x_0 - c_skip x_t) / c_out is assembled from x_0 and noise in closed form, because
    the difference would cancel where there is little noise."""
    level = denoiser.noise_level(t)
    c_skip, c_out, c_in = denoiser.coefficients(level)
    of_x_0 = (1 - c_skip * level.alpha) / c_out
    of_noise = -c_skip * level.sigma / c_out
    return DenoisingBatch(
        x=process.expand(c_in, x_0) * process.jump(x_0, noise, level.alpha, level.sigma),
        log_snr=level.log_snr.to(x_0.dtype),
        target=process.expand(of_x_0, x_0) * x_0 + process.expand(of_noise, x_0) * noise,
        weight=(weighting(level.log_snr) * c_out**2).to(x_0.dtype),
        condition=condition,
    )


def denoising_loss(network: Callable[..., Tensor], batch: DenoisingBatch) -> Tensor:
    """(6) for each image: w |x_0_hat - x_0|^2 / (C H W), shape (B,)."""
    error = network(batch.x, batch.log_snr, batch.condition) - batch.target
    return batch.weight * error.square().mean(dim=(1, 2, 3))


@dataclass(frozen=True)
class Denoising:
    """The objective: `denoising_batch`, then `denoising_loss`."""

    denoiser: Denoiser
    weighting: Callable[[Tensor], Tensor]

    def prepare(
        self, x_0: Tensor, noise: Tensor, t: Tensor, condition: Tensor | None
    ) -> DenoisingBatch:
        return denoising_batch(self.denoiser, self.weighting, x_0, noise, t, condition)

    def loss(self, network: Callable[..., Tensor], batch: DenoisingBatch) -> Tensor:
        return denoising_loss(network, batch)


@OBJECTIVES.add
def denoising(denoiser: Denoiser, weighting: Callable[[Tensor], Tensor]) -> Denoising:
    """Predict the image from its noisy version: (6). Ho et al. 2020 (arXiv:2006.11239), (14)."""
    return Denoising(denoiser, weighting)
