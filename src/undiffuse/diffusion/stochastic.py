"""Samplers that add noise in other ways than (8): ancestral, churned, restarted, consistency."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from undiffuse.base.errors import UserError
from undiffuse.base.lazy import lazy
from undiffuse.diffusion import process
from undiffuse.diffusion.process import expand
from undiffuse.diffusion.samplers import ddim, heun
from undiffuse.diffusion.schedule import noise_level, time_of
from undiffuse.diffusion.step import SAMPLERS, Step

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch")


@SAMPLERS.named("euler-ancestral")
def euler_ancestral(step: Step, *, eta: float = 1.0) -> Tensor:
    """The ancestral Euler method of k-diffusion: Euler's step to less noise, and fresh noise.

    It has no paper of its own. In units of alpha it is DDIM with the same eta: Song et al. 2021
    (arXiv:2010.02502), (12), and so it is (8) for eta = 1. Raises UserError for eta outside
    [0, 1]."""
    return ddim(step, eta=eta)


MOST_CHURN = math.sqrt(2) - 1
"""The largest share by which a step raises the noise: Karras et al. 2022, algorithm 2."""


@SAMPLERS.named("heun-churn")
def heun_churn(
    step: Step, *, churn: float = 10.0, low: float = 0.05, high: float = 50.0, noise: float = 1.0
) -> Tensor:
    """EDM's stochastic sampler: the noise is raised a little, then Heun's step is taken.

    Karras et al. 2022 (arXiv:2206.00364), algorithm 2, for x / alpha with noise rho = sigma /
    alpha. churn, low, high, noise: their S_churn, S_tmin, S_tmax, S_noise. The noise is raised
    where rho is from low to high. Two network calls a step, one at the last. Raises UserError for
    a negative value."""
    for name, value in (("churn", churn), ("low", low), ("high", high), ("noise", noise)):
        if value < 0:
            raise UserError(f"sampler heun-churn: {name} must be at least 0, not {value:g}")
    rho = (step.at_t.sigma / step.at_t.alpha).item()
    gamma = min(churn / step.steps, MOST_CHURN) if low <= rho <= high else 0.0
    if not gamma:
        return heun(step)
    raised = raised_to(step, rho * (1 + gamma), noise)
    x_s = heun(raised)
    step.x_t, step.t, step.at_t, step._x_0 = raised.x_t, raised.t, raised.at_t, raised.x_0
    return x_s


def raised_to(step: Step, rho: float, scale: float) -> Step:
    """The step from a noisier x_t: noise of standard deviation rho, for a unit of image.

    scale: of the fresh noise. The schedule's noisiest time is the limit."""
    level = torch.tensor(-2 * math.log(rho), dtype=torch.float64)
    t = time_of(step.schedule, level)
    at_t = noise_level(step.schedule, t)
    before, after = step.at_t.sigma / step.at_t.alpha, at_t.sigma / at_t.alpha
    fresh = scale * (after**2 - before**2).clamp(min=0).sqrt()
    x_t = expand(at_t.alpha / step.at_t.alpha, step.x_t) * step.x_t
    x_t = x_t + expand(at_t.alpha * fresh, x_t) * step.noise()
    return replace(step, x_t=x_t, t=t, at_t=at_t, history=(), _x_0=None)


@SAMPLERS.add
def restart(
    step: Step, *, low: float = 0.3, high: float = 0.5, times: int = 1, inner: int = 3
) -> Tensor:
    """Restart sampling: Heun's method, which goes back to more noise a few times at one place.

    Xu et al. 2023 (arXiv:2306.14878), algorithm 1. When the step reaches time `low` or passes it,
    the noise of the forward process is added up to time `high`, and `inner` steps of Heun's method
    lead back. This is done `times` times. Fresh noise takes away the errors of the steps before.
    Raises UserError unless 0 < low < high <= 1."""
    if not 0 < low < high <= 1:
        raise UserError(f"sampler restart: 0 < low < high <= 1 does not hold for {low}, {high}")
    if times < 0 or inner < 1:
        raise UserError("sampler restart: times must be at least 0, and inner at least 1")
    x_s = heun(step)
    if not step.s.item() <= low < step.t.item() or step.last:
        return x_s
    start = torch.tensor(high, dtype=torch.float64).clamp(min=step.s)
    way = start + (step.s - start) * torch.linspace(0, 1, inner + 1, dtype=torch.float64)
    levels = [noise_level(step.schedule, t) for t in way]
    for number in range(times):
        eps = step.noise(number)
        x_s = process.step(x_s, eps, step.at_s.alpha, step.at_s.sigma, *levels[0][:2])
        for i in range(inner):
            back = replace(step, x_t=x_s, t=way[i], s=way[i + 1], history=(), _x_0=None)
            x_s = heun(replace(back, at_t=levels[i], at_s=levels[i + 1]))
    return x_s


@SAMPLERS.add
def consistency(step: Step) -> Tensor:
    """Multistep consistency sampling: x_0_hat, and fresh noise up to time s.

    Song et al. 2023 (arXiv:2303.01469), algorithm 1. It is made for a consistency model, whose
    x_0_hat is the end of the ODE's path. For other models x_0_hat is a mean of images, and the
    samples collapse."""
    return (
        step.x_0
        if step.last
        else process.jump(step.x_0, step.noise(), step.at_s.alpha, step.at_s.sigma)
    )
