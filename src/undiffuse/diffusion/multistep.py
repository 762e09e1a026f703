"""Samplers with a memory: they put a polynomial through the predictions of several steps.

Along the probability-flow ODE, with lambda = log(alpha / sigma) and rho = sigma / alpha,

    x_s = (sigma_s / sigma_t) x_t + sigma_s  int e^lambda  x_0(lambda) dlambda      (data)
    x_s = (alpha_s / alpha_t) x_t - alpha_s  int e^-lambda eps(lambda) dlambda      (noise)
    x_s = (alpha_s / alpha_t) x_t + alpha_s  int eps(rho) drho                      (noise, in rho)

with integrals from time t to s. Each sampler replaces x_0 or eps by a polynomial through its values
at this step and at earlier ones, and integrates that exactly. In the first steps there are fewer
values, so the order is lower. The last step, where lambda is infinite, is of first order. So is the
first, where a schedule begins in pure noise.

The same thing has several names. The exact integral of the data polynomial is called the
multistep exponential integrator, and UniP-p; of the noise polynomial in lambda, DEIS; of the noise
polynomial in rho, the linear multistep method (LMS) of k-diffusion.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from undiffuse.base.errors import UserError
from undiffuse.base.lazy import lazy
from undiffuse.diffusion import process
from undiffuse.diffusion.process import expand
from undiffuse.diffusion.samplers import dpmpp_2m, dpmpp_2m_sde, euler
from undiffuse.diffusion.step import REMEMBERED, SAMPLERS, Past, Step

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from undiffuse.diffusion.schedule import NoiseLevel
else:
    torch = lazy("torch")

TERMS = 30
"""Terms of the power series of `moments`: more than float64 needs for |z| below 1."""


def moments(z: Tensor, count: int) -> Tensor:
    """The integrals over v from 0 to 1 of exp(z (1 - v)) v^k, for k < count: float64 (count,).

    z: (). They are k! phi_{k+1}(z), with the phi functions of exponential integrators. Where z is
    small, the recurrence cancels, and the power series is used."""
    if abs(z.item()) < 1:
        terms = torch.arange(TERMS, dtype=torch.float64)
        return torch.stack(
            [
                (z**terms * math.factorial(k) / torch.lgamma(terms + k + 2).exp()).sum()
                for k in range(count)
            ]
        )
    found = [torch.expm1(z) / z]
    for k in range(1, count):
        found.append((k * found[-1] - 1) / z)
    return torch.stack(found)


def weights(nodes: Sequence[Tensor], integrals: Tensor) -> Tensor:
    """What to weight values at the nodes by, so that the sum is the integral of their polynomial.

    nodes: float64 (), all different. integrals: of v^k, for k < len(nodes)."""
    v = torch.stack(list(nodes))
    powers = torch.stack([v**k for k in range(len(nodes))])
    return torch.linalg.solve(powers, integrals)


def remembered(step: Step, order: int) -> list[Past]:
    """This step and earlier ones, the last one first: at most `order`, none of pure noise.

    At the last step it is this step only."""
    if step.last:
        return [step.present]
    finite = [past for past in step.history if past.half_log_snr.isfinite()]
    return [step.present, *finite][:order]


def positions(points: Sequence[Past], start: Past, length: Tensor) -> list[Tensor]:
    """(lambda of each point - lambda of `start`) / length."""
    return [(point.half_log_snr - start.half_log_snr) / length for point in points]


def check_order(name: str, order: int, most: int = REMEMBERED) -> None:
    """Raises UserError for an order that a sampler does not have."""
    if not 1 <= order <= most:
        raise UserError(f"sampler {name}: order must be from 1 to {most}, not {order}")


def length_to(level: NoiseLevel, start: Past) -> Tensor:
    """The difference of lambda. It is infinite where there is no noise at the end."""
    return (level.alpha / level.sigma).log() - start.half_log_snr


def of_data(start: Past, points: Sequence[Past], level: NoiseLevel) -> Tensor:
    """x at a noise level by the data formula, from `start`, with the points' polynomial."""
    h = length_to(level, start)
    integral = h * weights(positions(points, start, h), moments(-h, len(points)))
    x = expand(level.sigma / start.level.sigma, start.x_t) * start.x_t
    for weight, point in zip(integral, points, strict=True):
        x = x + expand(level.alpha * weight, x) * point.x_0
    return x


@SAMPLERS.named("exp-ab")
def exp_ab(step: Step, *, order: int = 3) -> Tensor:
    """The exponential Adams-Bashforth method: the data polynomial, integrated exactly.

    It is UniP-p of Zhao et al. 2023 (arXiv:2302.04867), and with order 1 DDIM. Of order 2 and 3
    DPM-Solver++ uses formulas that agree with it to leading order. Raises UserError for an order
    other than 1, 2 and 3."""
    check_order("exp-ab", order)
    points = remembered(step, order)
    if len(points) == 1 or not points[0].half_log_snr.isfinite():
        return euler(step)
    return of_data(points[0], points, step.at_s)


@SAMPLERS.named("dpmpp-3m")
def dpmpp_3m(step: Step) -> Tensor:
    """DPM-Solver++(3M): Taylor's formula with divided differences of x_0_hat.

    It has no paper of its own: it is `multistep_dpm_solver_third_update` of the code of Lu et al.
    2022 (arXiv:2211.01095). Its second difference has half of the weight that third order needs.
    `exp-ab` has all of it."""
    differences = divided_differences(step)
    if differences is None:
        return dpmpp_2m(step)
    d_0, d_1, d_2, h = differences
    phi_1 = torch.expm1(-h)
    phi_2 = phi_1 / h + 1
    phi_3 = phi_2 / h - 0.5
    x = expand(step.at_s.sigma / step.at_t.sigma, step.x_t) * step.x_t
    change = expand(phi_1, x) * d_0 - expand(phi_2, x) * d_1 + expand(phi_3, x) * d_2
    return x - expand(step.at_s.alpha, x) * change


@SAMPLERS.named("dpmpp-3m-sde")
def dpmpp_3m_sde(step: Step) -> Tensor:
    """SDE-DPM-Solver++(3M): the same with fresh noise.

    It has no paper of its own: it is `sample_dpmpp_3m_sde` of k-diffusion, and follows appendix E
    of Lu et al. 2022 (arXiv:2211.01095)."""
    differences = divided_differences(step)
    if differences is None:
        return dpmpp_2m_sde(step)
    d_0, d_1, d_2, h = differences
    phi_1 = torch.expm1(-2 * h)
    phi_2 = phi_1 / (2 * h) + 1
    phi_3 = phi_2 / (2 * h) - 0.5
    x = expand(step.at_s.sigma / step.at_t.sigma * (-h).exp(), step.x_t) * step.x_t
    change = expand(phi_1, x) * d_0 - expand(phi_2, x) * d_1 + expand(phi_3, x) * d_2
    x = x - expand(step.at_s.alpha, x) * change
    return x + expand(step.at_s.sigma * (-phi_1).sqrt(), x) * step.noise()


def divided_differences(step: Step) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """(x_0_hat, its first and its second difference, the length of the step in lambda).

    None where there are less than three values, or the length is infinite."""
    if step.last or len(step.history) < 2 or not step.history[0].half_log_snr.isfinite():
        return None
    now, one, two = (step.present, *step.history[:2])
    h = length_to(step.at_s, now)
    r_0 = (now.half_log_snr - one.half_log_snr) / h
    r_1 = (one.half_log_snr - two.half_log_snr) / h
    near = (now.x_0 - one.x_0) / expand(r_0, now.x_0)
    change = near - (one.x_0 - two.x_0) / expand(r_1, one.x_0)
    first = near + expand(r_0 / (r_0 + r_1), change) * change
    return now.x_0, first, change / expand(r_0 + r_1, change), h


@SAMPLERS.add
def unipc(step: Step, *, order: int = 3) -> Tensor:
    """UniPC: x_t is corrected by the x_0_hat that was computed at it, then the next is predicted.

    Zhao et al. 2023 (arXiv:2302.04867), algorithms 1 and 2, data prediction, B_2(h) = e^h - 1. The
    corrector is the exponential Adams-Moulton method. It takes no further network call. Raises
    UserError for an order other than 2 and 3."""
    if order not in (2, 3):
        raise UserError(f"sampler unipc: order must be 2 or 3, not {order}")
    corrected(step, order)
    points = remembered(step, order)
    return dpmpp_2m(step) if len(points) < 3 else of_data(points[0], points, step.at_s)


def corrected(step: Step, order: int) -> None:
    """UniC-p: put a better x_t into the step. x_0_hat stays that of the former x_t.

    The polynomial goes through x_0_hat of this step too. With one earlier value its weights are
    those of B_2(h), 1/2 each."""
    x_0 = step.x_0
    past = [past for past in step.history if past.half_log_snr.isfinite()][:order]
    if not past:
        return
    start, now = past[0], step.present
    if len(past) == 1:
        middle = start._replace(x_0=(start.x_0 + x_0) / 2)
        step.x_t = of_data(start, [middle], step.at_t)
    else:
        step.x_t = of_data(start, [*past, now], step.at_t)


@SAMPLERS.add
def deis(step: Step, *, order: int = 3) -> Tensor:
    """DEIS: the noise polynomial in lambda, integrated exactly.

    Zhang & Chen 2023 (arXiv:2204.13902), section 3.3, as an Adams-Bashforth method in log rho, the
    form of its authors' code. Raises UserError for an order other than 1, 2 and 3."""
    check_order("deis", order)
    points = remembered(step, order)
    if len(points) == 1 or not points[0].half_log_snr.isfinite():
        return euler(step)
    h = length_to(step.at_s, points[0])
    integral = h * weights(positions(points, points[0], h), moments(h, len(points)))
    x = expand(step.at_s.alpha / step.at_t.alpha, step.x_t) * step.x_t
    for weight, point in zip(integral, points, strict=True):
        x = x - expand(step.at_s.sigma * weight, x) * point.eps
    return x


@SAMPLERS.add
def lms(step: Step, *, order: int = 4) -> Tensor:
    """The linear multistep method: the noise polynomial in rho, integrated exactly.

    It is Adams-Bashforth for steps of any length, `sample_lms` of k-diffusion. Its last step takes
    the denoised image, as all samplers here do. Raises UserError for an order other than 1 to 4."""
    check_order("lms", order, REMEMBERED + 1)
    points = remembered(step, order)
    if len(points) == 1 or not points[0].half_log_snr.isfinite():
        return euler(step)
    rho = [(-point.half_log_snr).exp() for point in points]
    length = step.at_s.sigma / step.at_s.alpha - rho[0]
    nodes = [(node - rho[0]) / length for node in rho]
    powers = torch.arange(1, len(points) + 1, dtype=torch.float64)
    integral = length * weights(nodes, 1 / powers)
    x = expand(step.at_s.alpha / step.at_t.alpha, step.x_t) * step.x_t
    for weight, point in zip(integral, points, strict=True):
        x = x + expand(step.at_s.alpha * weight, x) * point.eps
    return x


ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""The weights of Adams-Bashforth of order 1 to 4 for steps of equal length."""


@SAMPLERS.add
def pndm(step: Step) -> Tensor:
    """PNDM: a linear multistep method for eps, then the step of DDIM with that eps.

    Liu et al. 2022 (arXiv:2202.09778), (12) and (11), for steps of equal length. Its first step is
    the pseudo improved Euler step of the paper's appendix, with two network calls."""
    if step.last or step.at_t.alpha.item() < 1e-6:
        return euler(step)
    past = [past for past in step.history if past.level.alpha.item() >= 1e-6]
    if past:
        values = [step.present, *past]
        each = zip(ADAMS_BASHFORTH[len(values) - 1], values, strict=True)
        eps = torch.stack([weight * value.eps for weight, value in each]).sum(dim=0)
    else:
        x_s = euler(step)
        x_0 = step.denoise(x_s, step.s)
        eps = (step.eps + process.eps_from(x_s, x_0, step.at_s.alpha, step.at_s.sigma)) / 2
    x_0 = (step.x_t - expand(step.at_t.sigma, step.x_t) * eps) / expand(step.at_t.alpha, step.x_t)
    return process.jump(x_0, eps, step.at_s.alpha, step.at_s.sigma)
