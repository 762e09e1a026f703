"""Sampling: images from noise, by a denoiser and a sampler.

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
from undiffuse.diffusion.grids import GRIDS, time_grid
from undiffuse.diffusion.guidance import GUIDANCES, Counted, clipped, in_interval, once
from undiffuse.diffusion.schedule import LOG_SNR_BOUND, SCHEDULES
from undiffuse.diffusion.step import SAMPLERS
from undiffuse.diffusion.tasks import NEW, Task
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

RENOISING = ("ddim", "euler")
"""The samplers that take x_s from x_0_hat and eps, so that eps may be another one."""

MOST_GUIDANCE = 1_000_000
"""The largest guidance. Far above any use, and far below where float32 overflows."""


@dataclass(frozen=True)
class Sampling:
    """The options of sampling.

    sampler, grid: specs such as "ddim:eta=0.5" and "uniform". steps: the number of steps; None for
    as many as `calls` network calls for each image allow. guidance: the scale of classifier-free
    guidance; 1 is none. guidance_interval: the log-SNRs from and to which it is used.
    guidance_method: a spec such as "apg:eta=0.5". clip: whether x_0_hat is clipped to [-1, 1].
    seed: the same seed gives the same images. precision: of the network's arithmetic, "fp32" or
    "bf16"."""

    sampler: str = "ddpm"
    steps: int | None = None
    calls: int = 25
    grid: str = "uniform"
    guidance: float = 1.0
    guidance_interval: tuple[float, float] = EVERYWHERE
    guidance_method: str = "cfg"
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
        if self.guidance != 1 and not (denoiser.conditioning.guidable or denoiser.weaker):
            raise UserError(unguidable(denoiser))
        GUIDANCES.check(self.guidance_method)
        if self.renoises and self.sampler.partition(":")[0] not in RENOISING:
            raise UserError(
                f"guidance method cfg++ changes the noise that a sampler puts back, and "
                f"{self.sampler} computes none; use {' or '.join(RENOISING)}"
            )
        if self.precision not in ("fp32", "bf16"):
            raise UserError(f"precision must be fp32 or bf16, not '{self.precision}'")
        # Two steps with a network that does nothing find unusable options.
        network_calls(denoiser, self, 2)
        found = self.with_steps(denoiser)
        assert found.steps is not None
        time_grid(self.grid, denoiser.schedule, found.steps)
        return found

    @property
    def renoises(self) -> bool:
        """Whether the noise that a sampler puts back is that of the unconditional prediction."""
        return self.guidance_method.partition(":")[0] == "cfg++"

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
    task: Task = NEW,
) -> Iterator[Frame]:
    """Sample the images with indices `samples` in one batch. Yields a frame for each step.

    classes: the class number (B,) of each image, for a model with classes. condition: the number of
    each image's condition, (B,); by default one is sampled. task: new images start from pure noise
    with the variance of x_t at t = 1. Raises UserError for unknown names and impossible values."""
    sampling = sampling.with_steps(denoiser)
    assert sampling.steps is not None
    step_of = task.steps(SAMPLERS[sampling.sampler], samples, clip=sampling.clip)
    times = time_grid(sampling.grid, denoiser.schedule, sampling.steps)
    if condition is None:
        condition = denoiser.conditioning.sample(classes, samples, sampling.seed)
    schedule = SCHEDULES[denoiser.schedule]
    start = rng.normal_each(samples, denoiser.shape, sampling.seed, "start", 0)
    x, times = task.begin(start, times, schedule, samples)

    def noise(step: int, number: int = 0) -> Tensor:
        purpose = f"sampling, noise {number}" if number else "sampling"
        return rng.normal_each(samples, denoiser.shape, sampling.seed, purpose, step).to(x)

    clip = sampling.clip and not task.clips
    denoise, renoise = denoise_functions(denoiser, condition, replace(sampling, clip=clip))
    return walk(denoise, x, times, step_of, schedule=schedule, noise=noise, renoise=renoise)


def denoise_function(denoiser: Denoiser, condition: Tensor | None, sampling: Sampling) -> Denoise:
    """The denoise function (x_t, t ()) -> x_0_hat, with guidance and clipping as in `sampling`.

    condition: the condition (B,) of each image, or None."""
    return denoise_functions(denoiser, condition, sampling)[0]


def denoise_functions(
    denoiser: Denoiser, condition: Tensor | None, sampling: Sampling
) -> tuple[Denoise, Denoise | None]:
    """(the denoise function; what eps is derived from, where that is another one)."""

    def quick(denoiser: Denoiser, condition: Tensor | None) -> Denoise:
        if sampling.precision != "fp32":  # with "fp32" a network may also compute in float64
            network = in_precision(denoiser.network, sampling.precision)
            denoiser = replace(denoiser, network=network)
        return lambda x_t, t: denoiser(x_t, t.expand(len(x_t)), condition=condition)

    def contains(t: Tensor) -> bool:
        low, high = sampling.guidance_interval
        return low <= denoiser.noise_level(t).log_snr.item() <= high

    def bounded(denoise: Denoise) -> Denoise:
        return clipped(denoise) if sampling.clip else denoise

    conditional = quick(denoiser, condition)
    nothing_to_guide_by = condition is None and denoiser.weaker is None
    if nothing_to_guide_by or (sampling.guidance == 1 and not sampling.renoises):
        return bounded(conditional), None
    if denoiser.weaker is None:
        away = once(quick(denoiser, None))
    else:
        away = once(quick(denoiser.weaker, condition))
    guide = GUIDANCES[sampling.guidance_method]
    everywhere = guide(conditional, away, sampling.guidance)
    guided = bounded(in_interval(everywhere, conditional, contains))
    if not sampling.renoises:
        return guided, None
    guided = once(guided)
    return guided, in_interval(bounded(away), guided, contains)


def sample(
    denoiser: Denoiser,
    samples: Sequence[int],
    sampling: Sampling = Sampling(),
    *,
    classes: Tensor | None = None,
    condition: Tensor | None = None,
    task: Task = NEW,
) -> Tensor:
    """Sample the images with indices `samples`: float (B, C, H, W).

    The members of the team share the images. Others and errors: see `trajectory`."""

    sampling = sampling.with_steps(denoiser)  # once, and not for each part

    def of_part(rows: Tensor) -> Tensor:
        part, each = [samples[row] for row in rows.tolist()], task.particles
        own = None if condition is None else condition[rows]
        if own is None:
            of_rows = None if classes is None else classes[rows]
            own = denoiser.conditioning.sample(of_rows, part, sampling.seed)
        if own is not None:
            own = own.repeat_interleave(each)
        every = [sample * each + number for sample in part for number in range(each)]
        frames = trajectory(denoiser, every, sampling, condition=own, task=task)
        return task.result(frames, every)[::each]

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
    condition: Tensor | None = None,
    task: Task = NEW,
    batch_size: int = 250,
) -> Iterator[Tensor]:
    """Sample the images with indices 0 to n - 1. Yields batches, float (B, C, H, W).

    classes, condition: of each image, (n,). Others and errors: see `trajectory`."""
    sampling = sampling.with_steps(denoiser)  # once, and not for each batch
    for part in torch.arange(n).split(batch_size):
        yield sample(
            denoiser,
            part.tolist(),
            sampling,
            classes=None if classes is None else classes[part],
            condition=None if condition is None else condition[part],
            task=task,
        )


def network_calls(denoiser: Denoiser, sampling: Sampling, steps: int) -> int:
    """How many network calls `steps` steps of sampling take for each image.

    They are counted, with a network that does nothing."""
    network = Counted(lambda x, _: torch.zeros_like(x))

    def without_network(denoiser: Denoiser) -> Denoiser:
        return replace(
            denoiser, shape=(1, 1, 1), network=lambda x, log_snr, condition: network(x, log_snr)
        )

    weaker = None if denoiser.weaker is None else without_network(denoiser.weaker)
    idle = replace(without_network(denoiser), weaker=weaker)
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
