"""Inverse problems: images that fit a measurement, y = A x_0 + noise.

By Bayes' rule the denoised image, given y too, is

    E[x_0 | x_t, y] = E[x_0 | x_t] + (sigma_t^2 / alpha_t) grad log p(y | x_t).

If x_0 given x_t is normal with mean x_0_hat and covariance V, the gradient is

    J^T A^T (noise^2 + A V A^T)^-1 (y - A x_0_hat),            J = d x_0_hat / d x_t.

The methods differ in V. Tweedie's formula gives the exact one, V = (sigma_t^2 / alpha_t) J.

A method is a function (problem, sampler) -> sampler in the table METHODS. Those that change the
denoised image only take any sampler. To add one: such a function with `@METHODS.add`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from undiffuse.base.errors import UserError
from undiffuse.base.lazy import lazy
from undiffuse.base.table import Table
from undiffuse.diffusion import process
from undiffuse.diffusion.operators import Mask, Operator, conjugate_gradient, dot
from undiffuse.diffusion.process import expand
from undiffuse.diffusion.samplers import heun
from undiffuse.diffusion.schedule import noise_level, time_of
from undiffuse.diffusion.step import NoiseSource, Step
from undiffuse.diffusion.tasks import Task, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from torch import Tensor

    from undiffuse.diffusion.guidance import Denoise
    from undiffuse.diffusion.schedule import NoiseLevel, Schedule
    from undiffuse.diffusion.walk import Frame
else:
    torch = lazy("torch")

METHODS = Table("method")

Sampler: TypeAlias = "Callable[[Step], Tensor]"

LOWEST = -10.0
"""The log-SNR below which the measurement is not used.

There x_t says so little of the image that a network's Jacobian is mostly its own error."""

LEAST_NOISE = 0.01
"""The least standard deviation that a measurement is given, of values from -1 to 1.

It is about one 8-bit value. Without noise the equations have no stable solution."""

TURN = 1000
"""The first number of the noises that a repeated step uses is a multiple of this."""


@dataclass(frozen=True)
class Problem:
    """A measurement of each image: y (B, ...) = A x_0 + noise of standard deviation `std`.

    clip: whether the denoised image is clipped to [-1, 1]."""

    operator: Operator
    y: Tensor
    std: float
    clip: bool = True

    def clipped(self, x_0: Tensor) -> Tensor:
        """The denoised image, clipped if that is wanted."""
        return x_0.clamp(-1, 1) if self.clip else x_0


@dataclass(frozen=True)
class Fit(Task):
    """Images that fit a measurement.

    y: (1, ...) for all samples, or one for each. std: the noise's standard deviation, of values
    from -1 to 1; where it is 0 and some pixels are measured, they are kept exactly. method: a spec
    such as "mmps:iterations=3". Raises UserError for a method that does not suit the operator."""

    operator: Operator
    y: Tensor
    std: float = 0.0
    method: str = "mmps"

    def __post_init__(self) -> None:
        METHODS.check(self.method)
        if not 0 <= self.std < math.inf:
            raise UserError(f"noise must be at least 0, not {self.std / 2:g}")
        name = self.method.partition(":")[0]
        if name == "repaint" and not (isinstance(self.operator, Mask) and self.std == 0):
            raise UserError(
                "the method repaint needs a mask and a measurement without noise; use mmps for "
                "other operators, or noise=0"
            )
        for option, value in self.options.items():
            if value < 1:
                raise UserError(f"method {name}: {option} must be at least 1, not {value:g}")

    @property
    def options(self) -> dict[str, Any]:
        """The options of the method, with their values."""
        defaults = METHODS.defaults(self.method.partition(":")[0])
        return defaults | METHODS.options(self.method)

    @property
    def particles(self) -> int:
        return int(self.options.get("particles", 1))

    @property
    def clips(self) -> bool:
        return True

    def steps(self, step_of: Sampler, samples: Sequence[int], *, clip: bool) -> Sampler:
        own = [sample // self.particles for sample in samples]
        problem = Problem(self.operator, rows_of(self.y, own), max(self.std, LEAST_NOISE), clip)
        method: Callable[..., Sampler] = METHODS[self.method]
        return method(problem, step_of)

    def result(self, frames: Iterator[Frame], samples: Sequence[int]) -> Tensor:
        x = super().result(frames, samples)
        if self.std > 0 or not isinstance(self.operator, Mask):
            return x
        own = [sample // self.particles for sample in samples]
        return torch.where(self.operator.kept, rows_of(self.y, own).to(x), x)


def with_denoiser(step_of: Sampler, change: Callable[[Step], Denoise]) -> Sampler:
    """The sampler with another denoise function in each step."""

    def changed(step: Step) -> Tensor:
        step.denoise = change(step)
        return step_of(step)

    return changed


@METHODS.add
def mmps(problem: Problem, step_of: Sampler, *, iterations: int = 3) -> Sampler:
    """Moment matching posterior sampling: V by Tweedie's formula.

    Rozet et al. 2024 (arXiv:2405.13712), section 4. iterations: of conjugate gradients, each with a
    gradient of the network. It is exact for normal data. Any operator, any sampler."""
    return with_denoiser(
        step_of, lambda step: fitted(problem, step.denoise, step.schedule, iterations)
    )


@METHODS.add
def pigdm(problem: Problem, step_of: Sampler, *, iterations: int = 20) -> Sampler:
    """Pseudo-inverse guidance: V = sigma^2 / (alpha^2 + sigma^2), as of data with variance 1.

    Song et al. 2023 (openreview.net/forum?id=9_gsMA8MRKQ), section 3. It takes one gradient of the
    network. iterations: of conjugate gradients, without the network."""
    return with_denoiser(
        step_of,
        lambda step: fitted(problem, step.denoise, step.schedule, iterations, unit_variance=True),
    )


def fitted(
    problem: Problem,
    denoise: Denoise,
    schedule: Schedule,
    iterations: int,
    *,
    unit_variance: bool = False,
) -> Denoise:
    """E[x_0 | x_t, y] in place of E[x_0 | x_t]: the equation at the head of this file.

    unit_variance: V as for data with variance 1, not by Tweedie's formula."""
    operator = problem.operator

    def given_y(x_t: Tensor, t: Tensor) -> Tensor:
        level = noise_level(schedule, t)
        if level.log_snr.item() < LOWEST:
            return problem.clipped(denoise(x_t, t))
        with torch.enable_grad():
            x_t = x_t.detach().requires_grad_()
            x_0 = denoise(x_t, t)
        ratio = expand(level.sigma**2 / level.alpha, x_t)
        prior = expand(level.sigma**2 / (level.alpha**2 + level.sigma**2), x_t)

        def tweedie(v: Tensor) -> Tensor:
            return ratio * torch.autograd.grad(x_0, x_t, v, retain_graph=True)[0]

        def covariance_of_y(u: Tensor) -> Tensor:
            v = operator.transpose(u)
            return problem.std**2 * u + operator.apply(prior * v if unit_variance else tweedie(v))

        error = problem.y.to(x_t) - operator.apply(x_0.detach())
        solved = conjugate_gradient(covariance_of_y, error, iterations)
        return problem.clipped(x_0.detach() + tweedie(operator.transpose(solved)))

    return given_y


@METHODS.add
def repaint(problem: Problem, step_of: Sampler, *, times: int = 10) -> Sampler:
    """Replacement with resampling: known pixels are put in with noise, and each step is repeated.

    Lugmayr et al. 2022 (arXiv:2201.09865), algorithm 1. times: how often a step is taken. Between
    two of them the noise of the forward process is added, so that the new pixels come to fit the
    known ones. A sampler's memory of earlier steps is not used. For masks only, and for
    measurements without noise."""
    assert isinstance(problem.operator, Mask)
    kept = problem.operator.kept

    def replaced(step: Step) -> Tensor:
        noise, denoise, step.history = step.noise, step.denoise, ()
        step.denoise = lambda x_t, t: problem.clipped(denoise(x_t, t))
        t, at_t = step.t, step.at_t  # a sampler may raise the noise of its step
        to_s, to_t = step.at_s[:2], at_t[:2]
        for turn in range(times):
            step.noise = numbered(noise, turn * TURN)
            x_s = step_of(step)
            known = process.jump(problem.y.to(x_s), step.noise(TURN // 2), *to_s)
            x_s = torch.where(kept, known, x_s)
            if step.last or turn + 1 == times:
                break
            step.x_t = process.step(x_s, step.noise(TURN // 2 + 1), *to_s, *to_t)
            step.t, step.at_t, step._x_0 = t, at_t, None
        return x_s

    return replaced


def numbered(noise: NoiseSource, first: int) -> NoiseSource:
    """A source of noise whose numbers begin at `first`."""

    def from_first(number: int = 0) -> Tensor:
        return noise(first + number)

    return from_first


@METHODS.add
def smc(problem: Problem, step_of: Sampler, *, particles: int = 16, iterations: int = 1) -> Sampler:
    """Twisted sequential Monte Carlo: candidates are weighted and resampled as they are denoised.

    Wu et al. 2023 (arXiv:2306.17775), algorithm 1. It is exact for many particles and steps.
    particles: the candidates for an image. iterations: as for `mmps`, which proposes where they
    go. It takes its own steps in place of the sampler's: see `Twisted`."""
    return Twisted(problem, particles, iterations)


class Twisted:
    """The steps of twisted sequential Monte Carlo, on particles (B K, C, H, W): K for each image.

    A step of the model goes by Heun's method past time s, to s', and then back to s by fresh noise
    of the forward process. So it is a normal distribution K(x_s | x_t), of second order in the
    length of the step. The proposal q is that distribution, moved towards the measurement. The
    twist psi_t = N(y; A x_0_hat, noise^2 + V) stands for p(y | x_t). The weights are

        psi_s(x_s) K(x_s | x_t) / (psi_t(x_t) q(x_s | x_t)),

    and at the end p(y | x_0) takes the place of psi. Particles are resampled when their effective
    number is less than half of K."""

    def __init__(self, problem: Problem, particles: int, iterations: int) -> None:
        self.problem, self.particles, self.iterations = problem, particles, iterations
        self.log_weights = torch.zeros(len(problem.y) // particles, particles, dtype=torch.float64)

    def __call__(self, step: Step) -> Tensor:
        raw, denoise = step.denoise, self.clipped(step.denoise)
        step.denoise = denoise
        self.weigh(step, self.log_twist(step.x_0, step.at_t))
        self.resample(step)
        back = self.log_twist(step.x_0, step.at_t)
        if step.last:
            x_s = step.x_0
            self.weigh(step, self.log_likelihood(x_s, self.problem.std**2) - back)
            return self.resampled_at_end(step, x_s)
        mean, variance = model_step(step)
        moved = fitted(self.problem, raw, step.schedule, self.iterations)(step.x_t, step.t)
        shift = expand(step.posterior().on_x_0, mean) * (moved - step.x_0)
        fresh = expand(variance.sqrt(), mean) * step.noise()
        # log K - log q, of x_s = mean + shift + fresh
        change = (dot(fresh, fresh) - dot(fresh + shift, fresh + shift)).double().flatten()
        self.weigh(step, change / (2 * variance) - back)
        return mean + shift + fresh

    def clipped(self, denoise: Denoise) -> Denoise:
        return lambda x_t, t: self.problem.clipped(denoise(x_t, t))

    def weigh(self, step: Step, log_factor: Tensor) -> None:
        """Multiply the weights by factors (B K,), given as logarithms."""
        self.log_weights = self.log_weights + log_factor.reshape(self.log_weights.shape)

    def log_likelihood(self, x_0: Tensor, variance: Tensor | float) -> Tensor:
        """log N(y; A x_0, variance), float64 (B K,), up to a constant of the measurement alone."""
        error = (self.problem.y.to(x_0) - self.problem.operator.apply(x_0)).double()
        count = self.measured(error)
        square = (error**2).flatten(1).sum(1)
        log_variance = torch.as_tensor(variance, dtype=torch.float64).log()
        return -square / (2 * variance) - count * log_variance / 2

    def measured(self, error: Tensor) -> int:
        """How many numbers are measured. A mask's other entries are always 0."""
        if isinstance(self.problem.operator, Mask):
            return int(self.problem.operator.kept.expand(error.shape[1:]).sum())
        return error[0].numel()

    def log_twist(self, x_0: Tensor, level: NoiseLevel) -> Tensor:
        """log psi_t, with V as for data with variance 1."""
        prior = level.sigma**2 / (level.alpha**2 + level.sigma**2)
        return self.log_likelihood(x_0, self.problem.std**2 + prior)

    def ancestors(self, u: Tensor) -> Tensor:
        """Systematic resampling: the particle (B, K) that replaces each. u: (B,) in [0, 1)."""
        weights = self.log_weights.softmax(1)
        at = (torch.arange(self.particles) + u[:, None]) / self.particles
        found = torch.searchsorted(weights.cumsum(1), at.contiguous())
        return found.clamp(max=self.particles - 1)

    def uniform(self, step: Step, number: int) -> Tensor:
        """A uniform number (B,) for each image, from the noise of its first particle."""
        normal = step.noise(number).flatten(1)[:: self.particles, 0]
        return torch.special.ndtr(normal.double()).clamp(max=1 - 1e-12)

    def resample(self, step: Step) -> None:
        """Resample the particles of those images that have too few with weight.

        It is done before the step. Their weights are equal afterwards."""
        few = (self.log_weights.softmax(1) ** 2).sum(1) > 2 / self.particles
        if few.any():
            own = torch.arange(self.particles).expand_as(self.log_weights)
            chosen = torch.where(few[:, None], self.ancestors(self.uniform(step, 1)), own)
            self.log_weights = self.log_weights.where(~few[:, None], 0.0)
            rows = self.rows(chosen)
            step.x_t, step._x_0 = step.x_t[rows], step.x_0[rows]

    def rows(self, chosen: Tensor) -> Tensor:
        """The rows (B K,) of the batch, of particles (B, K) that are counted in each image."""
        return (chosen + self.particles * torch.arange(len(chosen))[:, None]).flatten()

    def resampled_at_end(self, step: Step, x_0: Tensor) -> Tensor:
        """Particles of equal weight. The first one of each image is a random one of them."""
        chosen = self.ancestors(self.uniform(step, 3))
        turn = (self.uniform(step, 2) * self.particles).long()
        order = (torch.arange(self.particles) + turn[:, None]) % self.particles
        return x_0[self.rows(chosen.gather(1, order))]


def model_step(step: Step) -> tuple[Tensor, Tensor]:
    """(the mean, the variance) of x_s given x_t: past s by Heun's method, and back by noise.

    s' lies as far beyond s as s beyond t, in log-SNR."""
    alpha, sigma = step.at_s.alpha, step.at_s.sigma
    further = 2 * (alpha / sigma).log() + step_length(step)
    s = time_of(step.schedule, further)
    beyond = replace(step, s=s, at_s=noise_level(step.schedule, s), history=())
    on_x, variance = process.step_kernel(*beyond.at_s[:2], alpha, sigma)
    x = heun(beyond)
    return expand(on_x, x) * x, variance


def step_length(step: Step) -> Tensor:
    """The change of the log-SNR in a step; 1 where it begins with pure noise."""
    before, after = (2 * (at.alpha / at.sigma).log() for at in (step.at_t, step.at_s))
    return after - before if before.isfinite() else torch.ones_like(after)
