"""Sampling: new images from pure noise, by a denoiser and a sampler.

An image is a function of the options, the seed and its index. It does not depend on the batch that
it is sampled in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from undiffuse.base import rng
from undiffuse.base.engine import in_precision
from undiffuse.base.errors import UserError
from undiffuse.base.lazy import lazy
from undiffuse.base.team import side_by_side
from undiffuse.diffusion import process
from undiffuse.diffusion.grids import GRIDS, time_grid
from undiffuse.diffusion.guidance import Counted, classifier_free, clipped, in_interval
from undiffuse.diffusion.schedule import LOG_SNR_BOUND, SCHEDULES
from undiffuse.diffusion.step import SAMPLERS
from undiffuse.diffusion.walk import Frame, walk

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from torch import Tensor

    from undiffuse.diffusion.denoiser import Denoiser
    from undiffuse.diffusion.guidance import Denoise
else:
    torch = lazy("torch")


AT_ONCE, WORTH_SHARING = 64, 16
"""The most images that a member of the team samples at once, and the fewest that are shared."""

EVERYWHERE = (-LOG_SNR_BOUND, LOG_SNR_BOUND)
"""All log-SNRs."""

MOST_GUIDANCE = 1_000_000
"""The largest guidance. Far above any use, and far below where float32 overflows."""


@dataclass(frozen=True)
class Sampling:
    """The options of sampling.

    sampler, grid: specs such as "ddim:eta=0.5" and "uniform". steps: the number of steps; None for
    as many as `calls` network calls for each image allow. guidance: the scale of classifier-free
    guidance; 1 is none. guidance_interval: the log-SNRs from and to which it is used. clip:
    whether x_0_hat is clipped to [-1, 1]. seed: the same seed gives the same images. precision: of
    the network's arithmetic, "fp32" or "bf16"."""

    sampler: str = "ddpm"
    steps: int | None = None
    calls: int = 25
    grid: str = "uniform"
    guidance: float = 1.0
    guidance_interval: tuple[float, float] = EVERYWHERE
    clip: bool = True
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"

    def checked(self, denoiser: Denoiser) -> Sampling:
        """The same options with the number of steps filled in.

        Raises UserError for unknown names, and for what this denoiser cannot do."""
        SAMPLERS.check(self.sampler)
        GRIDS.check(self.grid)
        if not 0 <= self.guidance <= MOST_GUIDANCE:
            raise UserError(f"guidance must be from 0 to {MOST_GUIDANCE:,}, not {self.guidance:g}")
        low, high = self.guidance_interval
        if not -math.inf < low <= high < math.inf:
            raise UserError(
                f"guidance_interval must be two finite log-SNRs, the lower first, not {low:g} and "
                f"{high:g}"
            )
        if self.guidance != 1 and not denoiser.conditioning.guidable:
            raise UserError(unguidable(denoiser))
        if self.precision not in ("fp32", "bf16"):
            raise UserError(f"precision must be fp32 or bf16, not '{self.precision}'")
        # Two steps with a network that does nothing find unusable options.
        network_calls(denoiser, self, 2)
        found = self.with_steps(denoiser)
        assert found.steps is not None
        time_grid(self.grid, denoiser.schedule, found.steps)
        return found

    def with_steps(self, denoiser: Denoiser) -> Sampling:
        """The same options with the number of steps: as many as `calls` allow, unless it is set."""
        if self.steps is not None:
            return self
        return replace(self, steps=steps_within(self.calls, denoiser, self))


def unguidable(denoiser: Denoiser) -> str:
    """The error message that says why a denoiser cannot be guided, and what to do."""
    if denoiser.conditioning.count:
        return (
            "this model was trained with condition_dropout=0, so it has no unconditional "
            "prediction; train one with condition_dropout=0.1"
        )
    return (
        "this model was trained without classes or clusters, so there is nothing to guide by; "
        "train one with conditional=True"
    )


def trajectory(
    denoiser: Denoiser,
    samples: Sequence[int],
    sampling: Sampling = Sampling(),
    *,
    classes: Tensor | None = None,
    condition: Tensor | None = None,
) -> Iterator[Frame]:
    """Sample the images with indices `samples` in one batch. Yields a frame for each step.

    classes: the class number (B,) of each image, for a model with classes. condition: the number of
    each image's condition, (B,); by default one is sampled. The start is pure noise with the
    variance of x_t at t = 1. Raises UserError for unknown names and impossible values."""
    sampling = sampling.with_steps(denoiser)
    assert sampling.steps is not None
    step_of = SAMPLERS[sampling.sampler]
    times = time_grid(sampling.grid, denoiser.schedule, sampling.steps)
    if condition is None:
        condition = denoiser.conditioning.sample(classes, samples, sampling.seed)
    start = denoiser.noise_level(times[0])
    x = rng.normal_each(samples, denoiser.shape, sampling.seed, "start", 0)
    x = process.expand((start.alpha**2 + start.sigma**2).sqrt(), x) * x

    def noise(step: int, number: int = 0) -> Tensor:
        purpose = f"sampling, noise {number}" if number else "sampling"
        return rng.normal_each(samples, denoiser.shape, sampling.seed, purpose, step).to(x)

    schedule = SCHEDULES[denoiser.schedule]
    denoise = denoise_function(denoiser, condition, sampling)
    return walk(denoise, x, times, step_of, schedule=schedule, noise=noise)


def denoise_function(denoiser: Denoiser, condition: Tensor | None, sampling: Sampling) -> Denoise:
    """The denoise function (x_t, t ()) -> x_0_hat, with guidance and clipping as in `sampling`.

    condition: the condition (B,) of each image, or None."""
    quick = denoiser
    if sampling.precision != "fp32":  # with "fp32" a network may also compute in float64
        quick = replace(denoiser, network=in_precision(denoiser.network, sampling.precision))

    def conditional(x_t: Tensor, t: Tensor) -> Tensor:
        return quick(x_t, t.expand(len(x_t)), condition=condition)

    def unconditional(x_t: Tensor, t: Tensor) -> Tensor:
        return quick(x_t, t.expand(len(x_t)))

    def contains(t: Tensor) -> bool:
        low, high = sampling.guidance_interval
        return low <= denoiser.noise_level(t).log_snr.item() <= high

    guided: Denoise = conditional
    if condition is not None and sampling.guidance != 1:
        everywhere = classifier_free(conditional, unconditional, sampling.guidance)
        guided = in_interval(everywhere, conditional, contains)
    return clipped(guided) if sampling.clip else guided


def sample(
    denoiser: Denoiser,
    samples: Sequence[int],
    sampling: Sampling = Sampling(),
    *,
    classes: Tensor | None = None,
) -> Tensor:
    """Sample the images with indices `samples`: float (B, C, H, W).

    The members of the team share the images. classes and errors: see `trajectory`."""

    sampling = sampling.with_steps(denoiser)  # once, and not for each part

    def of_part(rows: Tensor) -> Tensor:
        own = None if classes is None else classes[rows]
        part = [samples[row] for row in rows.tolist()]
        *_, last = trajectory(denoiser, part, sampling, classes=own)
        return last.x_s

    count = len(samples)
    # An even number of parts, since a team has two members.
    parts = 2 * math.ceil(count / (2 * AT_ONCE)) if count >= WORTH_SHARING else 1
    return torch.cat(side_by_side(of_part, torch.arange(count).tensor_split(parts)))


def sample_batches(
    denoiser: Denoiser,
    n: int,
    sampling: Sampling = Sampling(),
    *,
    classes: Tensor | None = None,
    batch_size: int = 250,
) -> Iterator[Tensor]:
    """Sample the images with indices 0 to n - 1. Yields batches, float (B, C, H, W).

    classes: the class number (n,) of each image, for a model with classes. Errors: see
    `trajectory`."""
    sampling = sampling.with_steps(denoiser)  # once, and not for each batch
    for part in torch.arange(n).split(batch_size):
        own = None if classes is None else classes[part]
        yield sample(denoiser, part.tolist(), sampling, classes=own)


def network_calls(denoiser: Denoiser, sampling: Sampling, steps: int) -> int:
    """How many network calls `steps` steps of sampling take for each image.

    They are counted, with a network that does nothing."""
    network = Counted(lambda x, _: torch.zeros_like(x))
    idle = replace(
        denoiser, shape=(1, 1, 1), network=lambda x, log_snr, condition: network(x, log_snr)
    )
    classes = torch.zeros(1, dtype=torch.long) if denoiser.conditioning.classes else None
    rehearsed = replace(sampling, steps=steps, precision="fp32")
    for _ in trajectory(idle, [0], rehearsed, classes=classes):
        pass
    return network.calls


def steps_within(calls: int, denoiser: Denoiser, sampling: Sampling) -> int:
    """The largest number of steps that takes at most `calls` network calls for each image.

    It is at least 1. It is found by bisection, since more steps take more calls."""
    low, high = 1, max(2, calls + 1)  # `high` steps take more than `calls` calls
    while high - low > 1:
        middle = (low + high) // 2
        fits = network_calls(denoiser, sampling, middle) <= calls
        low, high = (middle, high) if fits else (low, middle)
    return low
