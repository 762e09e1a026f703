"""The metrics against closed forms, torchmetrics and prdc.

An interval is tested by how often it holds the truth.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from prdc import compute_prdc
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from undiffuse.base import rng
from undiffuse.measuring import distances
from undiffuse.measuring.distances import Interval, Moments


def normal(n: int, d: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return shift + scale * torch.randn(n, d, generator=g, dtype=torch.float64)


def mixed(n: int, seed: int) -> Tensor:
    """Correlated and skewed data, for which formulas of independent normals are wrong."""
    g = torch.Generator().manual_seed(1)
    mixing = torch.randn(6, 6, generator=g, dtype=torch.float64)
    x = normal(n, 6, seed)
    return (x + 0.3 * x**2) @ mixing


def distance_of(x: Tensor, real: Moments) -> float:
    return distances.frechet(distances.moments(x), real)


def mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def spread_of(values: Iterable[float]) -> float:
    return float(np.std(list(values), ddof=1))


def values_of(intervals: Iterable[Interval]) -> list[float]:
    return [interval.value for interval in intervals]


def width_of(intervals: Iterable[Interval]) -> float:
    return mean(interval.high - interval.low for interval in intervals)


def standard(d: int) -> Moments:
    """The moments of d independent standard normals, as if of very many."""
    return Moments(10**6, torch.zeros(d).double(), torch.eye(d).double())


def normal_width(spread: float) -> float:
    """The width of the 95% interval of normal numbers with this standard deviation."""
    return 2 * 1.96 * spread


# --- Frechet distance ---


def test_frechet_of_independent_normals_is_the_closed_form() -> None:
    def moments(mean: list[float], variance: list[float]) -> Moments:
        return Moments(10, torch.tensor(mean).double(), torch.tensor(variance).double().diag())

    a, b = moments([0.0, 1.0], [4.0, 9.0]), moments([2.0, 1.0], [1.0, 1.0])
    assert distances.frechet(a, b) == pytest.approx(4 + (2 - 1) ** 2 + (3 - 1) ** 2)
    assert distances.frechet(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_does_not_need_commuting_covariances() -> None:
    import scipy.linalg

    scales = torch.diag(torch.arange(1.0, 7.0).double())
    a, b = (distances.moments(x) for x in (mixed(300, 2), mixed(200, 3) @ scales))
    root = scipy.linalg.sqrtm(a.covariance.numpy() @ b.covariance.numpy()).real
    of_covariances = a.covariance.trace() + b.covariance.trace() - 2 * np.trace(root)
    expected = (a.mean - b.mean).square().sum() + of_covariances
    assert distances.frechet(a, b) == pytest.approx(expected.item(), rel=1e-9)
    assert distances.frechet(b, a) == pytest.approx(distances.frechet(a, b), rel=1e-9)


def test_moments_are_those_of_numpy() -> None:
    x = mixed(50, 4)
    found = distances.moments(x.float())
    assert found.n == 50
    np.testing.assert_allclose(found.mean, x.float().double().mean(dim=0))
    expected = np.cov(x.float().numpy().T.astype(np.float64))
    np.testing.assert_allclose(found.covariance, expected, rtol=1e-9)


class Given(nn.Module):
    """For torchmetrics: the features are the images' own first row."""

    num_features = 6

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0, 0, :6]


def as_images(features: Tensor) -> Tensor:
    images = torch.zeros(len(features), 3, 8, 8)
    images[:, 0, 0, :6] = features.float()
    return images


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    return mixed(400, 5), mixed(300, 6) * 1.2 + 0.3


def test_frechet_equals_torchmetrics(pair: tuple[Tensor, Tensor]) -> None:
    theirs = FrechetInceptionDistance(feature=Given(), normalize=False, input_img_size=(3, 8, 8))
    theirs.set_dtype(torch.float64)
    theirs.used_custom_model = True
    for features, real in zip(pair, (True, False), strict=True):
        theirs.update(as_images(features), real=real)
    ours = distances.frechet(*(distances.moments(features.float()) for features in pair))
    assert ours == pytest.approx(theirs.compute().item(), rel=1e-4)


def test_kid_equals_torchmetrics(pair: tuple[Tensor, Tensor]) -> None:
    x, y = pair[0][:300], pair[1]
    theirs = KernelInceptionDistance(feature=Given(), subsets=1, subset_size=300)
    theirs.used_custom_model = True
    for features, real in ((x, True), (y, False)):
        theirs.update(as_images(features), real=real)
    expected, _ = theirs.compute()
    ours = distances.kid(distances.powers(x.float()), distances.powers(y.float()))
    assert ours == pytest.approx(expected.item(), rel=1e-4)


def test_kid_is_the_double_sum_with_different_counts(pair: tuple[Tensor, Tensor]) -> None:
    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / 6 + 1) ** 3

    x, y = pair
    within = [(kernel(a, a).sum() - kernel(a, a).trace()) / (len(a) * (len(a) - 1)) for a in (x, y)]
    expected = sum(within) - 2 * kernel(x, y).mean()
    found = distances.kid(distances.powers(x), distances.powers(y))
    assert found == pytest.approx(float(expected), rel=1e-9)


def test_extrapolation_removes_a_bias_of_one_over_n() -> None:
    truth, c, n = 3.0, 50.0, 100
    interval = Interval(truth + c / n, 0, 0, of_halves=truth + c / (n / 2))
    assert distances.extrapolated(interval) == pytest.approx(truth)


def test_the_extrapolated_distance_of_equal_distributions_is_about_zero() -> None:
    real = distances.moments(mixed(100_000, 7))
    samples = [mixed(300, seed) for seed in range(10, 30)]
    intervals = [distances.frechet_interval(x, real, count=20) for x in samples]
    biased = mean(values_of(intervals))
    unbiased = mean(distances.extrapolated(i) for i in intervals)
    assert abs(unbiased) < 0.25 * biased


# --- Intervals ---


def coverage(intervals: list[Interval], truth: float) -> float:
    return mean(i.low <= truth <= i.high for i in intervals)


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.5])
def test_frechet_intervals_hold_the_expected_distance(shift: float) -> None:
    """95% do for distances that are not near 0. More do where the distribution is the real one."""
    real = standard(6)

    def sample(seed: int) -> Tensor:
        return normal(200, 6, seed, scale=1 + shift, shift=shift)

    expectation = mean(distance_of(sample(10_000 + s), real) for s in range(1000))
    intervals = [distances.frechet_interval(sample(s), real, seed=s, count=40) for s in range(150)]
    found = coverage(intervals, expectation)
    assert found > 0.90
    assert found < 0.995 or not shift
    spread = spread_of(distance_of(sample(s), real) for s in range(150))
    most = 1.2 if shift else 1.7  # wider where the distance is all noise
    assert width_of(intervals) < most * normal_width(spread)


def test_the_standard_error_is_that_of_leaving_parts_out_in_turn() -> None:
    """The jackknife's formula, with the moments of what is left computed directly."""
    x, real = normal(203, 4, 1, scale=1.2), standard(4)
    parts = torch.from_numpy(rng.stream(5, "groups").permutation(203)).tensor_split(40)
    left = [
        distances.frechet(distances.moments(x[torch.cat([*parts[:i], *parts[i + 1 :]])]), real)
        for i in range(40)
    ]
    expected = math.sqrt(39 / 40 * sum((value - mean(left)) ** 2 for value in left))
    assert distances.frechet_error(x.double(), real, 5) == pytest.approx(expected, rel=1e-9)


def test_a_bootstrap_would_not_hold_it() -> None:
    """Trap 26. This keeps everyone from replacing the intervals by a bootstrap."""
    real = standard(6)
    expectation = mean(distance_of(normal(200, 6, 500 + s), real) for s in range(200))
    held = 0
    for seed in range(40):
        x, g = normal(200, 6, seed), np.random.default_rng(seed)
        figures = [distance_of(x[g.integers(0, 200, 200)], real) for _ in range(40)]
        held += np.quantile(figures, 0.025) <= expectation <= np.quantile(figures, 0.975)
    assert held / 40 < 0.6


def test_kid_intervals_hold_the_truth() -> None:
    """KID is unbiased, so the truth is the distance at any n."""
    real = distances.powers(normal(20_000, 4, 99))
    truth = distances.kid(distances.powers(normal(200_000, 4, 98, shift=0.3)), real)
    samples = [normal(200, 4, s, shift=0.3) for s in range(150)]
    intervals = [distances.kid_interval(x, real, seed=s, count=40) for s, x in enumerate(samples)]
    assert 0.90 < coverage(intervals, truth) <= 0.995


def test_class_balance_intervals_hold_the_expected_distance() -> None:
    expected, p = torch.ones(5), torch.tensor([0.3, 0.2, 0.2, 0.2, 0.1])

    def labels(seed: int) -> Tensor:
        g = torch.Generator().manual_seed(seed)
        return torch.multinomial(p, 400, replacement=True, generator=g)

    def distance(x: Tensor) -> float:
        return distances.total_variation(torch.bincount(x, minlength=5).double(), expected.double())

    truth = mean(distance(labels(1000 + s)) for s in range(500))
    assert 0.1 < truth < 0.15  # 0.1 for infinitely many: a finite sample is further off
    intervals = [distances.class_balance(labels(s), expected, seed=s) for s in range(150)]
    assert 0.90 < coverage(intervals, truth) <= 1
    # They do not hold it by being wide.
    assert width_of(intervals) < 1.5 * normal_width(spread_of(values_of(intervals)))


def test_recall_and_coverage_intervals_hold_the_expected_figure() -> None:
    y = normal(300, 3, 77)
    samples = [normal(300, 3, s, scale=1.3) for s in range(80)]
    found = [distances.manifold(x, y, seed=s, count=25) for s, x in enumerate(samples)]
    for name in ("precision", "recall", "density", "coverage"):
        intervals = [getattr(f, name) for f in found]
        values = values_of(intervals)
        assert 0.86 < coverage(intervals, mean(values)) <= 1, name
        assert width_of(intervals) < 1.6 * normal_width(spread_of(values)), name


def test_halves_are_halves() -> None:
    halves = distances.random_halves(11, seed=3, count=50)
    assert halves.shape == (50, 11)
    assert (halves.sum(dim=1) == 5).all()
    assert halves.float().mean(dim=0).std() < 0.15
    assert len({tuple(h.tolist()) for h in halves}) > 40


# --- Floors and ratios ---


def test_the_floor_is_the_mean_over_disjoint_parts() -> None:
    """Its interval is narrower than that of one part, and holds the expectation at this n."""
    real = distances.moments(normal(4000, 4, 1))
    truth = mean(distance_of(normal(100, 4, 9000 + s), real) for s in range(1000))

    def floor(s: int) -> Interval:
        return distances.frechet_floor(normal(800, 4, 100 + s), real, 100, seed=s)

    floors = [floor(s) for s in range(100)]
    ones = [distances.frechet_interval(normal(100, 4, 100 + s), real, seed=s) for s in range(30)]
    assert 0.86 < coverage(floors, truth) <= 1
    assert width_of(floors) < 0.5 * width_of(ones)
    whole = normal(250, 4, 3)
    found = distances.frechet_floor(whole, real, 250)
    assert found.value == pytest.approx(distance_of(whole, real))


def test_samples_of_the_real_distribution_are_as_far_as_their_floor() -> None:
    """Two classes lie far apart. Their counts are random in both samples."""

    def sample(n: int, seed: int) -> Tensor:
        g = torch.Generator().manual_seed(seed)
        return normal(n, 3, seed) + 4 * (torch.rand(n, 1, generator=g) < 0.4)

    real = distances.moments(sample(50_000, 1))
    ours = [distance_of(sample(200, 2 * s + 10), real) for s in range(100)]
    real_ones = [sample(1600, 2 * s + 11) for s in range(100)]
    floors = [distances.frechet_floor(z, real, 200, s).value for s, z in enumerate(real_ones)]
    assert sum(ours) / sum(floors) == pytest.approx(1, abs=0.2)


def test_agreement_of_all_halves_is_no_certainty() -> None:
    """None of 200 images is near a real one. About the rule of three's upper limit remains."""
    found = distances.manifold(normal(200, 2, 0, shift=100.0), normal(200, 2, 1))
    balance = distances.class_balance(torch.zeros(200).long(), torch.ones(1))
    for figure in (found.recall, found.coverage, found.density, balance):
        assert (figure.value, figure.low) == (0, 0)
        assert 3 / 200 < figure.high < 4 / 200
    assert distances.mean_interval(torch.tensor([1.0, 1.0, 0.99]), 0.0, 1.0).high == 1.0


# --- Precision, recall, density, coverage ---


def prdc_of(x: Tensor, y: Tensor, k: int) -> dict[str, float]:
    return compute_prdc(real_features=y.numpy(), fake_features=x.numpy(), nearest_k=k)


@pytest.mark.parametrize(("k", "seed"), [(1, 0), (3, 1), (5, 0)])
def test_manifold_equals_prdc(k: int, seed: int) -> None:
    x, y = mixed(150, seed), mixed(150, seed + 10) * 1.1
    theirs = prdc_of(x, y, k)
    ours = distances.manifold(x, y, k_precision=k, k_density=max(k, 5), count=2)
    assert ours.precision.value == pytest.approx(theirs["precision"], abs=1e-9)
    assert ours.recall.value == pytest.approx(theirs["recall"], abs=1e-9)
    theirs = prdc_of(x, y, max(k, 5))
    assert ours.density.value == pytest.approx(theirs["density"], abs=1e-6)
    assert ours.coverage.value == pytest.approx(theirs["coverage"], abs=1e-9)


def test_recall_of_halves_is_that_of_the_halves_alone() -> None:
    """A half has the radii that it has by itself, found from the neighbours in the whole sample."""
    x, y = mixed(400, 3), mixed(400, 4)
    halves = distances.random_halves(400, seed=0, count=2)
    ours = distances.manifold(x, y, count=2)
    for k, name in ((3, "recall"), (5, "coverage")):
        alone = mean(prdc_of(x[half], y, k)[name] for half in halves)
        assert getattr(ours, name).of_halves == pytest.approx(alone, abs=1e-9)


# --- Classes ---


def test_total_variation_is_the_mass_to_move() -> None:
    for counts, expected, mass in (([6.0, 4.0], [1.0, 1.0], 0.1), ([5.0, 0.0], [0.0, 3.0], 1.0)):
        found = distances.total_variation(torch.tensor(counts), torch.tensor(expected))
        assert found == pytest.approx(mass)


def test_a_mean_has_the_normal_interval() -> None:
    values = torch.tensor([0.0, 1.0] * 50)
    found = distances.mean_interval(values)
    assert found.value == 0.5
    assert found.high - found.value == pytest.approx(1.959964 * math.sqrt(0.25 * 100 / 99) / 10)


@pytest.mark.parametrize(("p", "n"), [(0.5, 100), (0.98, 300), (0.01, 500)])
def test_intervals_of_shares_hold_them(p: float, n: int) -> None:
    g = torch.Generator().manual_seed(0)
    intervals = [distances.share_interval(torch.rand(n, generator=g) < p) for _ in range(2000)]
    assert 0.93 < coverage(intervals, p) < 0.98
    all_of_50 = torch.ones(50, dtype=torch.bool)
    assert distances.share_interval(all_of_50).low < 0.95  # certainty is not claimed


def test_the_interval_of_a_share_is_scipys() -> None:
    from scipy.stats import binomtest

    found = distances.share_interval(torch.arange(80) < 13)
    low, high = binomtest(13, 80).proportion_ci(method="wilson")
    assert found.value == 13 / 80
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
