"""Time grids: the times that sampling visits.

A grid is a list of K + 1 times, t_0 = 1 > t_1 > ... > t_K = 0.

To add one: a function (schedule, K) -> times (K + 1,), float64, with `@GRIDS.add`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from undiffuse.base.errors import UserError
from undiffuse.base.lazy import lazy
from undiffuse.base.table import Table
from undiffuse.diffusion.schedule import SCHEDULES, Schedule, interpolate, log_snr, time_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch")

MOST_STEPS = 100_000
"""The most steps of a grid."""

BOUND = 12.0
"""Log-SNRs beyond +-12 count as 12 in `fitted_times`."""

GRIDS = Table("time grid")


@GRIDS.add
def uniform(schedule: Schedule, steps: int) -> Tensor:
    """Equal steps of t. With T steps they are the times i/T of a chain."""
    return torch.arange(steps, -1, -1, dtype=torch.float64) / steps


@GRIDS.named("log-snr")
def uniform_log_snr(
    schedule: Schedule, steps: int, *, low: float = -8.0, high: float = 8.0
) -> Tensor:
    """Equal steps of the log-SNR from t = 1 up to `high`, and then one step to t = 0.

    Lu et al. 2022 (arXiv:2206.00927), section 3.4. The first log-SNR is that of the schedule at
    t = 1, or `low` where that is higher."""
    return times_at(
        schedule, torch.linspace(first_level(schedule, low), high, steps, dtype=torch.float64)
    )


@GRIDS.add
def karras(
    schedule: Schedule,
    steps: int,
    *,
    rho: float = 7.0,
    sigma_min: float = 0.02,
    sigma_max: float = 80.0,
) -> Tensor:
    """sigma/alpha falls as a power, to `sigma_min`, and then to 0.

    Karras et al. 2022 (arXiv:2206.00364), (5). The first sigma/alpha is that of the schedule at
    t = 1, or `sigma_max` where that is lower. Raises UserError for parameters that do not fit."""
    if not 0 < sigma_min < sigma_max or rho <= 0:
        raise UserError(
            "time grid karras: 0 < sigma_min < sigma_max and 0 < rho do not hold for "
            f"{sigma_min}, {sigma_max}, {rho}"
        )
    largest = math.exp(-first_level(schedule, -2 * math.log(sigma_max)) / 2)
    ramp = torch.linspace(largest ** (1 / rho), sigma_min ** (1 / rho), steps, dtype=torch.float64)
    return times_at(schedule, -2 * rho * ramp.log())


@GRIDS.add
def fitted(schedule: Schedule, steps: int, *, times: tuple[float, ...] = (0.0,)) -> Tensor:
    """Times that were found for a model: see `fitted_times`.

    times: its quantiles, from 1 to 0; between them it is linear. `undiffuse study grids RUN` finds
    them. Raises UserError where none are given."""
    if len(times) < 2:
        raise UserError(
            "time grid fitted needs the times that were found for a model; "
            "'undiffuse study grids RUN' finds and prints them"
        )
    every = torch.tensor(times, dtype=torch.float64)
    return interpolate(torch.arange(steps + 1, dtype=torch.float64) / steps, every)


def fitted_times(schedule: Schedule, times: Tensor, change: Tensor, quantiles: int) -> list[float]:
    """The quantiles of times that spread the error of a first-order method evenly over the steps.

    A step of length h in lambda = log(alpha / sigma) has an error of about h^2 / 2 |d x_0_hat / d
    lambda|. The sum over steps is smallest where the steps are as dense as the root of that
    derivative: equidistribution, as in de Boor 1973. Sabour et al. 2024 (arXiv:2404.14507) and Xue
    et al. 2024 (arXiv:2402.17376) minimise bounds of the same error directly.

    times: (N + 1,), falling from 1 to 0, of finely sampled paths. change: (N,), the size of the
    change of x_0_hat in each step. Returns quantiles + 1 times from 1 to 0."""
    half = log_snr(*schedule(times)).clamp(-BOUND, BOUND) / 2
    density = (change.double() * half.diff().clamp(min=0)).sqrt()
    share = torch.cat([torch.zeros(1, dtype=torch.float64), density.cumsum(0)])
    share = share / share[-1]
    wanted = torch.arange(quantiles + 1, dtype=torch.float64) / quantiles
    right = torch.searchsorted(share, wanted).clamp(1, len(share) - 1)
    low, high = share[right - 1], share[right]
    part = ((wanted - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    found = times[right - 1] + part * (times[right] - times[right - 1])
    found[0], found[-1] = 1.0, 0.0
    return [round(t, 4) for t in found.tolist()]


def first_level(schedule: Schedule, low: float) -> float:
    """The log-SNR of the schedule at t = 1, or `low` where that is higher."""
    return max(low, log_snr(*schedule(torch.ones((), dtype=torch.float64))).item())


def times_at(schedule: Schedule, levels: Tensor) -> Tensor:
    """The times (K + 1,) of rising log-SNR levels (K,), and then t = 0.

    The first time is set to exactly 1."""
    times = time_of(schedule, levels)
    times[0] = 1.0
    return torch.cat([times, torch.zeros(1, dtype=torch.float64)])


def time_grid(grid: str, schedule: str, steps: int) -> Tensor:
    """The times of a grid, float64 (steps + 1,), which fall from 1 to 0.

    grid, schedule: specs such as "uniform" and "cosine". Raises UserError for unusable steps, and
    for a grid whose times do not fall strictly on this schedule."""
    if not 1 <= steps <= MOST_STEPS:
        raise UserError(f"steps must be at least 1 and at most {MOST_STEPS:,}, not {steps}")
    try:
        times: Tensor = GRIDS[grid](SCHEDULES[schedule], steps)
    except ArithmeticError as error:
        raise UserError(
            f"time grid '{grid}' can't be computed ({error}); give its parameters other values"
        ) from error
    if not (
        len(times) == steps + 1 and times[0] == 1 and times[-1] == 0 and (times.diff() < 0).all()
    ):
        raise UserError(
            f"time grid '{grid}' has no {steps} distinct steps on schedule '{schedule}'; "
            "use the grid 'uniform'"
        )
    return times
