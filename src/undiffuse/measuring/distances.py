"""Distances between two sets of images, computed from their features.

X (n, D) are features of generated images, Y (m, D) those of real images.

A figure from a finite sample is uncertain, and some figures are biased, so each has an interval.
The intervals come from subsampling without replacement. Given the sample, a statistic of a random
half of it varies about as much as the statistic of the whole sample varies between samples. This is
the delete-d jackknife with d = n/2 (Shao & Wu 1989, "A general theory for jackknife variance
estimation"). The Frechet distance is not linear: that of a half varies more, and such an interval
would be twice too wide. Its interval leaves out one of GROUPS equal parts at a time. A bootstrap
would contain images twice, and the Frechet distance would take that for a narrower distribution. An
interval covers other samples of generated images. The real images are held fixed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from undiffuse.base import rng

Z = 1.959964
"""The standard normal's 97.5% point."""


HALVES = 60
"""Random halves from which an interval is computed."""

GROUPS = 40
"""Equal parts of which one at a time is left out, for the interval of the Frechet distance."""


class Interval(NamedTuple):
    """A figure with its 95% interval.

    of_halves: the mean of the same figure over random halves of the sample."""

    value: float
    low: float
    high: float
    of_halves: float


def random_halves(n: int, seed: int, count: int = HALVES) -> Tensor:
    """Membership in `count` random halves of n items, bool (count, n)."""
    halves = torch.zeros(count, n, dtype=torch.bool)
    for i, half in enumerate(halves):
        half[torch.from_numpy(rng.stream(seed, "halves", i).permutation(n)[: n // 2])] = True
    return halves


def with_interval(
    value: float,
    of_halves: list[float],
    low: float = -math.inf,
    high: float = math.inf,
    least: float = 0.0,
) -> Interval:
    """value +- 1.96 standard deviations of the figures of random halves, within [low, high].

    least: the smallest half width."""
    figures = torch.tensor(of_halves, dtype=torch.float64)
    half_width = max(least, Z * figures.std().item())
    return Interval(
        value, max(low, value - half_width), min(high, value + half_width), figures.mean().item()
    )


class Moments(NamedTuple):
    """Mean (D,) and covariance (D, D) of n feature vectors, float64. The divisor is n - 1."""

    n: int
    mean: Tensor
    covariance: Tensor


def moments(features: Tensor) -> Moments:
    """The moments of features (n, D)."""
    x = features.double()
    mean = x.mean(dim=0)
    centred = x - mean
    return Moments(len(x), mean, centred.T @ centred / (len(x) - 1))


def frechet(a: Moments, b: Moments) -> float:
    """|mu_a - mu_b|^2 + Tr(S_a + S_b - 2 (S_a S_b)^(1/2)).

    Dowson & Landau 1982, Heusel et al. 2017 (arXiv:1706.08500), (6). The trace of the root is the
    sum of the square roots of the eigenvalues of S_a^(1/2) S_b S_a^(1/2). That matrix is symmetric;
    the product S_a S_b is not."""
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    distance = (
        (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross
    )
    return max(0.0, distance.item())


def frechet_interval(x: Tensor, real: Moments, seed: int = 0, count: int = HALVES) -> Interval:
    """The distance of generated features X (n, D) to the real moments.

    The distance depends on n. The interval is for its expectation at this n. count: of the halves
    whose mean distance is given."""
    x = x.double()
    halves = [frechet(moments(x[half]), real) for half in random_halves(len(x), seed, count)]
    value, half_width = frechet(moments(x), real), Z * frechet_error(x, real, seed)
    mean = sum(halves) / len(halves)
    return Interval(value, max(0.0, value - half_width), value + half_width, mean)


def frechet_error(x: Tensor, real: Moments, seed: int) -> float:
    """The standard error of the distance of features X (n, D): the delete-a-group jackknife.

    Efron & Stein 1981, "The jackknife estimate of variance". The moments without a group are those
    of sums less the group's, about the mean of all."""
    n, mean = len(x), x.mean(dim=0)
    order = torch.from_numpy(rng.stream(seed, "groups").permutation(n))
    groups = [(x[rows] - mean) for rows in order.tensor_split(min(GROUPS, n))]
    products = [group.T @ group for group in groups]
    every = torch.stack(products).sum(dim=0)
    found = []
    for group, product in zip(groups, products, strict=True):
        left = n - len(group)
        off = -group.sum(dim=0) / left  # the sum of all is 0
        covariance = (every - product - left * torch.outer(off, off)) / (left - 1)
        found.append(frechet(Moments(left, mean + off, covariance), real))
    distances = torch.tensor(found, dtype=torch.float64)
    count = len(found)
    return math.sqrt((count - 1) ** 2 / count * distances.var().item())


def frechet_floor(z: Tensor, real: Moments, n: int, seed: int = 0) -> Interval:
    """The distance of n of the real features Z (m, D) to the real moments, n <= m.

    It is the mean over the m // n disjoint parts of Z."""
    order = torch.from_numpy(rng.stream(seed, "floor").permutation(len(z)))
    parts = order[: len(z) // n * n].split(n)
    first = frechet_interval(z[parts[0]], real, seed)
    mean = (first.value + sum(frechet(moments(z[part]), real) for part in parts[1:])) / len(parts)
    half_width = (first.high - first.value) / math.sqrt(len(parts))
    return Interval(
        mean, max(0.0, mean - half_width), mean + half_width, mean + first.of_halves - first.value
    )


def extrapolated(interval: Interval) -> float:
    """A figure with bias c/n, extrapolated to infinite n: twice that of n minus that of n/2.

    Chong & Forsyth 2020 (arXiv:1911.07023)."""
    return 2 * interval.value - interval.of_halves


class Powers(NamedTuple):
    """Sums over n feature vectors, from which sums of the cubic kernel are computed.

    sums: of x, x x^T and x x^T x^T (Kronecker powers). diagonal: of k(x, x)."""

    n: int
    sums: tuple[Tensor, ...]
    diagonal: float


def powers(features: Tensor) -> Powers:
    """The sums of features (n, D) for the kernel k(x, y) = (x.y / D + 1)^3.

    k(x, y) = sum_p binom(3, p) <x^p, y^p> / D^p, so a sum over all pairs follows from the sums."""
    x = features.double() / math.sqrt(features.shape[1])
    d = x.shape[1]
    third = torch.zeros(d, d * d, dtype=torch.float64)
    for rows in x.split(2000):
        third += rows.T @ (rows[:, :, None] * rows[:, None, :]).flatten(1)
    diagonal = (x.square().sum(dim=1) + 1) ** 3
    return Powers(len(x), (x.sum(dim=0), x.T @ x, third), diagonal.sum().item())


def kernel_sum(a: Powers, b: Powers) -> float:
    """The sum of k(x, y) over all pairs (x, y)."""
    terms = [
        math.comb(3, p) * (s * t).sum().item()
        for p, (s, t) in enumerate(zip(a.sums, b.sums, strict=True), 1)
    ]
    return a.n * b.n + sum(terms)


def kid(a: Powers, b: Powers) -> float:
    """The unbiased squared maximum mean discrepancy with the cubic kernel.

    Binkowski et al. 2018 (arXiv:1801.01401), (4)."""
    within = [(kernel_sum(p, p) - p.diagonal) / (p.n * (p.n - 1)) for p in (a, b)]
    return sum(within) - 2 * kernel_sum(a, b) / (a.n * b.n)


def kid_interval(x: Tensor, real: Powers, seed: int = 0, count: int = HALVES // 2) -> Interval:
    """The kernel distance of generated features X (n, D), as `frechet_interval`."""
    halves = [kid(powers(x[half]), real) for half in random_halves(len(x), seed, count)]
    return with_interval(kid(powers(x), real), halves)


class Manifold(NamedTuple):
    """Precision, recall, density and coverage. See `manifold`."""

    precision: Interval
    recall: Interval
    density: Interval
    coverage: Interval


def manifold(
    x: Tensor, y: Tensor, k_precision: int = 3, k_density: int = 5, seed: int = 0, count: int = 30
) -> Manifold:
    """Precision, recall, density and coverage of generated features X (n, D) beside Y (m, D).

    Improved precision and recall: Kynkaanniemi et al. 2019 (arXiv:1904.06991), k = 3.
    Density and coverage: Naeem et al. 2020 (arXiv:2002.09797), k = 5.

    The radius of an image is its distance to its k-th neighbour of its own kind. The ball of an
    image is what lies within its radius.

    Precision: the share of generated images in the ball of a real image.
    Recall: the share of real images in the ball of a generated image.
    Density: the mean number of real balls around a generated image, divided by k.
    Coverage: the share of real images with a generated image in their ball.

    All four depend on n and m, so compare them at equal n and m."""
    n = len(x)
    x, y = x.float(), y.float()
    to_real = torch.cdist(y, x)  # (m, n)
    y_to_y = torch.cdist(y, y).fill_diagonal_(0).topk(k_density + 1, largest=False).values
    inside = to_real <= y_to_y[:, k_precision, None]
    precise = inside.any(dim=0)
    inside = to_real <= y_to_y[:, k_density, None]
    dense = inside.sum(dim=0).double() / k_density

    # The k-th neighbour within a half of the images is looked for among the nearest 40 of all
    # images. That it is not among them is so improbable that it does not matter.
    nearest = torch.cdist(x, x).fill_diagonal_(-1).topk(min(40, n), largest=False)
    near_distance, near_index = nearest.values[:, 1:], nearest.indices[:, 1:]

    def recall_of(members: Tensor) -> float:
        count_within = members[near_index].cumsum(dim=1)
        found = (count_within >= k_precision).int().argmax(dim=1)
        radius = near_distance.gather(1, found[:, None])[:, 0]
        radius = radius.masked_fill(~members, -1.0)
        return (to_real <= radius).any(dim=1).double().mean().item()

    everyone = torch.ones(n, dtype=torch.bool)
    halves = random_halves(n, seed, count)
    within = inside.float()
    covered = [((within @ half.float()) > 0).double().mean().item() for half in (everyone, *halves)]
    recalled = [recall_of(half) for half in (everyone, *halves)]
    least = unseen_share(n)
    return Manifold(
        share_interval(precise),
        with_interval(recalled[0], recalled[1:], 0.0, 1.0, least),
        with_interval(
            dense.mean().item(), [dense[half].mean().item() for half in halves], 0.0, least=least
        ),
        with_interval(covered[0], covered[1:], 0.0, 1.0, least),
    )


def total_variation(counts: Tensor, expected: Tensor) -> float:
    """Half the sum of absolute differences of two class frequencies. counts, expected: (K,)."""
    return ((counts / counts.sum() - expected / expected.sum()).abs().sum() / 2).item()


def mean_interval(values: Tensor, low: float = -math.inf, high: float = math.inf) -> Interval:
    """The mean of independent values (n,) with its normal interval, within [low, high]."""
    x = values.double()
    mean, half_width = x.mean().item(), Z * x.std().item() / math.sqrt(len(x))
    return Interval(mean, max(low, mean - half_width), min(high, mean + half_width), mean)


def share_interval(hits: Tensor) -> Interval:
    """The share of independent hits, bool (n,), with Wilson's interval (Wilson 1927)."""
    n, p = len(hits), hits.double().mean().item()
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half_width = Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    return Interval(p, min(p, centre - half_width), max(p, centre + half_width), p)


def unseen_share(n: int) -> float:
    """The largest share, at 95%, of what none of n images showed.

    It is the smallest half width of a share. Where all halves agree, a share is still uncertain."""
    return share_interval(torch.zeros(n, dtype=torch.bool)).high


def class_balance(
    predicted: Tensor, expected: Tensor, seed: int = 0, count: int = HALVES
) -> Interval:
    """Total variation distance between the frequencies of predicted classes and expected ones.

    predicted: the class (n,) of each image. expected: the number of images of each class (K,)."""

    def of(labels: Tensor) -> float:
        return total_variation(
            torch.bincount(labels, minlength=len(expected)).double(), expected.double()
        )

    halves = [of(predicted[half]) for half in random_halves(len(predicted), seed, count)]
    return with_interval(of(predicted), halves, 0.0, 1.0, unseen_share(len(predicted)))
