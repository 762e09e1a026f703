"""From an image to its noise and back, along the probability-flow ODE; and walks between images.

The ODE gives every image one noise, and every noise one image: Song et al. 2021 (arXiv:2011.13456),
section 4.3. It is followed by Heun's method, without clipping.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from undiffuse.base.lazy import lazy
from undiffuse.diffusion.process import expand
from undiffuse.diffusion.samplers import heun
from undiffuse.diffusion.schedule import SCHEDULES, noise_level, time_of
from undiffuse.diffusion.walk import walk

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from undiffuse.diffusion.guidance import Denoise
else:
    torch = lazy("torch")

LEVEL = 10.0
"""The log-SNR at which an image is read. Its noise is below one 8-bit value there."""

STEPS = 100
"""Steps of Heun's method, with two network calls each."""


def encode(
    denoise: Denoise, images: Tensor, schedule: str, *, steps: int = STEPS, level: float = LEVEL
) -> Tensor:
    """The noise (B, C, H, W) of images float (B, C, H, W). It is standard normal if all is exact.

    denoise: (x_t, t ()) -> x_0_hat. level: the log-SNR at which the image is read."""
    times = ode_times(schedule, steps, level).flip(0)
    first = noise_level(SCHEDULES[schedule], times[0])
    last = noise_level(SCHEDULES[schedule], times[-1])
    x = along(denoise, expand(first.alpha, images) * images, times, schedule)
    return x / expand((last.alpha**2 + last.sigma**2).sqrt(), x)


def decode(
    denoise: Denoise, noise: Tensor, schedule: str, *, steps: int = STEPS, level: float = LEVEL
) -> Tensor:
    """The images (B, C, H, W) of noises (B, C, H, W): the inverse of `encode`."""
    times = ode_times(schedule, steps, level)
    first = noise_level(SCHEDULES[schedule], times[0])
    last = noise_level(SCHEDULES[schedule], times[-1])
    scale = (first.alpha**2 + first.sigma**2).sqrt()
    x = along(denoise, expand(scale, noise) * noise, times, schedule)
    return x / expand(last.alpha, x)


def ode_times(schedule: str, steps: int, level: float) -> Tensor:
    """The times (steps + 1,) from 1 to that of the log-SNR `level`.

    They are equal steps of arctan(sigma / alpha), and finer towards the image, where the ODE is
    stiff: the angle is a cube."""
    found = SCHEDULES[schedule]
    target = torch.tensor(level, dtype=torch.float64)
    last = time_of(found, target).clamp(min=1e-9)
    alpha, sigma = found(torch.stack([torch.ones((), dtype=torch.float64), last]))
    high, low = torch.atan2(sigma, alpha) ** (1 / 3)
    angles = torch.linspace(1, 0, steps + 1, dtype=torch.float64) * (high - low) + low
    tangent = torch.tan((angles**3).clamp(max=torch.pi / 2))
    times = time_of(found, -2 * tangent.log())
    times[0], times[-1] = 1.0, last
    return times


def along(denoise: Denoise, x: Tensor, times: Tensor, schedule: str) -> Tensor:
    """x at the last time, by Heun's method from the first."""

    def no_noise(index: int, number: int = 0) -> Tensor:
        raise AssertionError("the ODE needs no noise")

    *_, end = walk(denoise, x, times, heun, schedule=SCHEDULES[schedule], noise=no_noise)
    return end.x_s


def between(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Noises (n, C, H, W) on the way from a to b, each (C, H, W): spherical interpolation.

    share: (n,) from 0 to 1. Each noise has the size that noise has: a straight line's would be too
    small in the middle. Shoemake 1985; White 2016 (arXiv:1609.04468)."""
    size_a, size_b = a.norm(), b.norm()
    angle = ((a * b).sum() / (size_a * size_b)).clamp(-1, 1).acos()
    share = share.to(a).reshape(-1, 1, 1, 1)
    if angle.sin() < 1e-6:
        return a + share * (b - a)
    size = size_a + share * (size_b - size_a)
    on_a, on_b = ((1 - share) * angle).sin() / angle.sin(), (share * angle).sin() / angle.sin()
    return size * (on_a * a / size_a + on_b * b / size_b)
