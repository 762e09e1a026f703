"""Likelihood: how many bits an image takes. A variational bound, and the exact value for the ODE.

Bits per dimension are -log2 p(x_0), divided by the number D = C H W of values in an image.

The bound. A chain of T steps reads the schedule at t_i = i/T. It samples x_T from noise, then
x_{i-1} from the posterior (4) with x_0_hat in place of x_0 for i = T..2, and then an 8-bit image
from x_1. With SNR = alpha^2/sigma^2,

    -log p(x_0) <= KL(q(x_T | x_0) | p(x_T))                                        prior
                 + sum_{i=2..T} (SNR_{i-1} - SNR_i) |x_0 - x_0_hat(x_{t_i})|^2 / 2  diffusion
                 - log p(x_0 | x_1)                                                 reconstruction

(Ho et al. 2020, arXiv:2006.11239, (5); Kingma et al. 2021, arXiv:2107.00630, (13)). For
T -> infinity between the same ends the sum is the integral of SNR |x_0 - x_0_hat|^2 / 2 over the
log-SNR. Sum and integral are estimated at K log-SNRs, one in each of K equal parts of their range,
sampled anew for every image. The decoder p(x_0 | x_1) is a normal distribution with mean
x_0_hat(x_1) and standard deviation sigma/alpha at t_1, discretised to the 256 levels of 8-bit
values (Ho et al., (13)).

The ODE. With y = x_t / (alpha + sigma) and tau = sigma / (alpha + sigma), the probability flow is
dy / d log tau = y - x_0_hat, so that

    log p(y at the data) = log p(y at t = 1) + integral of (D - div x_0_hat) d log tau

from the data to t = 1. The divergence is estimated by Hutchinson's estimator (Grathwohl et al.
2019, arXiv:1810.01367; Song et al. 2021, arXiv:2011.13456, appendix D.2). Images are made
continuous by uniform noise as wide as the distance of two 8-bit levels. The ODE is another model of
the data than the chain, so neither likelihood bounds the other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
from torch import Tensor

from undiffuse.base import rng
from undiffuse.base.pixels import to_float
from undiffuse.diffusion import process
from undiffuse.diffusion.schedule import LOG_SNR_BOUND, SCHEDULES, Schedule, chain, time_of

if TYPE_CHECKING:
    from undiffuse.diffusion.denoiser import Denoiser
    from undiffuse.diffusion.guidance import Denoise

CHAIN = 1000
"""T of the chain for a model that was trained in continuous time and has no chain of its own."""

LEVELS = 8
"""K, the log-SNRs visited for every image. Each takes a network call."""

ODE_STEPS, ODE_LEVEL = 24, 13.0
"""Runge-Kutta steps of the ODE, and the log-SNR at which the data are read."""

EARLIEST = 1e-9
"""The earliest time at which the ODE may begin: at time 0 there is no noise at all."""

BIN = 2 / 255
"""The distance of two 8-bit levels in [-1, 1]."""

BITS = math.log(2)
"""Nats in a bit."""

Watch: TypeAlias = Callable[[float], None]


@dataclass(frozen=True)
class Bound:
    """The three terms of the bound for each image, float64 (N,), in bits per dimension.

    levels: (N, K), the log-SNRs visited. density: (N, K), the diffusion term there, in bits per
    dimension and unit of log-SNR. squared_errors: (N, K), |x_0 - x_0_hat|^2 there, the mean over an
    image's values. low, high: the log-SNRs at the two ends of the chain."""

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
        """The bound (N,) in bits per dimension."""
        return self.prior + self.diffusion + self.reconstruction


PER_IMAGE = ("prior", "diffusion", "reconstruction", "levels", "density", "squared_errors")
"""The fields of `Bound` that have an entry for each image."""


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
    """The variational bound for images uint8 (N, C, H, W).

    condition: the condition (N,) of each image, or None for the unconditional model. steps: T of
    the chain, CHAIN by default. continuous: T -> infinity between the ends of that chain. levels:
    K. Each level takes a network call for each image, and the reconstruction takes one more. clip:
    whether x_0_hat is clipped to [-1, 1], as in sampling. watch: called with the share done."""
    schedule = SCHEDULES[denoiser.schedule]
    nodes = chain_nodes(schedule, steps or CHAIN)

    def denoise(x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        x_0 = denoiser(x_t, t, condition=condition)
        return x_0.clamp(-1, 1) if clip else x_0

    def progress(first: int, done: float) -> None:
        watch((first + done) / len(images))

    found = []
    for first in range(0, len(images), batch_size):
        x_0 = to_float(images[first : first + batch_size])
        own = None if condition is None else condition[first : first + batch_size]
        rows = range(first, first + len(x_0))
        u = rng.uniform_each(rows, (levels,), seed, "bound levels")
        found.append(
            bound_of_batch(
                denoiser,
                partial(denoise, condition=own),
                x_0,
                nodes,
                visits_of(schedule, nodes, u, continuous=continuous),
                partial(rng.normal_each, rows, x_0.shape[1:], seed, "bound noise"),
                partial(progress, first),
            )
        )
    tensors = {name: torch.cat([getattr(part, name) for part in found]) for name in PER_IMAGE}
    return Bound(**tensors, low=nodes.low, high=nodes.high)


class Nodes(NamedTuple):
    """The log-SNR and the SNR of a chain at t_1..t_T, float64 (T,), falling."""

    log_snr: Tensor
    snr: Tensor

    @property
    def low(self) -> float:
        """The log-SNR at t_T."""
        return self.log_snr[-1].item()

    @property
    def high(self) -> float:
        """The log-SNR at t_1."""
        return self.log_snr[0].item()


def chain_nodes(schedule: Schedule, steps: int) -> Nodes:
    """The nodes of a chain of `steps` steps."""
    alpha_bar = chain(schedule, steps).alpha_bar
    # Where no signal is left, SNR_T = 0: its logarithm is bounded, the SNR itself is not.
    log_snr = (alpha_bar.log() - (-alpha_bar).log1p()).clamp(min=-LOG_SNR_BOUND)
    return Nodes(log_snr, alpha_bar / (1 - alpha_bar))


class Visits(NamedTuple):
    """The noise levels at which the diffusion term is estimated, (B, K).

    weight: the factor of |x_0 - x_0_hat|^2 in the diffusion term, in nats per unit of log-SNR."""

    log_snr: Tensor
    times: Tensor
    weight: Tensor


def visits_of(schedule: Schedule, nodes: Nodes, u: Tensor, *, continuous: bool) -> Visits:
    """The noise levels to visit, one in each of K equal parts of the chain's range of log-SNRs.

    u: uniform numbers (B, K) in [0, 1), which place a level in its part."""
    count = u.shape[1]
    level = nodes.low + (nodes.high - nodes.low) * (torch.arange(count) + u) / count
    if continuous:
        return Visits(level, time_of(schedule, level), level.exp() / 2)
    node, snr, steps = nodes.log_snr, nodes.snr, len(nodes.snr)
    # The step i in {2..T} in whose interval of log-SNR, from node i to node i - 1, the level lies.
    i = (torch.searchsorted(-node, -level).clamp(1, steps - 1)) + 1
    return Visits(
        level, i.double() / steps, (snr[i - 2] - snr[i - 1]) / (node[i - 2] - node[i - 1]) / 2
    )


def bound_of_batch(
    denoiser: Denoiser,
    denoise: Denoise,
    x_0: Tensor,
    nodes: Nodes,
    visits: Visits,
    noise: Callable[[int], Tensor],
    watch: Watch,
) -> Bound:
    """The bound for one batch of images x_0 (B, C, H, W) in [-1, 1].

    denoise: (x_t, t (B,)) -> x_0_hat. noise: number of a visit, K for the reconstruction ->
    standard normal noise like x_0. watch: called with the number of images done."""
    count, levels = visits.log_snr.shape
    square = torch.empty_like(visits.log_snr)
    for k, t in enumerate(visits.times.unbind(dim=1)):
        at_t = denoiser.noise_level(t)
        x_t = process.jump(x_0, noise(k), at_t.alpha, at_t.sigma)
        square[:, k] = (denoise(x_t, t) - x_0).double().square().mean(dim=(1, 2, 3))
        watch(count * (k + 1) / levels)
    density = visits.weight * square / BITS
    end = denoiser.noise_level(torch.ones((), dtype=torch.float64))
    t_1 = 1 / len(nodes.snr)
    begin = denoiser.noise_level(torch.tensor(t_1, dtype=torch.float64))
    x_1 = process.jump(x_0, noise(levels), begin.alpha, begin.sigma)
    x_0_hat = denoise(x_1, torch.full((count,), t_1, dtype=torch.float64))
    return Bound(
        prior=prior_bits(x_0, end.alpha, end.sigma),
        diffusion=(nodes.high - nodes.low) * density.mean(dim=1),
        reconstruction=decoder_bits(x_0, x_0_hat, (begin.sigma / begin.alpha).item()),
        levels=visits.log_snr,
        density=density,
        squared_errors=square,
        low=nodes.low,
        high=nodes.high,
    )


def prior_bits(x_0: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The prior term: KL(q(x_T | x_0) | N(0, alpha^2 + sigma^2)) in bits per dimension, (B,)."""
    variance = alpha**2 + sigma**2
    second_moment = (alpha * x_0.double()).square() + sigma**2
    nats = (second_moment / variance - 1 - (sigma**2 / variance).log()) / 2
    return nats.mean(dim=(1, 2, 3)) / BITS


def decoder_bits(x_0: Tensor, mean: Tensor, std: float) -> Tensor:
    """The reconstruction term: -log2 p(x_0) in bits per dimension, (B,).

    x_0: 8-bit levels in [-1, 1], (B, C, H, W). mean, std: of a normal distribution that is cut into
    256 bins, the outer two of which reach to infinity. Ho et al. 2020 (arXiv:2006.11239), (13)."""
    x_0, mean = x_0.double(), mean.double()
    upper = torch.where(x_0 > 1 - BIN / 2, math.inf, (x_0 + BIN / 2 - mean) / std)
    lower = torch.where(x_0 < -1 + BIN / 2, -math.inf, (x_0 - BIN / 2 - mean) / std)
    # log(cdf(upper) - cdf(lower)), mirrored into the lower tail: in the upper one both round to 1.
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
    """Bits per dimension (N,) of images uint8 (N, C, H, W) under the probability-flow ODE.

    condition: the condition (N,) of each image, or None for the unconditional model. steps:
    classical Runge-Kutta steps of equal size in log tau. Each takes four network calls with their
    gradients. level: the log-SNR at which the data are read, or the schedule's highest where that
    is lower. x_0_hat is not clipped, because the flow must be smooth. watch: called with the share
    done."""
    found = []
    for first in range(0, len(images), batch_size):
        batch = images[first : first + batch_size]
        own = None if condition is None else condition[first : first + batch_size]
        rows, shape = range(first, first + len(batch)), batch.shape[1:]
        u = rng.uniform_each(rows, shape, seed, "dequantisation")
        z = to_float(batch) + BIN * (u.float() - 0.5)
        coin = rng.uniform_each(rows, shape, seed, "Hutchinson") < 0.5
        probe = coin.float() * 2 - 1

        def progress(done: float, first: int = first, count: int = len(batch)) -> None:
            watch((first + done * count) / len(images))

        log_density = ode_log_density(
            denoiser, z, own, probe, steps=steps, level=level, watch=progress
        )
        # The probability of an 8-bit level is the density times its width BIN.
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
    """log p(z), float64 (B,), of continuous images z (B, C, H, W), in nats.

    probe: random signs like z, for the estimate of the divergence. Others: see `ode_bits`."""
    schedule = SCHEDULES[denoiser.schedule]
    dimensions = z[0].numel()
    nodes, tau, times = ode_path(schedule, steps, level)

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
    change = torch.zeros(len(z), dtype=torch.float64)  # of log p, from the data to the noise
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
    return normal_log_density(y, variance) - change + dimensions * (1 - tau[0]).log()


def ode_path(schedule: Schedule, steps: int, level: float) -> tuple[Tensor, Tensor, Tensor]:
    """(log tau, tau, t), float64 (2 steps + 1,): the ends and middles of `steps` Runge-Kutta steps.

    They go from the data, at the log-SNR `level`, to t = 1, in equal steps of log tau."""

    def tau_at(t: Tensor) -> Tensor:
        alpha, sigma = schedule(t)
        return sigma / (alpha + sigma)

    start = tau_at(time_of(schedule, torch.tensor([level])).clamp(min=EARLIEST))[0]
    end = tau_at(torch.ones(1, dtype=torch.float64))[0]
    nodes = torch.linspace(start.log().item(), end.log().item(), 2 * steps + 1, dtype=torch.float64)
    tau = nodes.exp()
    times = time_of(schedule, 2 * ((1 - tau).log() - nodes))  # log-SNR = 2 log((1 - tau) / tau)
    times[-1] = 1.0
    return nodes, tau, times


def normal_log_density(y: Tensor, variance: Tensor) -> Tensor:
    """log N(y; 0, variance I), float64 (B,), of y (B, C, H, W), in nats."""
    terms = y.double().square() / variance + variance.log() + math.log(2 * math.pi)
    return -terms.sum(dim=(1, 2, 3)) / 2


def loss_by_level(bound: Bound, bins: int = 24) -> list[list[float]]:
    """The diffusion term at each noise level, in `bins` equal bins of log-SNR.

    For each bin with a visit: [log-SNR at its middle, bits per dimension and unit of log-SNR,
    |x_0 - x_0_hat|^2 as the mean over an image's values]."""
    edges = torch.linspace(bound.low, bound.high, bins + 1, dtype=torch.float64)
    level, density = bound.levels.flatten(), bound.density.flatten()
    error = bound.squared_errors.flatten()
    found = []
    for a, b in itertools.pairwise(edges):
        here = (level >= a) & (level < b)
        if here.any():
            found.append(
                [((a + b) / 2).item(), density[here].mean().item(), error[here].mean().item()]
            )
    return found
