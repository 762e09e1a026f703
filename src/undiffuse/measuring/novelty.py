"""Novelty: are generated images new, or copies of training images?

For every image the nearest and the second-nearest training image are found. d_1 and d_2 are its
distances to them, in 8-bit values. A distance is the root mean square difference over all values,
the smallest over shifts of the image by up to one pixel.

A copy is close to its original and far from every other image, so d_1/d_2 is small. The alarm
compares these ratios with those of the control: real images that were not trained on. Closeness
alone says little, because MNIST has many nearly identical digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from undiffuse.base.pixels import images_at_once
from undiffuse.data.clusters import coarse

CANDIDATES = 12  # training images per query, compared at full resolution


SAME = 2.0  # 8-bit values: training images no farther apart count as one image


RECIPE = 2  # raised when `nearest_images` finds other images, so that an old cache is not used


SHIFTS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]


ALPHA = 0.01
"""The probability of a false alarm on real images is at most this."""


TAILS = (0.001, 0.01)
"""The quantiles of the control's ratios. Audited ratios below each are counted."""


class Neighbours(NamedTuple):
    """The two nearest training images of each image.

    nearest: their numbers (n, 2). distance: the distances (n, 2), in 8-bit values."""

    nearest: Tensor
    distance: Tensor

    @property
    def ratio(self) -> Tensor:
        """d_1/d_2, (n,); 1 where both are 0."""
        d_1, d_2 = self.distance.double().unbind(dim=1)
        return torch.where(d_2 > 0, d_1 / d_2, 1.0)


def shifted(images: Tensor) -> Tensor:
    """Images (n, C, H, W) moved by -1, 0 and 1 pixels each way: (9, n, C, H, W).

    The pixels at the border are repeated."""
    _, _, height, width = images.shape
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    return torch.stack(
        [padded[:, :, 1 + y : 1 + y + height, 1 + x : 1 + x + width] for y, x in SHIFTS]
    )


def nearest_images(
    queries: Tensor, training: Tensor, watch: Callable[[float], None] = lambda done: None
) -> Neighbours:
    """The two nearest training images (N, C, H, W) of each query (n, C, H, W), uint8.

    Candidates are found at a resolution of 14 to 27 pixels a side and compared at full resolution.
    A duplicate of the nearest image does not count as the second nearest. Otherwise a copy of an
    image that is in the training set twice would have a ratio near 1 and would not be found.

    There must be at least two training images. watch: called with the share done."""
    everything = coarse(training)
    squares = everything.square().sum(dim=1)
    count = min(CANDIDATES, len(training))
    nearest, distance = [], []
    at_once = images_at_once(queries.shape[1:])
    for done, batch in enumerate(queries.split(at_once)):
        ways = shifted(batch.float())  # (9, b, C, H, W)
        best: Tensor | None = None
        for way in ways:
            small = coarse(way)
            d = torch.addmm(squares, small, everything.T, alpha=-2).add_(
                small.square().sum(dim=1, keepdim=True)
            )
            best = d if best is None else torch.minimum(best, d, out=best)
        assert best is not None
        candidates = best.topk(count, largest=False).indices  # (b, count)
        originals = training[candidates].float()  # (b, count, C, H, W)
        exact = torch.stack(
            [(originals - way[:, None]).square().mean(dim=(2, 3, 4)) for way in ways]
        ).amin(dim=0)
        order = exact.sort(dim=1)
        originals = originals.gather(1, order.indices[:, :, None, None, None].expand_as(originals))
        another = (originals - originals[:, :1]).square().mean(
            dim=(2, 3, 4)
        ).sqrt() > SAME  # (b, count)
        another[:, -1] = True
        # The first that is no duplicate, or the last candidate where all are duplicates.
        second = another.int().argmax(dim=1, keepdim=True)
        chosen = torch.cat([torch.zeros_like(second), second], dim=1)
        nearest.append(candidates.gather(1, order.indices).gather(1, chosen))
        distance.append(order.values.gather(1, chosen).sqrt())
        watch((done + 1) * at_once / len(queries))
    return Neighbours(torch.cat(nearest), torch.cat(distance))


def nearest_features(queries: Tensor, training: Tensor) -> Tensor:
    """The distance (n,) of each query's features (n, D) to the nearest training features (N, D)."""
    return torch.cat([torch.cdist(batch, training).amin(dim=1) for batch in queries.split(500)])


def chance_of_as_many(count: int, audited: int, control: int, rank: int) -> float:
    """The probability of `count` or more audited values below the control's `rank`-th smallest.

    There are `audited` and `control` values, all sampled from one distribution.

    The result is exact for every continuous distribution. At least `count` audited values lie below
    if at most rank - 1 of the count + rank - 1 smallest of all values are of the control. That is a
    hypergeometric probability."""
    smallest, total = count + rank - 1, audited + control
    if count <= 0:
        return 1.0

    def log_choose(n: int, k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    return min(
        1.0,
        sum(
            math.exp(
                log_choose(control, j)
                + log_choose(audited, smallest - j)
                - log_choose(total, smallest)
            )
            for j in range(max(0, smallest - audited), min(rank - 1, control, smallest) + 1)
        ),
    )


class Alarm(NamedTuple):
    """The result of an audit.

    raised: whether copies were found. p_value: the probability of so many small ratios in real
    images. share: of audited images whose ratio is below `threshold`. expected: the same share in
    the control."""

    raised: bool
    p_value: float
    share: float
    expected: float
    threshold: float


def audit(ratios: Tensor, control: Tensor, alpha: float = ALPHA) -> Alarm:
    """Whether small ratios d_1/d_2 are more frequent than among real images, at level `alpha`.

    ratios: of the audited images (n,). control: of real images (m,). There is one test for each of
    TAILS, at level alpha / len(TAILS). The result is the one with the smaller p-value."""
    found = []
    for tail in TAILS:
        rank = max(1, round(tail * len(control)))
        threshold = control.sort().values[rank - 1].item()
        below = int((ratios < threshold).sum())
        p = chance_of_as_many(below, len(ratios), len(control), rank)
        found.append(
            Alarm(
                len(TAILS) * p <= alpha,
                min(1.0, len(TAILS) * p),
                below / len(ratios),
                rank / len(control),
                threshold,
            )
        )
    return min(found, key=lambda alarm: alarm.p_value)


def detectable_share(audited: int, control: int, alpha: float = ALPHA) -> float:
    """The smallest share of copies that raises the alarm.

    All copies are assumed to have ratios below the control's tail, and the other images to be like
    real images on average. 1 where even copies alone would not raise it."""
    shares = [1.0]
    for tail in TAILS:
        rank = max(1, round(tail * control))
        by_chance = audited * rank / control
        for count in range(math.ceil(by_chance), audited + 1):
            if len(TAILS) * chance_of_as_many(count, audited, control, rank) <= alpha:
                shares.append((count - by_chance) / audited)
                break
    return min(shares)


def c_t(generated: Tensor, test: Tensor, cells: tuple[Tensor, Tensor] | None = None) -> float:
    """C_T of Meehan, Chaudhuri & Dasgupta 2020 (arXiv:2004.05675).

    It compares the distances to the training set of generated images and of test images. In each
    cell it takes the Mann-Whitney z-score. C_T is the mean over the cells, weighted by their number
    of test images. Far below 0, images are copied. Far above 0, generated images are farther from
    the training images than real images are.

    generated, test: distances (n,), (m,) to the nearest training image. cells: the cell of each
    image, here its class. Cells with fewer than 20 generated or 20 test images are left out. nan
    where no cell is left."""
    if cells is None:
        cells = torch.zeros(len(generated)), torch.zeros(len(test))
    total, weight = 0.0, 0
    for cell in cells[1].unique():
        q, p = generated[cells[0] == cell], test[cells[1] == cell]
        if min(len(q), len(p)) >= 20:
            total += len(p) * mann_whitney(q, p)
            weight += len(p)
    return total / weight if weight else math.nan


def mann_whitney(q: Tensor, p: Tensor) -> float:
    """The z-score of the number of pairs with q > p, positive where q (n,) is larger than p (m,).

    Ties count one half."""
    ordered = p.sort().values
    below = torch.searchsorted(ordered, q, right=False).double()
    equal = torch.searchsorted(ordered, q, right=True).double() - below
    u = (below + equal / 2).sum().item()
    n, m = len(q), len(p)
    return (u - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12)


def nearer_share(generated: Tensor, test: Tensor, quantile: float = 0.01) -> float:
    """The share of generated images whose distance is below this quantile of the test images'.

    generated, test: distances (n,), (m,) to the nearest training image."""
    return (generated < test.double().quantile(quantile)).double().mean().item()


def closest(neighbours: Neighbours, count: int) -> Tensor:
    """The numbers (count,) of the images with the smallest d_1/d_2, the likeliest copies."""
    return neighbours.ratio.argsort()[:count]
