"""Groups of similar images: labels for images that have none, and finer ones for those that have some, found by k-means.

A network that knows roughly what it is to draw learns faster, and draws each kind as often as the data have it. The groups take the
labels' place: q(x) = sum over g of q(g) q(x | g), with q(g) the share of training images in group g. Where the classes are to be asked
for, the groups are parts of them: q(x | c) = sum over g of q(g | c) q(x | g). Groups of features in place of labels: Bao et al. 2022
(arXiv:2212.00362), Hu et al. 2023 (arXiv:2210.06462); on images as plain as digits the pixels themselves will do.
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


def drawn_groups(sizes: Tensor, samples: Sequence[int], seed: int) -> Tensor:
    """The group (B,) of each sample, drawn as often as its size says; a function of seed and sample alone.

    sizes: of the groups, (K,), or (B, K) with 0 for those that a sample can't be in."""
    import torch

    share = sizes.double().cumsum(-1)
    share = (share / share[..., -1:]).expand(len(samples), -1).contiguous()
    u = torch.tensor([[stream(seed, "group", sample).random()] for sample in samples], dtype=torch.float64)
    return torch.searchsorted(share, u, right=True)[:, 0]
