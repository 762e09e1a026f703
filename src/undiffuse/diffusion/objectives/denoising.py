"""The denoising objective: the handout's loss (6), for every prediction.

    loss = w(log-SNR) |x_0_hat - x_0|^2,     averaged over an image's values

x_0_hat is linear in the network's output F, so the squared error of F has the weight w c_out^2. The
weighting w is a choice of its own (weightings.py).
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
    """A batch as a regression problem for the network: weight * mean((F - target)^2); float32.

    F = network(x, log_snr, condition). x, target: (B, C, H, W). log_snr: (B,). weight: w c_out^2,
    (B,). condition: (B,), or None."""

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
    """A batch as a regression problem for the network.

    x_0, noise: (B, C, H, W). t: (B,). condition: (B,), or None. weighting: log-SNR -> weight. The
    target is (x_0 - c_skip x_t) / c_out. Its two terms nearly cancel where there is little noise,
    so it is computed from x_0 and the noise directly."""
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
    """The denoising objective: `denoising_batch`, then `denoising_loss`."""

    denoiser: Denoiser
    weighting: Callable[[Tensor], Tensor]

    def prepare(
        self, x_0: Tensor, noise: Tensor, t: Tensor, condition: Tensor | None
    ) -> DenoisingBatch:
        """See `denoising_batch`."""
        return denoising_batch(self.denoiser, self.weighting, x_0, noise, t, condition)

    def loss(self, network: Callable[..., Tensor], batch: DenoisingBatch) -> Tensor:
        """See `denoising_loss`."""
        return denoising_loss(network, batch)


@OBJECTIVES.add
def denoising(denoiser: Denoiser, weighting: Callable[[Tensor], Tensor]) -> Denoising:
    """Predict the image from its noisy version: (6). Ho et al. 2020 (arXiv:2006.11239), (14)."""
    return Denoising(denoiser, weighting)
