"""Sampling: new images from a denoiser, by a sampler, from pure noise.

An image is a function of (seed, index): never of the batch that it is sampled in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from undiffuse.base import rng
from undiffuse.base.engine import in_precision
from undiffuse.base.errors import UserError
from undiffuse.base.lazy import lazy
from undiffuse.diffusion import process
from undiffuse.diffusion.grids import GRIDS, time_grid
from undiffuse.diffusion.guidance import Counted, classifier_free, clipped
from undiffuse.diffusion.samplers import SAMPLERS
from undiffuse.diffusion.schedule import SCHEDULES
from undiffuse.diffusion.walk import Frame, walk

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from torch import Tensor

    from undiffuse.diffusion.denoiser import Denoiser
    from undiffuse.diffusion.guidance import Denoise
else:
    torch = lazy("torch")


@dataclass(frozen=True)
class Sampling:
    """How images are sampled.

    sampler, grid: specs such as "ddim:eta=0.5" and "uniform". steps: of time; None for as many as
    `calls` network calls an image allow. guidance: scale of classifier-free guidance; 1 is none.
    clip: x_0_hat to [-1, 1]. seed: the same seed gives the same images. precision: of the network's
    arithmetic, "fp32" or "bf16"."""

    sampler: str = "ddpm"
    steps: int | None = None
    calls: int = 25
    grid: str = "uniform"
    guidance: float = 1.0
    clip: bool = True
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"

    def checked(self, denoiser: Denoiser) -> Sampling:
        """The same with its number of steps. Raises UserError for what this denoiser cannot do."""
        SAMPLERS.check(self.sampler)
        GRIDS.check(self.grid)
        if not 0 <= self.guidance < math.inf:
            raise UserError(f"guidance must be a finite number of at least 0, not {self.guidance}")
        if self.guidance != 1 and not denoiser.conditioning.guidable:
            raise UserError(unguidable(denoiser))
        if self.precision not in ("fp32", "bf16"):
            raise UserError(f"precision must be fp32 or bf16, not '{self.precision}'")
        within = steps_within(self.calls, denoiser, self)  # a rehearsal: it finds unusable options
        steps = within if self.steps is None else self.steps
        time_grid(self.grid, denoiser.schedule, steps)
        return replace(self, steps=steps)


def unguidable(denoiser: Denoiser) -> str:
    """Why a denoiser cannot be guided."""
    if denoiser.conditioning.count:
        how, remedy = "with --condition-dropout 0: it has no unconditional prediction", "0.1"
        return f"this model was trained {how}; train one with --condition-dropout {remedy}"
    return (
        "this model was trained without classes or clusters, so there is nothing to guide by; "
        "train one with --conditional"
    )


def trajectory(
    denoiser: Denoiser,
    samples: Sequence[int],
    sampling: Sampling = Sampling(),
    *,
    classes: Tensor | None = None,
) -> Iterator[Frame]:
    """Sample the images with indices `samples` in one batch. Yields a frame for each step.

    classes: (B,) class numbers, for a model with classes. The start is pure noise of the size that
    x_t has at t = 1. Raises UserError for unknown names and impossible values."""
    steps = sampling.steps
    if steps is None:
        steps = steps_within(sampling.calls, denoiser, sampling)
    step_of = SAMPLERS[sampling.sampler]
    times = time_grid(sampling.grid, denoiser.schedule, steps)
    condition = denoiser.conditioning.sample(classes, samples, sampling.seed)
    start = denoiser.noise_level(times[0])
    x = rng.normal_each(samples, denoiser.shape, sampling.seed, "start", 0)
    x = process.expand((start.alpha**2 + start.sigma**2).sqrt(), x) * x

    def noise(step: int) -> Tensor:
        return rng.normal_each(samples, denoiser.shape, sampling.seed, "sampling", step).to(x)

    schedule = SCHEDULES[denoiser.schedule]
    denoise = denoise_function(denoiser, condition, sampling)
    return walk(denoise, x, times, step_of, schedule=schedule, noise=noise)


def denoise_function(denoiser: Denoiser, condition: Tensor | None, sampling: Sampling) -> Denoise:
    """(x_t, t ()) -> x_0_hat: of the conditions (B,), guided and clipped as `sampling` says."""
    quick = denoiser
    if sampling.precision != "fp32":  # networks of tests compute in float64
        quick = replace(denoiser, network=in_precision(denoiser.network, sampling.precision))

    def conditional(x_t: Tensor, t: Tensor) -> Tensor:
        return quick(x_t, t.expand(len(x_t)), condition=condition)

    def unconditional(x_t: Tensor, t: Tensor) -> Tensor:
        return quick(x_t, t.expand(len(x_t)))

    guided: Denoise = conditional
    if condition is not None:
        guided = classifier_free(conditional, unconditional, sampling.guidance)
    return clipped(guided) if sampling.clip else guided


def sample(
    denoiser: Denoiser,
    samples: Sequence[int],
    sampling: Sampling = Sampling(),
    *,
    classes: Tensor | None = None,
) -> Tensor:
    """The images with indices `samples`, as one batch, float (B, C, H, W). See `trajectory`."""
    *_, last = trajectory(denoiser, samples, sampling, classes=classes)
    return last.x_s


def sample_batches(
    denoiser: Denoiser,
    n: int,
    sampling: Sampling = Sampling(),
    *,
    classes: Tensor | None = None,
    batch_size: int = 250,
) -> Iterator[Tensor]:
    """The images with indices 0 to n - 1, in batches float (B, C, H, W). See `trajectory`."""
    for part in torch.arange(n).split(batch_size):
        own = None if classes is None else classes[part]
        yield sample(denoiser, part.tolist(), sampling, classes=own)


def network_calls(denoiser: Denoiser, sampling: Sampling, steps: int) -> int:
    """Network calls an image that so many steps take.

    They are counted in two rehearsals with a network that does nothing: calls grow evenly."""

    def counted(steps: int) -> int:
        network = Counted(lambda x, _: torch.zeros_like(x))
        idle = replace(
            denoiser, shape=(1, 1, 1), network=lambda x, log_snr, condition: network(x, log_snr)
        )
        classes = torch.zeros(1, dtype=torch.long) if denoiser.conditioning.classes else None
        rehearsed = replace(sampling, steps=steps, precision="fp32")
        for _ in trajectory(idle, [0], rehearsed, classes=classes):
            pass
        return network.calls

    one, two = counted(1), counted(2)
    return one + (steps - 1) * (two - one)


def steps_within(calls: int, denoiser: Denoiser, sampling: Sampling) -> int:
    """The most steps, at least 1, that take at most `calls` network calls."""
    one = network_calls(denoiser, sampling, 1)
    each = network_calls(denoiser, sampling, 2) - one
    return max(1, 1 + (calls - one) // each)
