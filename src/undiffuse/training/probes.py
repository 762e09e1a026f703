"""Training: `fit`, one visible loop that yields what happens as events.

Who reads the events (the console, the run folder) decides what to do with them; the loop knows neither. All of its
randomness is a function of (seed, step), so a state at step n is the same whichever sessions led there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from undiffuse.base import rng
from undiffuse.base.pixels import to_float, to_uint8
from undiffuse.data.splits import random_labels, random_part
from undiffuse.diffusion.denoiser import Denoiser
from undiffuse.diffusion.objective import Problem, loss, regression
from undiffuse.diffusion.sampling import draw, draw_batches, steps_within
from undiffuse.diffusion.times import draw_times
from undiffuse.training.events import Validated

if TYPE_CHECKING:
    from torch import Tensor

    from undiffuse.data.dataset import Dataset
    from undiffuse.training.config import Config

VALIDATION_IMAGES = 512


QUICK_CALLS = 8  # of the network, at most, for a sample that is scored: scores are compared with one another only


LEVELS = 8  # of noise, for which the validation loss is given


@torch.no_grad()
def validate(
    denoiser: Denoiser,
    weighting: Callable[[Tensor], Tensor],
    distribution: Callable[[Tensor], Tensor],
    config: Config,
    held_out: Dataset,
    step: int,
) -> Validated:
    """The loss (6) on held-out images, at times that cover evenly what training draws from; the same ones at every call."""
    part = random_part(held_out, VALIDATION_IMAGES, config.seed)
    x_0, n = to_float(part.images), len(part)
    noise = rng.normal(x_0.shape, config.seed, "validation noise")
    t = draw_times(distribution, n, rng.stream(config.seed, "validation times"), stratified=True, steps=config.chain)
    problem = regression(denoiser, weighting, x_0, noise, t)
    label = part.labels if denoiser.labels else None
    losses = torch.cat(
        [
            loss(denoiser.network, Problem(*(x[rows] for x in problem)), None if label is None else label[rows])
            for rows in torch.split(torch.arange(n), config.batch_size)
        ]
    )
    bins = [rows for rows in t.argsort().tensor_split(LEVELS) if len(rows)]
    levels = [(problem.log_snr[rows].mean().item(), losses[rows].mean().item()) for rows in bins]
    return Validated(step, losses.mean().item(), levels)


def snapshot(denoiser: Denoiser, config: Config, step: int) -> Tensor:
    """Samples by the run's own sampler, uint8 (N, C, H, W); classes, where there are some, cycle."""
    count, drawing = config.snapshot_images, config.drawing(step, denoiser.told)
    label = cycle_labels(count, len(denoiser.classes)) if denoiser.classes else None
    steps = steps_within(config.sample_calls, denoiser, **drawing)
    return to_uint8(draw(denoiser, range(count), label=label, steps=steps, seed=config.seed, **drawing))


def score_plan(steps: int, snapshots: Sequence[int], config: Config, counts: Sequence[int]) -> tuple[int, list[int]]:
    """(images of a score, the snapshots at which there is one), so that all scores take at most config.score_share of the
    arithmetic of a run of `steps` steps: as often as possible, then of as many images as possible, from `counts`.

    A forward pass with its backward pass is counted as two: less than it takes, so that the share is not exceeded."""
    images = config.score_share * 2 * steps * config.batch_size / min(config.sample_calls, QUICK_CALLS)
    after = [step for step in snapshots if step > 0]
    if not after or not counts or images < 2 * min(counts):
        return 0, []
    often = min(
        len(after), int(images // min(counts)) - 1
    )  # one more, as the run may end at another step than foreseen
    n = max(count for count in counts if (often + 1) * count <= images)
    return n, after[len(after) - 1 :: -max(1, math.ceil(len(after) / often))][::-1]


def quick_samples(denoiser: Denoiser, config: Config, training: Dataset, n: int, step: int) -> Iterator[Tensor]:
    """n images for a score by the run's own sampler in few steps, in batches uint8 (B, C, H, W); classes, where there are some, at random from
    the training set's."""
    drawing = config.drawing(step, denoiser.told)
    steps = steps_within(min(config.sample_calls, QUICK_CALLS), denoiser, **drawing)
    label = random_labels(training, n, config.seed, "score labels") if denoiser.classes else None
    if label is not None and denoiser.groups:
        label = torch.tensor(denoiser.class_of)[label]
    yield from map(to_uint8, draw_batches(denoiser, n, label=label, steps=steps, seed=config.seed, **drawing))


def cycle_labels(count: int, classes: int) -> Tensor:
    return torch.arange(count) % classes
