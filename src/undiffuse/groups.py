"""Groups of similar images: labels for images that have none, found by k-means.

A network that knows roughly what it is to draw learns faster, and draws each kind as often as the data have it. For
images without labels, or with labels that are not to be used, the groups take the labels' place: q(x) = sum over c of q(c) q(x | c),
with q(c) the share of training images in group c. Groups of features in place of labels: Bao et al. 2022 (arXiv:2212.00362), Hu et al.
2023 (arXiv:2210.06462); on images as plain as digits the pixels themselves will do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from undiffuse.rng import stream

if TYPE_CHECKING:
    from collections.abc import Sequence

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


def coarse(images: Tensor) -> Tensor:
    """Images uint8 (N, C, H, W) at a resolution of 14 to 27 pixels a side, float32 (N, D)."""
    import torch
    import torch.nn.functional as F

    factor = max(1, min(images.shape[-2:]) // PIXELS)
    parts = (F.avg_pool2d(part.float(), factor) if factor > 1 else part.float() for part in images.split(5000))
    return torch.cat([part.flatten(1) for part in parts])


def drawn_groups(sizes: Sequence[int], samples: Sequence[int], seed: int) -> Tensor:
    """The group (B,) of each sample, each as often as its size says; a function of seed and sample alone."""
    import torch

    share = torch.tensor(sizes, dtype=torch.float64).cumsum(0) / sum(sizes)
    u = torch.tensor([stream(seed, "group", sample).random() for sample in samples], dtype=torch.float64)
    return torch.bucketize(u, share, right=True).clamp(max=len(sizes) - 1)
