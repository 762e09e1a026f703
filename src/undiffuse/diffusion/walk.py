"""The sampling loop: from any time to any other, over any denoise function.

Guidance, clipping, known pixels and measurements are wrappers of `denoise` (guidance.py). To edit
an image, start at a time below 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from undiffuse.base.lazy import lazy
from undiffuse.diffusion.schedule import Schedule, noise_level
from undiffuse.diffusion.step import REMEMBERED, Past, Step

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import Tensor

    from undiffuse.diffusion.guidance import Denoise
else:
    torch = lazy("torch")

Noise: TypeAlias = "Callable[..., Tensor]"


@dataclass(frozen=True)
class Frame:
    """One finished step of a batch: from x_t at time t to x_s at time s < t.

    index: the number of the step, from 0. x_0: the denoised images. Images are (B, C, H, W)."""

    index: int
    t: float
    s: float
    x_t: Tensor
    x_0: Tensor
    x_s: Tensor


def walk(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    step_of: Callable[[Step], Tensor],
    *,
    schedule: Schedule,
    noise: Noise,
    renoise: Denoise | None = None,
) -> Iterator[Frame]:
    """Take `x` (B, C, H, W) from times[0] to times[-1]. Yields a frame for each step.

    denoise: (x_t, t ()) -> x_0_hat. times: float64 (K + 1,), falling. step_of: a sampler.
    schedule: t -> (alpha, sigma). noise: (number of a step, 0, 1, ... within it) -> standard normal
    noise like x. renoise: as for `Step`."""
    levels = [noise_level(schedule, t) for t in times]
    steps, history = len(times) - 1, tuple[Past, ...]()
    for index in range(steps):
        step = Step(
            denoise, partial(noise, index), x, times[index], times[index + 1],
            levels[index], levels[index + 1], schedule, steps, history, renoise,
        )  # fmt: skip
        with torch.no_grad():
            x_s = step_of(step)
        yield Frame(index, times[index].item(), times[index + 1].item(), x, step.x_0, x_s)
        x, history = x_s, (step.present, *history)[:REMEMBERED]
