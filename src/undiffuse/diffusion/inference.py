"""Which condition a measured image has: a denoiser as a classifier.

The better the denoiser of condition k predicts an image from its noisy versions, the likelier is k:

    log p(x_0 | k) >= -1/2 int SNR |x_0 - x_0_hat(x_t, k)|^2 dlog SNR + const.

Li et al. 2023 (arXiv:2303.16203), (4) to (6), with the weights of the bound (likelihood.py). Where
only y = A x_0 is known, the error is that of A x_0_hat, and what is not measured is taken from the
mean image of condition k.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from undiffuse.base import rng
from undiffuse.base.lazy import lazy
from undiffuse.diffusion import process
from undiffuse.diffusion.operators import pseudo_inverse
from undiffuse.diffusion.schedule import SCHEDULES, time_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from undiffuse.diffusion.denoiser import Denoiser
    from undiffuse.diffusion.inverse import Fit
else:
    torch = lazy("torch")

LEVELS = (-6.0, -4.0, -2.0, 0.0, 2.0)
"""The log-SNRs at which the errors are measured: those at which conditions differ."""

EACH = 2.0  # the distance of two levels

AT_ONCE = 64  # conditions


@torch.no_grad()
def log_posterior(denoiser: Denoiser, task: Fit, log_prior: Tensor, seed: int) -> Tensor:
    """log p(k | y), float64 (K,), of the conditions, given the measurement of a task.

    log_prior: log p(k), -inf for conditions that are excluded. It takes six network calls for each
    condition. Levels with less noise than the measurement are left out."""
    found = log_prior.double().clone()
    for rows in (log_prior > -torch.inf).nonzero()[:, 0].split(AT_ONCE):
        found[rows] += log_evidence(denoiser, task, rows, seed)
    return found.log_softmax(0)


def log_evidence(denoiser: Denoiser, task: Fit, conditions: Tensor, seed: int) -> Tensor:
    """log p(y | k) up to a constant, float64 (B,), of conditions (B,)."""
    count, operator = len(conditions), task.operator
    schedule = SCHEDULES[denoiser.schedule]
    y = task.y.expand(count, *task.y.shape[1:])

    def denoised(x_t: Tensor, t: Tensor) -> Tensor:
        return denoiser(x_t, t.expand(count), condition=conditions).clamp(-1, 1)

    one = torch.ones((), dtype=torch.float64)
    mean = denoised(torch.zeros(count, *denoiser.shape), one)
    x_0 = (mean + pseudo_inverse(operator, y - operator.apply(mean), iterations=20)).clamp(-1, 1)
    total = torch.zeros(count, dtype=torch.float64)
    for number, log_snr in enumerate(LEVELS):
        t = time_of(schedule, torch.tensor(log_snr, dtype=torch.float64))
        level = denoiser.noise_level(t)
        if level.sigma / level.alpha < task.std:
            continue
        noise = rng.normal_each([0], denoiser.shape, seed, "inference", number)
        x_t = process.jump(x_0, noise.expand_as(x_0), level.alpha, level.sigma)
        error = (operator.apply(denoised(x_t, t)) - y).double().square().flatten(1).sum(1)
        total -= EACH * level.log_snr.exp() / 2 * error
    return total


def chosen(log_p: Tensor, samples: Sequence[int], seed: int) -> Tensor:
    """A condition (B,) for each sample, with probabilities p(k). A function of seed and index."""
    share = log_p.exp().cumsum(0)
    u = rng.uniform_each(samples, (1,), seed, "inferred condition")[:, 0]
    return torch.searchsorted(share / share[-1], u, right=True).clamp(max=len(share) - 1)
