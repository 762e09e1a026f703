"""The forward process and its posterior: equations (1) to (5) of the handout.

For times s < t, with (alpha, sigma) from the schedule,

    q(x_t | x_s) = N(alpha_ts x_s, var_ts I),
    alpha_ts = alpha_t / alpha_s,    var_ts = sigma_t^2 - alpha_ts^2 sigma_s^2

is one step of noise. For neighbouring times of a variance-preserving chain this is (1), and the
handout's signal ratio alpha_i of one step is alpha_ts^2. For s = 0 it is the jump (3). Nothing
below assumes alpha^2 + sigma^2 = 1.

All coefficients are float64 tensors that broadcast against each other. `expand` shapes them for a
batch of images. The handout prints (1 - alpha_t) where (2) needs its square root, and the like in
(3). The docstrings say so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


def expand(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient () or (B,), shaped to multiply images `x` (B, C, H, W), in their dtype."""
    return coefficient.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def step_kernel(
    alpha_s: Tensor, sigma_s: Tensor, alpha_t: Tensor, sigma_t: Tensor
) -> tuple[Tensor, Tensor]:
    """(1): (alpha_ts, var_ts), the factor and the variance of q(x_t | x_s)."""
    alpha_ts = alpha_t / alpha_s
    return alpha_ts, (sigma_t**2 - alpha_ts**2 * sigma_s**2).clamp(min=0)


def step(
    x_s: Tensor, eps: Tensor, alpha_s: Tensor, sigma_s: Tensor, alpha_t: Tensor, sigma_t: Tensor
) -> Tensor:
    """(2), corrected: one step of noise, x_t = alpha_ts x_s + sqrt(var_ts) eps.

    The handout prints (1 - alpha_t) eps, the variance; (1) needs its square root."""
    alpha_ts, var_ts = step_kernel(alpha_s, sigma_s, alpha_t, sigma_t)
    return expand(alpha_ts, x_s) * x_s + expand(var_ts.sqrt(), x_s) * eps


def jump(x_0: Tensor, eps: Tensor, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
    """(3), corrected: the jump from the image, x_t = alpha_t x_0 + sigma_t eps.

    The handout prints x_{t-1} for x_0, and 1 - alpha_bar_t without its square root."""
    return expand(alpha_t, x_0) * x_0 + expand(sigma_t, x_0) * eps


def eps_from(x_t: Tensor, x_0: Tensor, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
    """The noise eps in x_t if its image is x_0: (x_t - alpha_t x_0) / sigma_t.

    eps is derived here and nowhere else."""
    return (x_t - expand(alpha_t, x_t) * x_0) / expand(sigma_t, x_t)


class Posterior(NamedTuple):
    """q(x_s | x_t, x_0) = N(on_x_t x_t + on_x_0 x_0, variance I). The coefficients are float64."""

    on_x_t: Tensor
    on_x_0: Tensor
    variance: Tensor

    def mean(self, x_t: Tensor, x_0: Tensor) -> Tensor:
        """The mean of (4). With x_0_hat in place of x_0 it is the model's mean, (5)."""
        return expand(self.on_x_t, x_t) * x_t + expand(self.on_x_0, x_t) * x_0


def posterior(alpha_s: Tensor, sigma_s: Tensor, alpha_t: Tensor, sigma_t: Tensor) -> Posterior:
    """(4): mean and variance of the posterior of x_s, for s < t, given x_t and x_0.

    For a chain,

        on_x_t   = sqrt(alpha_t) (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t)
        on_x_0   = sqrt(alpha_bar_{t-1}) (1 - alpha_t) / (1 - alpha_bar_t)
        variance = (1 - alpha_t) (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t)

    At s = 0 the mean is exactly x_0 and the variance is 0. The bound of likelihood.py is derived
    from this variance and does not call this function."""
    alpha_ts, var_ts = step_kernel(alpha_s, sigma_s, alpha_t, sigma_t)
    return Posterior(
        on_x_t=alpha_ts * sigma_s**2 / sigma_t**2,
        on_x_0=alpha_s * var_ts / sigma_t**2,
        variance=var_ts * sigma_s**2 / sigma_t**2,
    )
