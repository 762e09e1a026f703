"""Sampling: from noise to images, one step of time at a time.

A time grid is a list of K + 1 times, t_0 = 1 > t_1 > ... > t_K = 0. A sampler is a function from a `Step`, which
holds x_t and the times t > s, to x_s. The step asks the denoiser for x_0_hat when it is first read, counts the call,
and derives eps from it, so that a sampler is the line of mathematics that it is in the papers.

To add a sampler: a function Step -> x_s with `@SAMPLERS.add`. To add a grid: a function (schedule, K) -> times with
`@GRIDS.add`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from undiffuse.base import rng
from undiffuse.base.rng import stream
from undiffuse.diffusion import process
from undiffuse.diffusion.grids import time_grid
from undiffuse.diffusion.samplers import SAMPLERS, Guide, Step

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from undiffuse.diffusion.denoiser import Denoiser


@dataclass(frozen=True)
class Frame:
    """One finished step of a batch: from x_t at time t, by the guess x_0, to x_s at time s; images (B, C, H, W).

    calls: network calls so far."""

    index: int
    t: float
    s: float
    x_t: Tensor
    x_0: Tensor
    x_s: Tensor
    calls: int


def trajectory(
    denoiser: Denoiser,
    samples: Sequence[int],
    *,
    sampler: str = "ddpm",
    steps: int = 25,
    grid: str = "uniform",
    seed: int = 0,
    label: Tensor | None = None,
    guidance: float = 1.0,
    clip: bool = True,
) -> Iterator[Frame]:
    """Draw the images with indices `samples` in one batch; yields each of the `steps` steps, the last ending in the images.

    label: (B,) classes, for a denoiser with classes. The groups of one with groups are drawn by their sizes. The start is pure noise of the size that x_t has at t = 1.
    An image depends on seed and index, and not on its batch. Raises UserError for unknown names and impossible values."""
    import torch

    classes = len(denoiser.classes)
    if (label is None) == bool(classes):
        raise ValueError("a denoiser with classes takes some, one without takes none")
    if label is not None and not 0 <= label.min() <= label.max() < classes:
        raise ValueError(f"the labels of {classes} classes are 0 to {classes - 1}")
    if denoiser.groups:
        label = drawn_groups(shares(denoiser, label), samples, seed)
    step_of = SAMPLERS[sampler]
    times = time_grid(grid, denoiser.schedule, steps)
    guide = Guide(denoiser, samples, seed, label, guidance, clip)
    levels = [denoiser.noise_level(t) for t in times]
    start = (levels[0].alpha ** 2 + levels[0].sigma ** 2).sqrt()
    x_t = rng.normal_each(samples, denoiser.shape, seed, "start", 0)
    x_t = process.expand(start, x_t) * x_t
    previous = None
    for index in range(steps):
        step = Step(guide, index, x_t, times[index], times[index + 1], levels[index], levels[index + 1], previous)
        with torch.no_grad():
            x_s = step_of(step)
        yield Frame(index, step.t.item(), step.s.item(), x_t, step.x_0, x_s, guide.calls)
        x_t, previous = x_s, (step.x_0, step.at_t)


def shares(denoiser: Denoiser, label: Tensor | None) -> Tensor:
    """How often each group is drawn: (K,), or, for images of classes (B,), (B, K). As often as it is large; where a class has no
    training images, all of its groups alike."""
    import torch

    sizes = torch.tensor(denoiser.groups, dtype=torch.float64)
    return sizes if label is None else (sizes + 1e-6) * (torch.tensor(denoiser.class_of) == label[:, None])


def steps_within(calls: int, denoiser: Denoiser, **options: Any) -> int:
    """The most steps, at least 1, that take at most `calls` network calls; options: `trajectory`'s.

    They are counted in two rehearsals with a network that does nothing: calls grow evenly with the steps."""

    def counted(steps: int) -> int:
        *_, last = trajectory(idle, [0], steps=steps, label=label, **options)
        return last.calls

    import torch

    idle = replace(denoiser, network=lambda x, log_snr, label: torch.zeros_like(x))
    label = torch.zeros(1, dtype=torch.long) if denoiser.classes else None
    one, two = counted(1), counted(2)
    return max(1, 1 + (calls - one) // (two - one))


def draw_many(denoiser: Denoiser, n: int, **options: Any) -> Tensor:
    """The images with indices 0 to n - 1, float (n, C, H, W) in [-1, 1]; options: `draw_batches`'."""
    import torch

    return torch.cat(list(draw_batches(denoiser, n, **options)))


def draw_batches(
    denoiser: Denoiser, n: int, *, label: Tensor | None = None, batch_size: int = 250, **options: Any
) -> Iterator[Tensor]:
    """The images with indices 0 to n - 1, in batches float (B, C, H, W) in [-1, 1]; options: `trajectory`'s."""
    import torch

    for part in torch.arange(n).split(batch_size):
        yield draw(denoiser, part.tolist(), label=None if label is None else label[part], **options)


def draw(denoiser: Denoiser, samples: Sequence[int], **options: Any) -> Tensor:
    """The images with indices `samples` as one batch, float (B, C, H, W) in [-1, 1]; options: `trajectory`'s."""
    *_, last = trajectory(denoiser, samples, **options)
    return last.x_s


def drawn_groups(sizes: Tensor, samples: Sequence[int], seed: int) -> Tensor:
    """The group (B,) of each sample, drawn as often as its size says; a function of seed and sample alone.

    sizes: of the groups, (K,), or (B, K) with 0 for those that a sample can't be in."""
    import torch

    share = sizes.double().cumsum(-1)
    share = (share / share[..., -1:]).expand(len(samples), -1).contiguous()
    u = torch.tensor([[stream(seed, "group", sample).random()] for sample in samples], dtype=torch.float64)
    return torch.searchsorted(share, u, right=True)[:, 0]
