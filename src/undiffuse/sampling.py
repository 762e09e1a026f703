"""Sampling: from noise to images, one step of time at a time.

A time grid is a list of K + 1 times, t_0 = 1 > t_1 > ... > t_K = 0. A sampler is a function from a `Step`, which
holds x_t and the times t > s, to x_s. The step asks the denoiser for x_0_hat when it is first read, counts the call,
and derives eps from it, so that a sampler is the line of mathematics that it is in the papers.

To add a sampler: a function Step -> x_s with `@SAMPLERS.add`. To add a grid: a function (schedule, K) -> times with
`@GRIDS.add`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from undiffuse import process, rng
from undiffuse.errors import UserError
from undiffuse.groups import drawn_groups
from undiffuse.registry import Table
from undiffuse.schedule import SCHEDULES, NoiseLevel, Schedule, log_snr, time_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from undiffuse.denoiser import Denoiser

MOST_STEPS = 100_000

SAMPLERS = Table("sampler")
GRIDS = Table("time grid")


# --- Time grids: (schedule, K) -> (K + 1,) float64, from exactly 1 to exactly 0 ---


@GRIDS.add
def uniform(schedule: Schedule, steps: int) -> Tensor:
    """Equal steps of t. With as many steps as the chain has, its own times i/T."""
    import torch

    return torch.arange(steps, -1, -1, dtype=torch.float64) / steps


@GRIDS.named("log-snr")
def uniform_log_snr(schedule: Schedule, steps: int, *, low: float = -8.0, high: float = 8.0) -> Tensor:
    """Equal steps of the log-SNR from the schedule's own level at t = 1, `low` at the least, up to `high`; then to 0.

    Lu et al. 2022 (arXiv:2206.00927), section 3.4."""
    import torch

    return times_at(schedule, torch.linspace(first_level(schedule, low), high, steps, dtype=torch.float64))


@GRIDS.add
def karras(
    schedule: Schedule, steps: int, *, rho: float = 7.0, sigma_min: float = 0.02, sigma_max: float = 80.0
) -> Tensor:
    """sigma/alpha falls as a power, from the schedule's own at t = 1, `sigma_max` at the most: Karras et al. 2022
    (arXiv:2206.00364), (5)."""
    import torch

    if not 0 < sigma_min < sigma_max or rho <= 0:
        raise UserError(
            f"time grid karras: 0 < sigma_min < sigma_max and 0 < rho do not hold for {sigma_min}, {sigma_max}, {rho}"
        )
    largest = math.exp(-first_level(schedule, -2 * math.log(sigma_max)) / 2)
    ramp = torch.linspace(largest ** (1 / rho), sigma_min ** (1 / rho), steps, dtype=torch.float64)
    return times_at(schedule, -2 * rho * ramp.log())


def first_level(schedule: Schedule, low: float) -> float:
    """The log-SNR at t = 1, or `low` where that is lower."""
    import torch

    return max(low, log_snr(*schedule(torch.ones((), dtype=torch.float64))).item())


def times_at(schedule: Schedule, levels: Tensor) -> Tensor:
    """The times of rising log-SNR levels (K,), the first of them taken for t = 1, and then t = 0."""
    import torch

    times = time_of(schedule, levels)
    times[0] = 1.0
    return torch.cat([times, torch.zeros(1, dtype=torch.float64)])


def time_grid(grid: str, schedule: str, steps: int) -> Tensor:
    """The grid's times (steps + 1,), checked: UserError unless they fall strictly from 1 to 0."""
    if not 1 <= steps <= MOST_STEPS:
        raise UserError(f"sampling takes at least 1 step, and at most {MOST_STEPS:,}, not {steps}")
    try:
        times: Tensor = GRIDS[grid](SCHEDULES[schedule], steps)
    except ArithmeticError as error:
        raise UserError(f"time grid '{grid}' can't be computed ({error}); give its parameters other values") from error
    if not (len(times) == steps + 1 and times[0] == 1 and times[-1] == 0 and (times.diff() < 0).all()):
        raise UserError(
            f"time grid '{grid}' has no {steps} distinct steps on schedule '{schedule}'; take --grid uniform"
        )
    return times


# --- The step ---


@dataclass
class Guide:
    """What the steps of one batch share: the denoiser with its labels and guidance, and a count of network calls.

    samples: the index of each image, which keys its noise."""

    denoiser: Denoiser
    samples: Sequence[int]
    seed: int
    label: Tensor | None = None
    guidance: float = 1.0
    clip: bool = True
    calls: int = 0

    def x_0(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The guess at the image for x_t (B, C, H, W) at time t (), guided and clipped to [-1, 1].

        Guidance g > 1 moves from the guess without label through the guess with it, by the factor g: Ho & Salimans
        2022 (arXiv:2207.12598), (6), there 1 + w. It costs two calls a step."""
        t = t.expand(len(x_t))
        x_0 = self.denoise(x_t, t, self.label)
        if self.label is not None and self.guidance != 1:
            unlabelled = self.denoise(x_t, t, None)
            x_0 = unlabelled + self.guidance * (x_0 - unlabelled)
        return x_0.clamp(-1, 1) if self.clip else x_0

    def denoise(self, x_t: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        self.calls += 1
        return self.denoiser(x_t, t, label)


@dataclass
class Step:
    """From x_t (B, C, H, W) at time t to x_s at time s < t; times are () float64, `index` counts from 0.

    at_t, at_s: the noise levels. previous: (x_0, noise level) of the step before, None at the first."""

    guide: Guide
    index: int
    x_t: Tensor
    t: Tensor
    s: Tensor
    at_t: NoiseLevel
    at_s: NoiseLevel
    previous: tuple[Tensor, NoiseLevel] | None
    _x_0: Tensor | None = field(default=None, repr=False)

    @property
    def x_0(self) -> Tensor:
        """The guess at the image; the network is called when it is first read."""
        if self._x_0 is None:
            self._x_0 = self.guide.x_0(self.x_t, self.t)
        return self._x_0

    @property
    def eps(self) -> Tensor:
        """The noise in x_t according to x_0: derived from the clipped x_0, where that is clipped."""
        return process.eps_from(self.x_t, self.x_0, self.at_t.alpha, self.at_t.sigma)

    @property
    def last(self) -> bool:
        return self.at_s.sigma.item() == 0

    def noise(self) -> Tensor:
        """Fresh standard normal noise, keyed by (seed, step, sample)."""
        shape = self.x_t.shape[1:]
        return rng.normal_each(self.guide.samples, shape, self.guide.seed, "sampling", self.index).to(self.x_t)

    def posterior(self) -> process.Posterior:
        return process.posterior(self.at_s.alpha, self.at_s.sigma, self.at_t.alpha, self.at_t.sigma)


# --- Samplers: Step -> x_s ---


@SAMPLERS.add
def mean(step: Step) -> Tensor:
    """(7): the posterior mean, again and again. The handout calls it DDIM, which it is not: without the noise of (8)
    the spread shrinks faster than the chain's, and the samples collapse onto few images."""
    return step.posterior().mean(step.x_t, step.x_0)


@SAMPLERS.add
def ddpm(step: Step) -> Tensor:
    """(8), corrected: the posterior mean plus noise of the posterior's standard deviation. Ho et al. 2020
    (arXiv:2006.11239), algorithm 2."""
    posterior = step.posterior()
    x_s = posterior.mean(step.x_t, step.x_0)
    return x_s if step.last else x_s + process.expand(posterior.variance.sqrt(), x_s) * step.noise()


@SAMPLERS.add
def ddpm_printed(step: Step) -> Tensor:
    """(8) as the handout prints it: the posterior's variance where its standard deviation belongs. Too little noise."""
    posterior = step.posterior()
    x_s = posterior.mean(step.x_t, step.x_0)
    return x_s if step.last else x_s + process.expand(posterior.variance, x_s) * step.noise()


@SAMPLERS.add
def ddim(step: Step, *, eta: float = 0.0) -> Tensor:
    """Song et al. 2021 (arXiv:2010.02502), (12): deterministic for eta = 0, DDPM for eta = 1."""
    if not 0 <= eta <= 1:
        raise UserError(f"sampler ddim: eta must be between 0 and 1, not {eta}")
    variance = eta**2 * step.posterior().variance
    remaining = (step.at_s.sigma**2 - variance).clamp(min=0).sqrt()
    x_s = process.jump(step.x_0, step.eps, step.at_s.alpha, remaining)
    return x_s if eta == 0 or step.last else x_s + process.expand(variance.sqrt(), x_s) * step.noise()


@SAMPLERS.add
def euler(step: Step) -> Tensor:
    """Euler's step of the probability-flow ODE along the straight line from x_t to x_0: Karras et al. 2022
    (arXiv:2206.00364), algorithm 1 without its correction. It is DDIM with eta = 0, seen from the ODE's side."""
    return process.jump(step.x_0, step.eps, step.at_s.alpha, step.at_s.sigma)


@SAMPLERS.add
def heun(step: Step) -> Tensor:
    """Heun's second-order step of the same ODE: two network calls, but one at the last step, 2K - 1 in all.

    The ODE is written for x / (alpha + sigma) against tau = sigma / (alpha + sigma), where its velocity is
    eps - x_0. Karras et al. 2022 (arXiv:2206.00364), algorithm 1, use x / alpha against sigma / alpha, which is
    infinite at t = 1 where a schedule ends in pure noise; this is finite everywhere, and Euler's step is the same."""
    x_s = euler(step)
    if step.last:
        return x_s
    x_0 = step.guide.x_0(x_s, step.s)
    eps = process.eps_from(x_s, x_0, step.at_s.alpha, step.at_s.sigma)
    scale_s = step.at_s.alpha + step.at_s.sigma
    tau_t = step.at_t.sigma / (step.at_t.alpha + step.at_t.sigma)
    tau_s = step.at_s.sigma / scale_s
    change_of_velocity = (eps - x_0) - (step.eps - step.x_0)
    return x_s + process.expand(scale_s * (tau_s - tau_t) / 2, x_s) * change_of_velocity


def second_order(step: Step) -> Tensor:
    """The guess x_0_hat for the middle of the step, in log-SNR, on the line through the guesses of this step and the one before:
    Lu et al. 2022 (arXiv:2211.01095), algorithm 2. The step's own guess at the first step, and at the last (log-SNR infinite)."""
    if step.previous is None or step.last:
        return step.x_0
    x_0, level = step.previous
    before, at_t, at_s = (log_snr(at.alpha, at.sigma) for at in (level, step.at_t, step.at_s))
    return step.x_0 + process.expand((at_s - at_t) / (2 * (at_t - before)), x_0) * (step.x_0 - x_0)


@SAMPLERS.named("dpmpp-2m")
def dpmpp_2m(step: Step) -> Tensor:
    """DPM-Solver++(2M), the ODE in second order: Euler's step, which is DDIM, with the guess of second order. Lu et al. 2022
    (arXiv:2211.01095), algorithm 2."""
    return euler(replace(step, _x_0=second_order(step)))


@SAMPLERS.named("dpmpp-2m-sde")
def dpmpp_2m_sde(step: Step) -> Tensor:
    """SDE-DPM-Solver++(2M): (8) with the guess of second order. Lu et al. 2022 (arXiv:2211.01095), appendix E."""
    return ddpm(replace(step, _x_0=second_order(step)))


# --- The loop ---


@dataclass(frozen=True)
class Frame:
    """One finished step of a batch: from x_t at time t, by the guess x_0, to x_s at time s; images (B, C, H, W).

    calls: network calls so far."""

    index: int
    t: float
    s: float
    x_t: Tensor
    x_0: Tensor
    x_s: Tensor
    calls: int


def trajectory(
    denoiser: Denoiser,
    samples: Sequence[int],
    *,
    sampler: str = "ddpm",
    steps: int = 25,
    grid: str = "uniform",
    seed: int = 0,
    label: Tensor | None = None,
    guidance: float = 1.0,
    clip: bool = True,
) -> Iterator[Frame]:
    """Draw the images with indices `samples` in one batch; yields each of the `steps` steps, the last ending in the images.

    label: (B,) classes, for a denoiser with classes. The groups of one with groups are drawn by their sizes. The start is pure noise of the size that x_t has at t = 1.
    An image depends on seed and index, and not on its batch. Raises UserError for unknown names and impossible values."""
    import torch

    classes = len(denoiser.classes)
    if (label is None) == bool(classes):
        raise ValueError("a denoiser with classes takes some, one without takes none")
    if label is not None and not 0 <= label.min() <= label.max() < classes:
        raise ValueError(f"the labels of {classes} classes are 0 to {classes - 1}")
    if denoiser.groups:
        label = drawn_groups(shares(denoiser, label), samples, seed)
    step_of = SAMPLERS[sampler]
    times = time_grid(grid, denoiser.schedule, steps)
    guide = Guide(denoiser, samples, seed, label, guidance, clip)
    levels = [denoiser.noise_level(t) for t in times]
    start = (levels[0].alpha ** 2 + levels[0].sigma ** 2).sqrt()
    x_t = rng.normal_each(samples, denoiser.shape, seed, "start", 0)
    x_t = process.expand(start, x_t) * x_t
    previous = None
    for index in range(steps):
        step = Step(guide, index, x_t, times[index], times[index + 1], levels[index], levels[index + 1], previous)
        with torch.no_grad():
            x_s = step_of(step)
        yield Frame(index, step.t.item(), step.s.item(), x_t, step.x_0, x_s, guide.calls)
        x_t, previous = x_s, (step.x_0, step.at_t)


def shares(denoiser: Denoiser, label: Tensor | None) -> Tensor:
    """How often each group is drawn: (K,), or, for images of classes (B,), (B, K). As often as it is large; where a class has no
    training images, all of its groups alike."""
    import torch

    sizes = torch.tensor(denoiser.groups, dtype=torch.float64)
    return sizes if label is None else (sizes + 1e-6) * (torch.tensor(denoiser.class_of) == label[:, None])


def steps_within(calls: int, denoiser: Denoiser, **options: Any) -> int:
    """The most steps, at least 1, that take at most `calls` network calls; options: `trajectory`'s.

    They are counted in two rehearsals with a network that does nothing: calls grow evenly with the steps."""

    def counted(steps: int) -> int:
        *_, last = trajectory(idle, [0], steps=steps, label=label, **options)
        return last.calls

    import torch

    idle = replace(denoiser, network=lambda x, log_snr, label: torch.zeros_like(x))
    label = torch.zeros(1, dtype=torch.long) if denoiser.classes else None
    one, two = counted(1), counted(2)
    return max(1, 1 + (calls - one) // (two - one))


def draw_many(denoiser: Denoiser, n: int, **options: Any) -> Tensor:
    """The images with indices 0 to n - 1, float (n, C, H, W) in [-1, 1]; options: `draw_batches`'."""
    import torch

    return torch.cat(list(draw_batches(denoiser, n, **options)))


def draw_batches(
    denoiser: Denoiser, n: int, *, label: Tensor | None = None, batch_size: int = 250, **options: Any
) -> Iterator[Tensor]:
    """The images with indices 0 to n - 1, in batches float (B, C, H, W) in [-1, 1]; options: `trajectory`'s."""
    import torch

    for part in torch.arange(n).split(batch_size):
        yield draw(denoiser, part.tolist(), label=None if label is None else label[part], **options)


def draw(denoiser: Denoiser, samples: Sequence[int], **options: Any) -> Tensor:
    """The images with indices `samples` as one batch, float (B, C, H, W) in [-1, 1]; options: `trajectory`'s."""
    *_, last = trajectory(denoiser, samples, **options)
    return last.x_s
