"""Groups of similar images, found by k-means: labels for images that have none, and finer ones for those that have.

A network that knows roughly what it is to draw learns faster, and draws each kind as often as the data have it:
q(x) = sum over g of q(g) q(x | g), with q(g) the share of training images in group g; of a class likewise, whose groups are its own. Groups of
features in place of labels: Bao et al. 2022 (arXiv:2212.00362), Hu et al. 2023 (arXiv:2210.06462); on images as plain as digits the pixels
themselves will do.
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
        members = torch.nn.functional.one_hot(nearest, count).to(x.dtype)
        sizes = members.sum(dim=0)[:, None]
        centres = torch.where(sizes > 0, members.T @ x / sizes.clamp(min=1), centres)
    return nearest


def k_means_within(images: Tensor, labels: Tensor, groups: int, seed: int) -> tuple[Tensor, tuple[int, ...]]:
    """(the group (N,) of each image, the class of each group): about `groups` groups in all, each within one class of `labels` (N,)."""
    import torch

    found = torch.empty_like(labels)
    classes: list[int] = []
    for label in labels.unique().tolist():
        own = labels == label
        group = k_means(images[own], round(groups * own.float().mean().item()), seed)
        found[own] = len(classes) + group
        classes += [label] * (int(group.max()) + 1)
    return found, tuple(classes)


def coarse(images: Tensor) -> Tensor:
    """Images uint8 (N, C, H, W) at a resolution of 14 to 27 pixels a side, float32 (N, D)."""
    import torch
    import torch.nn.functional as F

    factor = max(1, min(images.shape[-2:]) // PIXELS)
    parts = (F.avg_pool2d(part.float(), factor) if factor > 1 else part.float() for part in images.split(5000))
    return torch.cat([part.flatten(1) for part in parts])


def drawn_groups(
    sizes: Sequence[int], samples: Sequence[int], seed: int, *, classes: Sequence[int] = (), label: Tensor | None = None
) -> Tensor:
    """The group (B,) of each sample, each as often as its size says; a function of seed, sample and label alone.

    With labels (B,): of the groups whose class, by `classes`, is the sample's label."""
    import torch

    share = torch.tensor(sizes, dtype=torch.float64).expand(len(samples), -1)
    if label is not None:
        share = share * (torch.tensor(classes) == label[:, None])
    upto = share.cumsum(1)
    u = torch.tensor([stream(seed, "group", sample).random() for sample in samples], dtype=torch.float64)
    return (upto <= u[:, None] * upto[:, -1:]).sum(1)
