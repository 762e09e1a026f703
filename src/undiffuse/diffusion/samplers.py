"""Samplers: from x_t to x_s, one step of time. (7), (8), DDIM, Heun and DPM-Solver++ 2M.

Further ones are in multistep.py and stochastic.py. step.py says how to add one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from undiffuse.base.errors import UserError
from undiffuse.diffusion import process
from undiffuse.diffusion.schedule import log_snr
from undiffuse.diffusion.step import SAMPLERS, Step

if TYPE_CHECKING:
    from torch import Tensor


@SAMPLERS.add
def posterior_mean(step: Step) -> Tensor:
    """(7): the posterior mean. The handout calls it DDIM, but it is not DDIM.

    Without the noise of (8), the spread of the samples shrinks faster than that of the chain. The
    samples collapse onto few images."""
    return step.posterior().mean(step.x_t, step.x_0)


@SAMPLERS.add
def ddpm(step: Step) -> Tensor:
    """(8), corrected: the posterior mean plus noise of the posterior's standard deviation.

    Ho et al. 2020 (arXiv:2006.11239), algorithm 2."""
    posterior = step.posterior()
    x_s = posterior.mean(step.x_t, step.x_0)
    return x_s if step.last else x_s + process.expand(posterior.variance.sqrt(), x_s) * step.noise()


@SAMPLERS.add
def ddpm_printed(step: Step) -> Tensor:
    """(8) as the handout prints it: with the variance in place of the standard deviation.

    It adds too little noise."""
    posterior = step.posterior()
    x_s = posterior.mean(step.x_t, step.x_0)
    return x_s if step.last else x_s + process.expand(posterior.variance, x_s) * step.noise()


@SAMPLERS.add
def ddim(step: Step, *, eta: float = 0.0) -> Tensor:
    """DDIM: deterministic for eta = 0, the same as `ddpm` for eta = 1.

    Song et al. 2021 (arXiv:2010.02502), (12). Raises UserError for eta outside [0, 1]."""
    if not 0 <= eta <= 1:
        raise UserError(f"sampler ddim: eta must be between 0 and 1, not {eta}")
    variance = eta**2 * step.posterior().variance
    remaining = (step.at_s.sigma**2 - variance).clamp(min=0).sqrt()
    x_s = process.jump(step.x_0, step.eps, step.at_s.alpha, remaining)
    return (
        x_s if eta == 0 or step.last else x_s + process.expand(variance.sqrt(), x_s) * step.noise()
    )


@SAMPLERS.add
def euler(step: Step) -> Tensor:
    """Euler's step of the probability-flow ODE, along the straight line from x_t to x_0.

    Karras et al. 2022 (arXiv:2206.00364), algorithm 1 without its correction. It computes the same
    as DDIM with eta = 0."""
    return process.jump(step.x_0, step.eps, step.at_s.alpha, step.at_s.sigma)


@SAMPLERS.add
def heun(step: Step) -> Tensor:
    """Heun's second-order step of the probability-flow ODE.

    It calls the network twice, but once at the last step: 2K - 1 times in K steps. The ODE is
    written for x / (alpha + sigma) as a function of tau = sigma / (alpha + sigma). Its velocity is
    then eps - x_0. Karras et al. 2022 (arXiv:2206.00364), algorithm 1, use x / alpha as a function
    of sigma / alpha, which is infinite at t = 1 where a schedule ends in pure noise. tau is finite
    everywhere. Euler's step is the same in both."""
    x_s = euler(step)
    if step.last:
        return x_s
    x_0 = step.denoise(x_s, step.s)
    eps = process.eps_from(x_s, x_0, step.at_s.alpha, step.at_s.sigma)
    scale_s = step.at_s.alpha + step.at_s.sigma
    tau_t = step.at_t.sigma / (step.at_t.alpha + step.at_t.sigma)
    tau_s = step.at_s.sigma / scale_s
    change_of_velocity = (eps - x_0) - (step.eps - step.x_0)
    return x_s + process.expand(scale_s * (tau_s - tau_t) / 2, x_s) * change_of_velocity


def second_order(step: Step) -> Tensor:
    """x_0_hat at the middle of the step, extrapolated in the log-SNR from the step before.

    Lu et al. 2022 (arXiv:2211.01095), algorithm 2. At the first step it is the step's own x_0_hat,
    and at the last too, where the log-SNR is infinite."""
    if not step.history or step.last:
        return step.x_0
    _, x_0, level = step.history[0]
    before, at_t, at_s = (log_snr(at.alpha, at.sigma) for at in (level, step.at_t, step.at_s))
    return step.x_0 + process.expand((at_s - at_t) / (2 * (at_t - before)), x_0) * (step.x_0 - x_0)


@SAMPLERS.named("dpmpp-2m")
def dpmpp_2m(step: Step) -> Tensor:
    """DPM-Solver++(2M): Euler's step, which is DDIM, with x_0_hat of second order.

    Lu et al. 2022 (arXiv:2211.01095), algorithm 2."""
    return euler(replace(step, _x_0=second_order(step)))


@SAMPLERS.named("dpmpp-2m-sde")
def dpmpp_2m_sde(step: Step) -> Tensor:
    """SDE-DPM-Solver++(2M): (8) with x_0_hat of second order.

    Lu et al. 2022 (arXiv:2211.01095), appendix E."""
    return ddpm(replace(step, _x_0=second_order(step)))
