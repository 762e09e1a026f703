"""Likelihood in bits per dimension: the variational bound of the run's own chain, its continuous-time limit, and the exact
likelihood of the probability-flow ODE.

The bound. A chain of T steps reads the schedule at t_i = i/T. It draws x_T from noise, x_{i-1} from the posterior (4) with
x_0_hat in place of x_0 for i = T..2, and 8-bit images from x_1. Then, with SNR = alpha^2/sigma^2,

    -log p(x_0) <= KL(q(x_T | x_0) | p(x_T))                                                   prior
                 + sum_{i=2..T} (SNR_{i-1} - SNR_i) |x_0 - x_0_hat(x_{t_i})|^2 / 2             diffusion
                 - log p(x_0 | x_1)                                                            reconstruction

(Ho et al. 2020, arXiv:2006.11239, (5); Kingma et al. 2021, arXiv:2107.00630, (13)). For T -> infinity between the same
ends the sum is the integral of SNR |x_0 - x_0_hat|^2 / 2 over the log-SNR. Both are estimated at log-SNRs spread evenly, one
in each of K equal parts for every image. The decoder p(x_0 | x_1) is a normal distribution with mean x_0_hat(x_1) and standard
deviation sigma/alpha at t_1, discretised to the 256 grey levels (Ho et al., (13)).

The ODE. With y = x_t / (alpha + sigma) and tau = sigma / (alpha + sigma), the probability flow is dy / d log tau = y - x_0_hat, so that

    log p(y at the data) = log p(y at t = 1) + integral of (D - div x_0_hat) d log tau

from the data to t = 1, with the divergence by Hutchinson's estimator (Grathwohl et al. 2019, arXiv:1810.01367; Song et al. 2021,
arXiv:2011.13456, appendix D.2). Images are made continuous by noise uniform over a grey level. It is another
model of the data than the chain is, so neither bounds the other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from undiffuse.base import rng
from undiffuse.base.pixels import to_float
from undiffuse.diffusion import process
from undiffuse.diffusion.schedule import LOG_SNR_BOUND, SCHEDULES, chain, time_of

if TYPE_CHECKING:
    from undiffuse.diffusion.denoiser import Denoiser

CHAIN = 1000
"""Steps of the chain where a run was trained in continuous time, and has none of its own."""


LEVELS = 8
"""Log-SNRs visited for every image, a network call each."""


ODE_STEPS, ODE_LEVEL = 24, 13.0
"""Runge-Kutta steps of the exact likelihood, and the log-SNR at which the data are read."""


EARLIEST = 1e-9
"""The time at which the exact likelihood begins, at the earliest: at 0 there is no noise at all."""


BIN = 2 / 255
"""The distance of two grey levels in [-1, 1]."""


BITS = math.log(2)


Watch = Callable[[float], None]


@dataclass(frozen=True)
class Bound:
    """Bits per dimension of each image, float64 (N,): the three terms.

    levels, density, squared_errors: (N, K) the log-SNRs visited, and there the bits of the diffusion term per dimension and unit of
    log-SNR, and |x_0 - x_0_hat|^2 per value.
    low, high: the log-SNRs between which the chain runs."""

    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor
    levels: Tensor
    density: Tensor
    squared_errors: Tensor
    low: float
    high: float

    @property
    def total(self) -> Tensor:
        return self.prior + self.diffusion + self.reconstruction


@torch.no_grad()
def variational_bound(
    denoiser: Denoiser,
    images: Tensor,
    condition: Tensor | None = None,
    *,
    steps: int | None = None,
    continuous: bool = False,
    levels: int = LEVELS,
    seed: int = 0,
    clip: bool = True,
    batch_size: int = 250,
    watch: Watch = lambda done: None,
) -> Bound:
    """The bound for images uint8 (N, C, H, W), with conditions (N,), or None for the unconditional model.

    steps: T of the chain. continuous: T -> infinity between the ends of that chain. levels: K; each costs a network call an image, and
    the reconstruction one more. clip: x_0_hat to [-1, 1], as in sampling."""
    schedule = SCHEDULES[denoiser.schedule]
    steps = steps or CHAIN
    alpha_bar = chain(schedule, steps).alpha_bar
    # Where no signal is left SNR_T = 0: its logarithm is bounded, the SNR itself is not.
    node = (alpha_bar.log() - (-alpha_bar).log1p()).clamp(
        min=-LOG_SNR_BOUND
    )  # log-SNR of t_1..t_T, falling
    snr = alpha_bar / (1 - alpha_bar)
    low, high = node[-1].item(), node[0].item()

    def denoised(x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        x_0 = denoiser(x_t, t, condition=condition)
        return x_0.clamp(-1, 1) if clip else x_0

    parts: dict[str, list[Tensor]] = {key: [] for key in ("prior", "diffusion", "reconstruction")}
    visited, densities, errors = [], [], []
    for first in range(0, len(images), batch_size):
        x_0 = to_float(images[first : first + batch_size])
        own = None if condition is None else condition[first : first + batch_size]
        count = len(x_0)
        u = torch.from_numpy(rng.stream(seed, "bound levels", first).random((count, levels)))
        level = low + (high - low) * (torch.arange(levels) + u) / levels  # (b, K)
        if continuous:
            times, weight = time_of(schedule, level), level.exp() / 2
        else:
            # The step i in {2..T} whose interval of log-SNR, from node i to node i - 1, this level lies in.
            i = (torch.searchsorted(-node, -level).clamp(1, steps - 1)) + 1
            times, weight = i / steps, (snr[i - 2] - snr[i - 1]) / (node[i - 2] - node[i - 1]) / 2
        square = torch.empty_like(level)
        for k, t in enumerate(times.unbind(dim=1)):
            noise = rng.normal(x_0.shape, seed, "bound noise", first, k)
            at_t = denoiser.noise_level(t)
            x_t = process.jump(x_0, noise, at_t.alpha, at_t.sigma)
            square[:, k] = (denoised(x_t, t, own) - x_0).double().square().mean(dim=(1, 2, 3))
            watch((first + count * (k + 1) / levels) / len(images))
        end = denoiser.noise_level(torch.ones((), dtype=torch.float64))
        begin = denoiser.noise_level(torch.tensor(1 / steps, dtype=torch.float64))
        x_1 = process.jump(
            x_0, rng.normal(x_0.shape, seed, "bound noise", first, levels), begin.alpha, begin.sigma
        )
        x_0_hat = denoised(x_1, torch.full((count,), 1 / steps, dtype=torch.float64), own)
        parts["prior"].append(prior_bits(x_0, end.alpha, end.sigma))
        density = weight * square / BITS
        parts["diffusion"].append((high - low) * density.mean(dim=1))
        parts["reconstruction"].append(
            decoder_bits(x_0, x_0_hat, (begin.sigma / begin.alpha).item())
        )
        visited.append(level)
        densities.append(density)
        errors.append(square)
    return Bound(
        **{key: torch.cat(values) for key, values in parts.items()},
        levels=torch.cat(visited),
        density=torch.cat(densities),
        squared_errors=torch.cat(errors),
        low=low,
        high=high,
    )


def prior_bits(x_0: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """KL(q(x_T | x_0) | N(0, alpha^2 + sigma^2)) in bits per dimension, (B,)."""
    variance = alpha**2 + sigma**2
    second_moment = (alpha * x_0.double()).square() + sigma**2
    return ((second_moment / variance - 1 - (sigma**2 / variance).log()) / 2).mean(
        dim=(1, 2, 3)
    ) / BITS


def decoder_bits(x_0: Tensor, mean: Tensor, std: float) -> Tensor:
    """-log2 p(x_0), per dimension (B,), of grey levels in [-1, 1] under a normal distribution cut into 256 bins, whose outer ones
    reach to infinity: Ho et al. 2020 (arXiv:2006.11239), (13)."""
    x_0, mean = x_0.double(), mean.double()
    upper = torch.where(x_0 > 1 - BIN / 2, math.inf, (x_0 + BIN / 2 - mean) / std)
    lower = torch.where(x_0 < -1 + BIN / 2, -math.inf, (x_0 - BIN / 2 - mean) / std)
    # log(cdf(upper) - cdf(lower)), in the lower tail, where both can be told apart.
    mirrored = lower + upper > 0
    upper, lower = torch.where(mirrored, -lower, upper), torch.where(mirrored, -upper, lower)
    log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    log_p = log_upper + torch.log1p(-(log_lower - log_upper).exp().clamp(max=1 - 1e-16))
    return -log_p.mean(dim=(1, 2, 3)) / BITS


def ode_bits(
    denoiser: Denoiser,
    images: Tensor,
    condition: Tensor | None = None,
    *,
    steps: int = ODE_STEPS,
    level: float = ODE_LEVEL,
    seed: int = 0,
    batch_size: int = 250,
    watch: Watch = lambda done: None,
) -> Tensor:
    """Bits per dimension (N,) of images uint8 (N, C, H, W) under the probability-flow ODE, by `steps` classical Runge-Kutta steps
    of equal size in log tau, four network calls each with their derivatives.

    level: the log-SNR at which the model's data are read, or the schedule's highest where that is lower. x_0_hat is not clipped,
    as the flow must be smooth."""
    found = []
    for first in range(0, len(images), batch_size):
        batch = images[first : first + batch_size]
        own = None if condition is None else condition[first : first + batch_size]
        u = (
            torch.from_numpy(rng.stream(seed, "dequantisation", first).random(batch.shape)).float()
            - 0.5
        )
        z = to_float(batch) + BIN * u
        probe = (
            torch.from_numpy(
                rng.stream(seed, "Hutchinson", first).integers(0, 2, batch.shape)
            ).float()
            * 2
            - 1
        )

        def progress(done: float, first: int = first, count: int = len(batch)) -> None:
            watch((first + done * count) / len(images))

        log_density = ode_log_density(
            denoiser, z, own, probe, steps=steps, level=level, watch=progress
        )
        # A grey level is BIN wide: its probability is the density times that width.
        found.append(-log_density / z[0].numel() / BITS - math.log2(BIN))
    return torch.cat(found)


def ode_log_density(
    denoiser: Denoiser,
    z: Tensor,
    condition: Tensor | None,
    probe: Tensor,
    *,
    steps: int,
    level: float,
    watch: Watch = lambda done: None,
) -> Tensor:
    """log p(z), float64 (B,), of continuous images z (B, C, H, W). probe: random signs, for the divergence."""
    schedule = SCHEDULES[denoiser.schedule]
    dimensions = z[0].numel()

    def tau_at(t: Tensor) -> Tensor:
        alpha, sigma = schedule(t)
        return sigma / (alpha + sigma)

    start = tau_at(time_of(schedule, torch.tensor([level])).clamp(min=EARLIEST))[0]
    end = tau_at(torch.ones(1, dtype=torch.float64))[0]
    nodes = torch.linspace(start.log().item(), end.log().item(), 2 * steps + 1, dtype=torch.float64)
    tau = nodes.exp()
    times = time_of(schedule, 2 * ((1 - tau).log() - nodes))  # log-SNR = 2 log((1 - tau) / tau)
    times[-1] = 1.0

    def slope(y: Tensor, node: int) -> tuple[Tensor, Tensor]:
        """(dy / d log tau, d log p / d log tau), the latter (B,)."""
        t = times[node]
        alpha, sigma = schedule(t)
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            x_0 = denoiser((alpha + sigma).to(y.dtype) * y, t.expand(len(y)), condition=condition)
            (product,) = torch.autograd.grad((x_0 * probe).sum(), y)
        divergence = (product * probe).double().sum(dim=(1, 2, 3))
        return (y - x_0).detach(), divergence - dimensions

    y = (1 - tau[0]).to(z.dtype) * z
    change = torch.zeros(
        len(z), dtype=torch.float64
    )  # of log p along the way, from the data to noise
    h = (nodes[2] - nodes[0]).item()
    for k in range(steps):
        v_1, p_1 = slope(y, 2 * k)
        v_2, p_2 = slope(y + h / 2 * v_1, 2 * k + 1)
        v_3, p_3 = slope(y + h / 2 * v_2, 2 * k + 1)
        v_4, p_4 = slope(y + h * v_3, 2 * k + 2)
        y = y + h / 6 * (v_1 + 2 * v_2 + 2 * v_3 + v_4)
        change += h / 6 * (p_1 + 2 * p_2 + 2 * p_3 + p_4)
        watch((k + 1) / steps)
    alpha, sigma = schedule(torch.ones((), dtype=torch.float64))
    variance = (alpha**2 + sigma**2) / (alpha + sigma) ** 2
    log_prior = (
        -(y.double().square() / variance + variance.log() + math.log(2 * math.pi)).sum(
            dim=(1, 2, 3)
        )
        / 2
    )
    return log_prior - change + dimensions * (1 - tau[0]).log()


def loss_by_level(bound: Bound, bins: int = 24) -> list[list[float]]:
    """(log-SNR, bits per dimension and unit of log-SNR, |x_0 - x_0_hat|^2) in equal bins."""
    edges = torch.linspace(bound.low, bound.high, bins + 1, dtype=torch.float64)
    level, density, error = (
        bound.levels.flatten(),
        bound.density.flatten(),
        bound.squared_errors.flatten(),
    )
    found = []
    for a, b in itertools.pairwise(edges):
        here = (level >= a) & (level < b)
        if here.any():
            found.append(
                [((a + b) / 2).item(), density[here].mean().item(), error[here].mean().item()]
            )
    return found
