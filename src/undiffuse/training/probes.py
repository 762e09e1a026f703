"""Measurements during training: held-out loss, snapshots, and the quality of samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import torch

from undiffuse.base import rng
from undiffuse.base.pixels import to_float, to_uint8
from undiffuse.base.team import side_by_side
from undiffuse.data.splits import random_labels, random_rows_of
from undiffuse.diffusion.objectives import part_of
from undiffuse.diffusion.sampling import Sampling, sample, sample_batches
from undiffuse.training.records import Validation

if TYPE_CHECKING:
    from torch import Tensor

    from undiffuse.diffusion.denoiser import Denoiser
    from undiffuse.training.config import Config
    from undiffuse.training.experiment import Experiment

VALIDATION_IMAGES = 512  # at most
LEVELS = 8  # of noise, for which the held-out loss is given
QUICK_CALLS = 8
"""Network calls for a sample whose quality is measured. Such values compare among themselves."""


class Scorer(Protocol):
    """Measures the quality of images uint8 (n, C, H, W): returns their Frechet distance.

    floors: number of images -> the distance of as many real images."""

    @property
    def floors(self) -> dict[int, float]: ...

    def __call__(self, images: Tensor) -> float: ...


@torch.no_grad()
def validate(experiment: Experiment, averaged: Denoiser, step: int, time: float) -> Validation:
    """The loss of the averaged weights on held-out images.

    The times cover the training's distribution evenly. Images, noise and times are the same at
    every call. time: seconds of the run, for the record."""
    config, part = experiment.config, experiment.held_out
    rows = random_rows_of(len(part), VALIDATION_IMAGES, config.seed)
    x_0, n = to_float(part.dataset.read(rows)), len(rows)
    noise = rng.normal_each(range(n), x_0.shape[1:], config.seed, "validation noise", 0)
    t = experiment.times(n, rng.stream(config.seed, "validation times"), True)
    condition = None if part.condition is None else part.condition[rows]
    batch = experiment.objective.prepare(x_0, noise, t, condition)

    @torch.no_grad()
    def loss_of(rows: Tensor) -> Tensor:
        return experiment.objective.loss(averaged.network, part_of(batch, rows))

    losses = side_by_side(loss_of, torch.arange(n).split(config.batch_size))
    loss, level = torch.cat(losses), averaged.noise_level(t).log_snr.float()
    bins = [rows for rows in t.argsort().tensor_split(LEVELS) if len(rows)]
    levels = [(level[rows].mean().item(), loss[rows].mean().item()) for rows in bins]
    return Validation(step, time, loss.mean().item(), levels)


def usual_sampling(config: Config, denoiser: Denoiser, step: int) -> Sampling:
    """The default options of sampling after `step` steps, with the run's seed."""
    return replace(config.sampling(step, denoiser.conditioning), seed=config.seed)


def snapshot(denoiser: Denoiser, config: Config, step: int) -> Tensor:
    """Samples with the default options, uint8 (N, C, H, W). Classes take turns."""
    count = config.snapshot_images
    classes = cycle(count, len(denoiser.conditioning.classes))
    sampling = usual_sampling(config, denoiser, step)
    return to_uint8(sample(denoiser, range(count), sampling, classes=classes))


def quality_plan(
    steps: int, snapshots: Sequence[int], config: Config, counts: Sequence[int]
) -> tuple[int, list[int]]:
    """(samples of a measurement of quality; the snapshots at which quality is measured).

    All measurements together take at most config.quality_share of the arithmetic of `steps` steps.
    Quality is measured as often as possible, and then with as many samples as possible. counts: the
    possible numbers of samples. A training step is counted as two network calls for each image,
    which is less than it takes."""
    seen = 2 * steps * config.batch_size
    images = config.quality_share * seen / min(config.sample_calls, QUICK_CALLS)
    after = [step for step in snapshots if step > 0]
    if not after or not counts or images < 2 * min(counts):
        return 0, []
    # One more, because the run may end at another step than expected.
    often = min(len(after), int(images // min(counts)) - 1)
    n = max(count for count in counts if (often + 1) * count <= images)
    return n, after[len(after) - 1 :: -max(1, math.ceil(len(after) / often))][::-1]


def quick_samples(
    denoiser: Denoiser, experiment: Experiment, n: int, step: int
) -> Iterator[Tensor]:
    """n samples with the run's own sampler and at most QUICK_CALLS network calls each.

    Yields batches uint8 (B, C, H, W). Classes are sampled at random from the training labels."""
    config = experiment.config
    sampling = usual_sampling(config, denoiser, step)
    sampling = replace(sampling, calls=min(sampling.calls, QUICK_CALLS))
    classes = None
    if denoiser.conditioning.classes:
        classes = random_labels(experiment.training.dataset, n, config.seed, "score labels")
    yield from map(to_uint8, sample_batches(denoiser, n, sampling, classes=classes))


def cycle(count: int, classes: int) -> Tensor | None:
    """Class numbers (count,) that take turns; None where there are no classes."""
    return torch.arange(count) % classes if classes else None
