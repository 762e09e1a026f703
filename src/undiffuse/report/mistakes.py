"""Images of common mistakes, for an instructor: what a wrong line of code does."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from undiffuse.base import rng
from undiffuse.diffusion.denoiser import Denoiser
from undiffuse.diffusion.grids import time_grid
from undiffuse.diffusion.sampling import Sampling, denoise_function
from undiffuse.diffusion.schedule import SCHEDULES, chain
from undiffuse.diffusion.step import SAMPLERS
from undiffuse.diffusion.walk import walk
from undiffuse.training.probes import cycle

SHIFT = 0.06
"""By how much a wrong time is wrong."""


def noising(schedule: str, x_0: Tensor, steps: int = 1000) -> dict[str, Tensor]:
    """A chain of noise steps from the image x_0 (1, C, H, W), by (2) and by (2) as printed.

    Of each way the images (11, C, H, W) after 0, 100, ..., 1,000 steps."""
    tables, found = chain(SCHEDULES[schedule], steps), {}
    for name, power in (("(2)", 0.5), ("(2) as printed", 1.0)):
        x_t, shown = x_0, [x_0]
        for i in range(steps):
            eps = rng.normal(x_t.shape, 0, "report, chain", i)
            alpha, beta = tables.alpha[i].item(), tables.beta[i].item()
            x_t = alpha**0.5 * x_t + beta**power * eps
            if (i + 1) % (steps // 10) == 0:
                shown.append(x_t)
        found[name] = torch.cat(shown)
    return found


def sampling(denoiser: Denoiser, count: int = 12, steps: int = 25) -> dict[str, Tensor]:
    """Samples (count, C, H, W) of a model from the same noises: by (8), and with mistakes."""
    right, samples = Sampling("ddpm", steps=steps), range(count)
    classes = cycle(count, len(denoiser.conditioning.classes))
    condition = denoiser.conditioning.sample(classes, samples, right.seed)
    at_first = denoiser.noise_level(torch.ones(()))
    start = rng.normal_each(samples, denoiser.shape, right.seed, "start", 0)
    start = start * float((at_first.alpha**2 + at_first.sigma**2).sqrt())

    def sampled(options: Sampling, shift: float = 0.0) -> Tensor:
        denoise = denoise_function(denoiser, condition, options)
        *_, last = walk(
            lambda x_t, t: denoise(x_t, (t + shift).clamp(0.001, 1)),
            start,
            time_grid(options.grid, denoiser.schedule, steps),
            SAMPLERS[options.sampler],
            schedule=SCHEDULES[denoiser.schedule],
            noise=lambda i: rng.normal_each(samples, denoiser.shape, right.seed, "sampling", i),
        )
        return last.x_s

    return {
        "(8)": sampled(right),
        "(8) as printed": sampled(replace(right, sampler="ddpm-printed")),
        "(7)": sampled(replace(right, sampler="posterior-mean")),
        "time too early": sampled(right, -SHIFT),
        "time too late": sampled(right, SHIFT),
        "not clipped": sampled(replace(right, clip=False)),
    }
