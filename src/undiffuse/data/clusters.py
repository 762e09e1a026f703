"""Clusters of similar images, found by k-means. A network can be conditioned on them.

They are conditions for images without classes, and finer conditions for images with classes. A
network that knows roughly what to denoise learns faster, and its samples keep the proportions of
the data. For images as plain as digits, the pixels themselves serve as features. See
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
"""The fewest images in a cluster, on average. With too few images there are fewer clusters."""

PIXELS = 14
"""The fewest pixels a side at which images are compared."""

ITERATIONS = 30
"""Iterations of Lloyd's algorithm."""


def k_means(images: Tensor, clusters: int, seed: int) -> Tensor:
    """The cluster of each image, int64 (N,) from 0, by k-means.

    images: uint8 (N, C, H, W). clusters: how many to find. There are fewer where a cluster would
    have less than FEWEST images on average. Lloyd's algorithm compares images at a resolution of 14
    to 27 pixels a side. The first centres are random images, by `seed`."""
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
    """K-means within each class: (the cluster (N,) of each image, the class of each cluster).

    images: uint8 (N, C, H, W). labels: the class (N,) of each, in [0, classes). clusters: how many
    to find in all. Each class gets an equal part of them, and at least one."""
    cluster, class_of_cluster = torch.zeros_like(labels), list[int]()
    for number in range(classes):
        rows = (labels == number).nonzero()[:, 0]
        own = k_means(images[rows], clusters // classes, seed)
        cluster[rows] = len(class_of_cluster) + own
        class_of_cluster += [number] * (int(own.amax()) + 1 if len(own) else 1)
    return cluster, tuple(class_of_cluster)


def coarse(images: Tensor) -> Tensor:
    """Images uint8 (N, C, H, W) at a low resolution, float32 (N, D) in [0, 255].

    The shorter side is reduced to 14 to 27 pixels, if it has 28 or more."""
    factor = max(1, min(images.shape[-2:]) // PIXELS)
    parts = (part.float() for part in images.split(5000))
    small = (F.avg_pool2d(part, factor) if factor > 1 else part for part in parts)
    return torch.cat([part.flatten(1) for part in small])


def mean_images(dataset: Dataset, condition: Tensor, count: int) -> Tensor:
    """The mean image of each condition, float32 (count + 1, C, H, W) in [-1, 1].

    condition: the condition (N,) of each image, in [0, count). The last mean is that of all images.
    A condition without images gets that mean too."""
    sums = torch.zeros(count, *dataset.shape, dtype=torch.float64)
    first = 0
    for images in dataset.chunks():
        sums.index_add_(0, condition[first : first + len(images)], images.double())
        first += len(images)
    counts = torch.bincount(condition, minlength=count)[:, None, None, None]
    mean = sums.sum(dim=0, keepdim=True) / counts.sum()
    return to_float(torch.cat([torch.where(counts > 0, sums / counts.clamp(min=1), mean), mean]))
