"""Images of common mistakes, for an instructor: what a wrong line of code does."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from undiffuse.base import rng
from undiffuse.diffusion.denoiser import Denoiser
from undiffuse.diffusion.sampling import Sampling, trajectory
from undiffuse.diffusion.schedule import SCHEDULES, chain
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


@dataclass(frozen=True)
class Mistimed(Denoiser):
    """A denoiser that is told a wrong time, later by `shift`."""

    shift: float = 0.0

    def __call__(self, x_t: Tensor, t: Tensor, *, condition: Tensor | None = None) -> Tensor:
        return super().__call__(x_t, (t + self.shift).clamp(0.001, 1), condition=condition)


def sampling(denoiser: Denoiser, count: int = 12, steps: int = 25) -> dict[str, Tensor]:
    """Samples (count, C, H, W) of a model from the same noises: by (8), and with mistakes."""
    right = Sampling("ddpm", steps=steps)
    classes = cycle(count, len(denoiser.conditioning.classes))

    def sampled(options: Sampling, shift: float = 0.0) -> Tensor:
        mistimed = Mistimed(**vars(denoiser), shift=shift)
        *_, last = trajectory(mistimed, range(count), options, classes=classes)
        return last.x_s

    return {
        "(8)": sampled(right),
        "(8) as printed": sampled(replace(right, sampler="ddpm-printed")),
        "(7)": sampled(replace(right, sampler="posterior-mean")),
        "time too early": sampled(right, -SHIFT),
        "time too late": sampled(right, SHIFT),
        "not clipped": sampled(replace(right, clip=False)),
    }
