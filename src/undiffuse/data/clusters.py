"""Clusters of similar images, found by k-means: conditions for images that have no labels, and finer
ones for those that have some.

A network that knows roughly what to denoise learns faster, and keeps the proportions of the data.
On images as plain as digits the pixels themselves serve as features. See
`diffusion/conditioning.py` for how clusters are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from undiffuse.base.lazy import lazy
from undiffuse.base.pixels import to_float
from undiffuse.base.rng import stream
from undiffuse.data.dataset import Dataset

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor
else:
    F = lazy("torch.nn.functional")
    torch = lazy("torch")

FEWEST = 100
"""Images in a cluster, on average, at the least. With fewer images there are fewer clusters."""

PIXELS = 14
ITERATIONS = 30


def k_means(images: Tensor, clusters: int, seed: int) -> Tensor:
    """The cluster (N,), from 0, of each image uint8 (N, C, H, W).

    By Lloyd's algorithm on images of about 14 pixels a side. There are `clusters` of them, or so few
    that each has FEWEST images on average; with less than two there is one."""
    count = min(clusters, len(images) // FEWEST)
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
    images: Tensor, labels: Tensor, classes: int, clusters: int, seed: int
) -> tuple[Tensor, tuple[int, ...]]:
    """(the cluster (N,) of each image uint8 (N, C, H, W), the class of each cluster).

    `k_means` in each of the `classes`, that of an image being its label (N,), with an equal part of
    the `clusters` for each, at least one."""
    cluster, class_of_cluster = torch.zeros_like(labels), list[int]()
    for number in range(classes):
        rows = (labels == number).nonzero()[:, 0]
        own = k_means(images[rows], clusters // classes, seed)
        cluster[rows] = len(class_of_cluster) + own
        class_of_cluster += [number] * (int(own.amax()) + 1 if len(own) else 1)
    return cluster, tuple(class_of_cluster)


def coarse(images: Tensor) -> Tensor:
    """Images uint8 (N, C, H, W) at a resolution of 14 to 27 pixels a side, float32 (N, D)."""
    factor = max(1, min(images.shape[-2:]) // PIXELS)
    parts = (part.float() for part in images.split(5000))
    small = (F.avg_pool2d(part, factor) if factor > 1 else part for part in parts)
    return torch.cat([part.flatten(1) for part in small])


def mean_images(dataset: Dataset, condition: Tensor, count: int) -> Tensor:
    """The mean image of each of `count` conditions, and last that of all images.

    condition: (N,) of each image. Float32 (count + 1, C, H, W) in [-1, 1]. It is that of all images
    too for a condition that no image has."""
    sums = torch.zeros(count, *dataset.shape, dtype=torch.float64)
    first = 0
    for images in dataset.chunks():
        sums.index_add_(0, condition[first : first + len(images)], images.double())
        first += len(images)
    counts = torch.bincount(condition, minlength=count)[:, None, None, None]
    mean = sums.sum(dim=0, keepdim=True) / counts.sum()
    return to_float(torch.cat([torch.where(counts > 0, sums / counts.clamp(min=1), mean), mean]))
