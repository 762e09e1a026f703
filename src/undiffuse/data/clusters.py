"""Groups of similar images: labels for images that have none, and finer ones for those that have some, found by k-means.

A network that knows roughly what it is to draw learns faster, and draws each kind as often as the data have it. The groups take the
labels' place: q(x) = sum over g of q(g) q(x | g), with q(g) the share of training images in group g. Where the classes are to be asked
for, the groups are parts of them: q(x | c) = sum over g of q(g | c) q(x | g). Groups of features in place of labels: Bao et al. 2022
(arXiv:2212.00362), Hu et al. 2023 (arXiv:2210.06462); on images as plain as digits the pixels themselves will do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from undiffuse.base.pixels import images_at_once, to_float
from undiffuse.base.rng import stream
from undiffuse.data.dataset import Dataset

if TYPE_CHECKING:
    from torch import Tensor

FEWEST = 100
"""Images in a group, on average, at the least: with fewer images there are fewer groups."""


PIXELS = 14


ITERATIONS = 30


def k_means(images: Tensor, groups: int, seed: int) -> Tensor:
    """The group (N,), from 0, of each image uint8 (N, C, H, W), by Lloyd's algorithm on images of about 14 pixels a side.

    There are `groups` of them, or so few that each has FEWEST images on average; with less than two there is one."""
    import torch

    count = min(groups, len(images) // FEWEST)
    if count < 2:
        return torch.zeros(len(images), dtype=torch.long)
    x = coarse(images)  # (N, D)
    centres = x[torch.from_numpy(stream(seed, "k-means").permutation(len(x))[:count])]  # (K, D)
    for _ in range(ITERATIONS):
        nearest = (centres.square().sum(dim=1) - 2 * x @ centres.T).argmin(dim=1)  # (N,)
        sizes = torch.bincount(nearest, minlength=count)[:, None]
        sums = torch.zeros_like(centres).index_add_(0, nearest, x)
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
    return nearest


def k_means_within(
    images: Tensor, label: Tensor, classes: int, groups: int, seed: int
) -> tuple[Tensor, tuple[int, ...]]:
    """(the group (N,) of each image uint8 (N, C, H, W), the class of each group): `k_means` in each of the `classes`, that of an image
    being its label (N,), with an equal part of the `groups` for each, at least one."""
    import torch

    group, class_of = torch.zeros_like(label), list[int]()
    for number in range(classes):
        rows = (label == number).nonzero()[:, 0]
        own = k_means(images[rows], groups // classes, seed)
        group[rows] = len(class_of) + own
        class_of += [number] * (int(own.amax()) + 1 if len(own) else 1)
    return group, tuple(class_of)


def coarse(images: Tensor) -> Tensor:
    """Images uint8 (N, C, H, W) at a resolution of 14 to 27 pixels a side, float32 (N, D)."""
    import torch
    import torch.nn.functional as F

    factor = max(1, min(images.shape[-2:]) // PIXELS)
    parts = (F.avg_pool2d(part.float(), factor) if factor > 1 else part.float() for part in images.split(5000))
    return torch.cat([part.flatten(1) for part in parts])


def mean_images(dataset: Dataset, labels: int) -> Tensor:
    """The mean image of each of the `labels` of a labelled data set, and last that of all: float32 (labels + 1, C, H, W) in [-1, 1].
    It is that of all images, too, for a label that none has."""
    import torch

    assert dataset.labels is not None
    sums = torch.zeros(labels, *dataset.shape, dtype=torch.float64)
    count = images_at_once(dataset.images)
    for images, label in zip(dataset.images.split(count), dataset.labels.split(count), strict=True):
        sums.index_add_(0, label, images.double())
    counts = torch.bincount(dataset.labels, minlength=labels)[:, None, None, None]
    mean = sums.sum(dim=0, keepdim=True) / counts.sum()
    return to_float(torch.cat([torch.where(counts > 0, sums / counts.clamp(min=1), mean), mean]))
