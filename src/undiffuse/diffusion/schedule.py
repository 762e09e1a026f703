"""Noise schedules: how much of the image is left, and how much noise there is, at each time.

    x_t = alpha(t) x_0 + sigma(t) eps,    t in [0, 1],  t = 0 the data,  t = 1 the noise.

A schedule is a function t -> (alpha, sigma) of a float64 tensor, and nothing else. Both have the
shape of t. At t = 0, alpha = 1 and sigma = 0 exactly. Everything else is derived here: the log-SNR,
its inverse, and the handout's tables for a chain of T steps. A chain reads the schedule at
t_i = i/T, where alpha(t_i) = sqrt(alpha_bar_i) and sigma(t_i) = sqrt(1 - alpha_bar_i).

To add one: write a function with `@SCHEDULES.add`; its keyword-only parameters become
`name:parameter=value`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from undiffuse.base.errors import UserError
from undiffuse.base.lazy import lazy
from undiffuse.base.table import Table

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch")

Schedule: TypeAlias = "Callable[[Tensor], tuple[Tensor, Tensor]]"

SCHEDULES = Table("schedule")

LOG_SNR_BOUND = 15.0
"""The log-SNR is clamped to +-15 where it enters a network or a weighting, and only there."""


@SCHEDULES.add
def linear(t: Tensor, *, beta_min: float = 1e-4, beta_max: float = 0.02) -> tuple[Tensor, Tensor]:
    """beta rises linearly with the step: Ho et al. 2020 (arXiv:2006.11239), section 4.

    It is the handout's baseline. At t = i/1000, alpha_bar is exactly the cumulative product
    alpha_bar_i of the 1000-step table. Between these times log alpha_bar is interpolated. A chain
    of fewer steps reads the same curve, so it ends in the same noise."""
    log_alpha_bar = interpolate(t, linear_table(beta_min, beta_max))
    return (log_alpha_bar / 2).exp(), log_alpha_bar.expm1().abs().sqrt()


@SCHEDULES.add
def cosine(t: Tensor, *, s: float = 0.008) -> tuple[Tensor, Tensor]:
    """alpha_bar = f(t) / f(0), f(t) = cos^2((t + s) / (1 + s) pi/2).

    Nichol & Dhariwal 2021 (arXiv:2102.09672), (17)."""
    angle_0 = s / (1 + s) * math.pi / 2
    angle = (t + s) / (1 + s) * math.pi / 2
    # 1 - f(t)/f(0) as a product of sines does not cancel at small t. At t = 0 it is exactly 0.
    sigma_squared = (angle - angle_0).sin() * (angle + angle_0).sin() / math.cos(angle_0) ** 2
    return angle.cos() / math.cos(angle_0), sigma_squared.clamp(0, 1).sqrt()


@SCHEDULES.add
def sigmoid(
    t: Tensor, *, start: float = -3.0, end: float = 3.0, tau: float = 1.0
) -> tuple[Tensor, Tensor]:
    """alpha_bar falls along a sigmoid, which is scaled to go from 1 to 0.

    Jabri et al. 2022 (arXiv:2212.11972), algorithm 1. Raises UserError where start = end."""

    def logistic(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    first, last = logistic(start / tau), logistic(end / tau)
    if first == last:
        raise UserError(f"schedule sigmoid: start ({start}) and end ({end}) must differ")
    sigma_squared = (
        (((start + (end - start) * t) / tau).sigmoid() - first) / (last - first)
    ).clamp(0, 1)
    return (1 - sigma_squared).sqrt(), sigma_squared.sqrt()


@SCHEDULES.add
def flow(t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha = 1 - t, sigma = t: the straight line of rectified flow.

    Liu et al. 2022 (arXiv:2209.03003)."""
    return 1 - t, t.clone()


@SCHEDULES.add
def log_linear(
    t: Tensor, *, snr_max: float = 14.0, snr_min: float = -10.0
) -> tuple[Tensor, Tensor]:
    """The log-SNR falls linearly from `snr_max` to `snr_min`, both of which are log-SNRs.

    Kingma et al. 2021 (arXiv:2107.00630). At t = 0 there is no noise, as in every schedule. So the
    log-SNR jumps there from `snr_max` to infinity."""
    gamma = snr_max + (snr_min - snr_max) * t
    data = t <= 0
    alpha = gamma.sigmoid().sqrt()
    sigma = (-gamma).sigmoid().sqrt()
    return alpha.masked_fill(data, 1.0), sigma.masked_fill(data, 0.0)


@functools.lru_cache(maxsize=8)
def linear_table(beta_min: float, beta_max: float, steps: int = 1000) -> Tensor:
    """log alpha_bar_i of the linear schedule, float64 (steps + 1,), for i = 0..steps.

    Raises UserError unless 0 < beta_min <= beta_max < 1."""
    if not 0 < beta_min <= beta_max < 1:
        raise UserError(
            "schedule linear: 0 < beta_min <= beta_max < 1 does not hold for "
            f"{beta_min} and {beta_max}"
        )
    # On the CPU, also while a network is built on the device "meta": the cache keeps the table.
    beta = torch.linspace(beta_min, beta_max, steps, dtype=torch.float64, device="cpu")
    return torch.cat([torch.zeros(1, dtype=torch.float64, device="cpu"), (-beta).log1p().cumsum(0)])


def interpolate(t: Tensor, table: Tensor) -> Tensor:
    """The piecewise linear function of t in [0, 1] with values `table` at equal distances."""
    position = t * (len(table) - 1)
    left = position.floor().long().clamp(0, len(table) - 2)
    return table[left] + (position - left) * (table[left + 1] - table[left])


class NoiseLevel(NamedTuple):
    """How much image and how much noise x_t has; float64.

    log_snr: log(alpha^2 / sigma^2), clamped to +-LOG_SNR_BOUND."""

    alpha: Tensor
    sigma: Tensor
    log_snr: Tensor


def noise_level(schedule: Schedule, t: Tensor) -> NoiseLevel:
    """The noise level at times t; any shape."""
    alpha, sigma = schedule(t.double())
    return NoiseLevel(alpha, sigma, log_snr(alpha, sigma).clamp(-LOG_SNR_BOUND, LOG_SNR_BOUND))


def log_snr(alpha: Tensor, sigma: Tensor) -> Tensor:
    """log(alpha^2 / sigma^2), not clamped: +inf where sigma = 0, -inf where alpha = 0."""
    return 2 * (alpha.log() - sigma.log())


def time_of(schedule: Schedule, level: Tensor) -> Tensor:
    """The time t at which the log-SNR is `level`, by bisection to float64 precision; any shape.

    A level that the schedule does not reach gives the nearest end, 0 or 1."""
    level = level.double()
    low, high = torch.zeros_like(level), torch.ones_like(level)
    for _ in range(60):
        middle = (low + high) / 2
        noisier = log_snr(*schedule(middle)) < level  # the log-SNR falls with t
        low, high = torch.where(noisier, low, middle), torch.where(noisier, middle, high)
    t = (low + high) / 2
    return torch.where(high == 1, 1.0, torch.where(t < 1e-15, 0.0, t))


@dataclass(frozen=True)
class Chain:
    """The handout's tables for a chain of T steps, i = 1..T.

    All tensors are float64 (T,), and index i - 1 holds step i. t: t_i = i/T. alpha_bar:
    alpha^2 / (alpha^2 + sigma^2) at t_i. alpha: alpha_bar_i / alpha_bar_{i-1}, the signal ratio of
    one step, where alpha_bar_0 = 1. beta: 1 - alpha."""

    t: Tensor
    alpha_bar: Tensor
    alpha: Tensor
    beta: Tensor


def chain(schedule: Schedule, steps: int) -> Chain:
    """The tables of a chain of `steps` steps. Raises UserError for fewer than one."""
    if steps < 1:
        raise UserError(f"steps must be at least 1, not {steps}")
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    alpha, sigma = schedule(t)
    alpha_bar = alpha**2 / (alpha**2 + sigma**2)
    ratio = alpha_bar / torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    return Chain(t, alpha_bar, ratio, 1 - ratio)
