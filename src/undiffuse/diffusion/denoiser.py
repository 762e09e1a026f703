"""The denoiser: from a network F to the denoised image x_0_hat.

    x_0_hat = c_skip x_t + c_out F(c_in x_t, log-SNR)

A prediction ("x0", "eps", "v", "flow", "edm") is a choice of the three coefficients and nothing
else. The network sees neither t nor the schedule's name, so both can be exchanged at sampling.

To add a prediction: a function (alpha, sigma) -> (c_skip, c_out, c_in) with `@PREDICTIONS.add`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from undiffuse.base.errors import UserError
from undiffuse.base.lazy import lazy
from undiffuse.base.table import Table
from undiffuse.diffusion import process
from undiffuse.diffusion.conditioning import Conditioning
from undiffuse.diffusion.schedule import SCHEDULES, NoiseLevel, noise_level

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor

    Coefficients: TypeAlias = tuple[Tensor, Tensor, Tensor]
    Network: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]
else:
    torch = lazy("torch")

PREDICTIONS = Table("prediction")


@PREDICTIONS.add
def x0(alpha: Tensor, sigma: Tensor) -> Coefficients:
    """F is the image: the handout's choice."""
    zero = alpha * 0
    return zero, zero + 1, 1 / (alpha**2 + sigma**2).sqrt()


@PREDICTIONS.add
def eps(alpha: Tensor, sigma: Tensor) -> Coefficients:
    """F is the noise: Ho et al. 2020 (arXiv:2006.11239), (14). Impossible where alpha = 0."""
    return 1 / alpha, -sigma / alpha, 1 / (alpha**2 + sigma**2).sqrt()


@PREDICTIONS.add
def v(alpha: Tensor, sigma: Tensor) -> Coefficients:
    """F is v = (alpha eps - sigma x_0) / sqrt(alpha^2 + sigma^2).

    Salimans & Ho 2022 (arXiv:2202.00512), appendix D."""
    norm = (alpha**2 + sigma**2).sqrt()
    return alpha / norm**2, -sigma / norm, 1 / norm


@PREDICTIONS.add
def flow(alpha: Tensor, sigma: Tensor) -> Coefficients:
    """F is the velocity eps - x_0 of the straight line through x_t / (alpha + sigma).

    Liu et al. 2022 (arXiv:2209.03003)."""
    return 1 / (alpha + sigma), -sigma / (alpha + sigma), 1 / (alpha**2 + sigma**2).sqrt()


@PREDICTIONS.add
def edm(alpha: Tensor, sigma: Tensor, *, sigma_data: float = 0.5) -> Coefficients:
    """The preconditioning of EDM, for x_t / alpha with noise sigma / alpha.

    Karras et al. 2022 (arXiv:2206.00364), table 1."""
    norm = (sigma**2 + (sigma_data * alpha) ** 2).sqrt()
    return alpha * sigma_data**2 / norm**2, sigma * sigma_data / norm, 1 / norm


@dataclass(frozen=True)
class Denoiser:
    """A network with a schedule and a prediction: (x_t, t) -> x_0_hat.

    network: (x (B, C, H, W), log-SNR (B,), condition (B,) or None) -> (B, C, H, W).
    schedule, prediction: specs such as "cosine:s=0.01" and "v". shape: (C, H, W) of an image.
    conditioning: what the network is conditioned on. weaker: an earlier or smaller model of the
    same images, that guidance leads away from in place of the unconditional prediction.
    Raises UserError for a prediction that the schedule makes impossible."""

    network: Network
    schedule: str
    prediction: str
    shape: tuple[int, int, int]
    conditioning: Conditioning = Conditioning()
    weaker: Denoiser | None = None

    def __post_init__(self) -> None:
        refuse_zero_snr(self.schedule, self.prediction)

    def noise_level(self, t: Tensor) -> NoiseLevel:
        """The noise level at times t; any shape."""
        return noise_level(SCHEDULES[self.schedule], t)

    def coefficients(self, level: NoiseLevel) -> Coefficients:
        """(c_skip, c_out, c_in) at a noise level, float64."""
        c_skip, c_out, c_in = PREDICTIONS[self.prediction](level.alpha, level.sigma)
        return c_skip, c_out, c_in

    def __call__(self, x_t: Tensor, t: Tensor, *, condition: Tensor | None = None) -> Tensor:
        """x_0_hat for noisy images x_t (B, C, H, W) at times t (B,) in (0, 1].

        condition: the number (B,) of each image's condition, as `Conditioning.sample` gives it.
        None stands for "unconditional"."""
        if condition is None and self.conditioning.count:
            condition = torch.full((len(x_t),), self.conditioning.count)
        level = self.noise_level(t)
        c_skip, c_out, c_in = (process.expand(c, x_t) for c in self.coefficients(level))
        out = self.network(c_in * x_t, level.log_snr.to(x_t.dtype), condition)
        return c_skip * x_t + c_out * out


def refuse_zero_snr(schedule: str, prediction: str) -> None:
    """Raises UserError where the prediction divides by an alpha(1) that is zero."""
    alpha, sigma = SCHEDULES[schedule](torch.ones((), dtype=torch.float64))
    c_skip, _, _ = PREDICTIONS[prediction](alpha, sigma)
    if not c_skip.abs() < 1e6:
        raise UserError(
            f"prediction '{prediction}' with schedule '{schedule}' divides by zero at t = 1, where "
            "no signal is left; choose another prediction (x0, v, flow, edm) or another schedule "
            "(linear, log-linear)"
        )
