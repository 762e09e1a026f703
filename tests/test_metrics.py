"""The metrics against closed forms, against torchmetrics and prdc, and their intervals by how often they hold the truth."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from prdc import compute_prdc
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from undiffuse.measuring import distances
from undiffuse.measuring.distances import Interval, Moments


def normal(n: int, d: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return shift + scale * torch.randn(n, d, generator=g, dtype=torch.float64)


def mixed(n: int, seed: int) -> Tensor:
    """Correlated and skewed: nothing that a formula for independent normals would get right by chance."""
    g = torch.Generator().manual_seed(1)
    mixing = torch.randn(6, 6, generator=g, dtype=torch.float64)
    x = normal(n, 6, seed)
    return (x + 0.3 * x**2) @ mixing


# --- Frechet distance ---


def test_frechet_of_independent_normals_is_the_closed_form() -> None:
    a = Moments(
        10, torch.tensor([0.0, 1.0]).double(), torch.diag(torch.tensor([4.0, 9.0]).double())
    )
    b = Moments(
        10, torch.tensor([2.0, 1.0]).double(), torch.diag(torch.tensor([1.0, 1.0]).double())
    )
    assert distances.frechet(a, b) == pytest.approx(4 + (2 - 1) ** 2 + (3 - 1) ** 2)
    assert distances.frechet(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_does_not_need_commuting_covariances() -> None:
    import scipy.linalg

    a, b = (
        distances.moments(mixed(300, 2)),
        distances.moments(mixed(200, 3) @ torch.diag(torch.arange(1.0, 7.0).double())),
    )
    root = scipy.linalg.sqrtm(a.covariance.numpy() @ b.covariance.numpy()).real
    expected = (
        (a.mean - b.mean).square().sum()
        + a.covariance.trace()
        + b.covariance.trace()
        - 2 * np.trace(root)
    )
    assert distances.frechet(a, b) == pytest.approx(expected.item(), rel=1e-9)
    assert distances.frechet(b, a) == pytest.approx(distances.frechet(a, b), rel=1e-9)


def test_moments_are_those_of_numpy() -> None:
    x = mixed(50, 4)
    found = distances.moments(x.float())
    assert found.n == 50
    np.testing.assert_allclose(found.mean, x.float().double().mean(dim=0))
    np.testing.assert_allclose(
        found.covariance, np.cov(x.float().numpy().T.astype(np.float64)), rtol=1e-9
    )


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
    theirs = FrechetInceptionDistance(
        feature=Given(), normalize=False, input_img_size=(3, 8, 8)
    ).set_dtype(torch.float64)
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
    assert distances.kid(distances.powers(x), distances.powers(y)) == pytest.approx(
        float(expected), rel=1e-9
    )


def test_extrapolation_removes_a_bias_of_one_over_n() -> None:
    truth, c, n = 3.0, 50.0, 100
    interval = Interval(truth + c / n, 0, 0, of_halves=truth + c / (n / 2))
    assert distances.extrapolated(interval) == pytest.approx(truth)


def test_the_extrapolated_distance_of_equal_distributions_is_about_zero() -> None:
    real = distances.moments(mixed(100_000, 7))
    intervals = [
        distances.frechet_interval(mixed(300, seed), real, count=20) for seed in range(10, 30)
    ]
    biased = sum(i.value for i in intervals) / 20
    unbiased = sum(distances.extrapolated(i) for i in intervals) / 20
    assert abs(unbiased) < 0.25 * biased


# --- Intervals ---


def coverage(intervals: list[Interval], truth: float) -> float:
    return sum(i.low <= truth <= i.high for i in intervals) / len(intervals)


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.5])
def test_frechet_intervals_hold_the_expected_distance(shift: float) -> None:
    """95% of them for distances that are not near 0, more where the distribution is the real one."""
    real = Moments(10**6, torch.zeros(6).double(), torch.eye(6).double())
    n, draws = 200, 150

    def sample(seed: int) -> Tensor:
        return normal(n, 6, seed, scale=1 + shift, shift=shift)

    expectation = (
        sum(distances.frechet(distances.moments(sample(10_000 + s)), real) for s in range(1000))
        / 1000
    )
    intervals = [
        distances.frechet_interval(sample(s), real, seed=s, count=40) for s in range(draws)
    ]
    found = coverage(intervals, expectation)
    assert found > 0.90
    assert found < 0.995 or not shift
    spread = (
        torch.tensor([distances.frechet(distances.moments(sample(s)), real) for s in range(draws)])
        .std()
        .item()
    )
    width = sum(i.high - i.low for i in intervals) / draws
    assert (
        width < (1.4 if shift else 2.2) * 2 * 1.96 * spread
    )  # wider by sqrt(3) where the distance is all noise


def test_a_bootstrap_would_not_hold_it() -> None:
    """Trap 26, so that nobody simplifies the intervals into it."""
    real = Moments(10**6, torch.zeros(6).double(), torch.eye(6).double())
    expectation = (
        sum(distances.frechet(distances.moments(normal(200, 6, 500 + s)), real) for s in range(200))
        / 200
    )
    held = 0
    for seed in range(40):
        x, g = normal(200, 6, seed), np.random.default_rng(seed)
        figures = [
            distances.frechet(distances.moments(x[g.integers(0, 200, 200)]), real)
            for _ in range(40)
        ]
        held += np.quantile(figures, 0.025) <= expectation <= np.quantile(figures, 0.975)
    assert held / 40 < 0.6


def test_kid_intervals_hold_the_truth() -> None:
    """KID is unbiased, so the truth is the distance at any n."""
    real = distances.powers(normal(20_000, 4, 99))
    truth = distances.kid(distances.powers(normal(200_000, 4, 98, shift=0.3)), real)
    intervals = [
        distances.kid_interval(normal(200, 4, s, shift=0.3), real, seed=s, count=40)
        for s in range(150)
    ]
    assert 0.90 < coverage(intervals, truth) <= 0.995


def test_class_balance_intervals_hold_the_expected_distance() -> None:
    expected, p = torch.ones(5), torch.tensor([0.3, 0.2, 0.2, 0.2, 0.1])

    def labels(seed: int) -> Tensor:
        return torch.multinomial(
            p, 400, replacement=True, generator=torch.Generator().manual_seed(seed)
        )

    def distance(x: Tensor) -> float:
        return distances.total_variation(torch.bincount(x, minlength=5).double(), expected.double())

    truth = sum(distance(labels(1000 + s)) for s in range(500)) / 500
    assert 0.1 < truth < 0.15  # 0.1 for infinitely many: a finite sample is further off
    intervals = [distances.class_balance(labels(s), expected, seed=s) for s in range(150)]
    assert 0.90 < coverage(intervals, truth) <= 1
    spread = torch.tensor([i.value for i in intervals]).std().item()
    assert (
        sum(i.high - i.low for i in intervals) / 150 < 1.5 * 2 * 1.96 * spread
    )  # not by being wide


def test_recall_and_coverage_intervals_hold_the_expected_figure() -> None:
    y = normal(300, 3, 77)
    found = [
        distances.manifold(normal(300, 3, s, scale=1.3), y, seed=s, count=25) for s in range(80)
    ]
    for name in ("precision", "recall", "density", "coverage"):
        intervals = [getattr(f, name) for f in found]
        truth = sum(i.value for i in intervals) / len(intervals)
        assert 0.86 < coverage(intervals, truth) <= 1, name
        spread = torch.tensor([i.value for i in intervals]).std().item()
        assert sum(i.high - i.low for i in intervals) / len(intervals) < 1.6 * 2 * 1.96 * spread, (
            name
        )


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
    truth = (
        sum(
            distances.frechet(distances.moments(normal(100, 4, 9000 + s)), real)
            for s in range(1000)
        )
        / 1000
    )
    floors = [
        distances.frechet_floor(normal(800, 4, 100 + s), real, 100, seed=s) for s in range(100)
    ]
    ones = [distances.frechet_interval(normal(100, 4, 100 + s), real, seed=s) for s in range(30)]
    assert 0.86 < coverage(floors, truth) <= 1
    widths = [sum(i.high - i.low for i in found) / len(found) for found in (floors, ones)]
    assert widths[0] < 0.5 * widths[1]
    whole = normal(250, 4, 3)
    assert distances.frechet_floor(whole, real, 250).value == pytest.approx(
        distances.frechet(distances.moments(whole), real)
    )


def test_draws_of_the_real_distribution_are_as_far_as_their_floor() -> None:
    """Two classes far apart, whose counts are as random in the one sample as in the other."""

    def sample(n: int, seed: int) -> Tensor:
        g = torch.Generator().manual_seed(seed)
        return normal(n, 3, seed) + 4 * (torch.rand(n, 1, generator=g) < 0.4)

    real = distances.moments(sample(50_000, 1))
    ours = [distances.frechet(distances.moments(sample(200, 2 * s + 10)), real) for s in range(100)]
    floors = [
        distances.frechet_floor(sample(1600, 2 * s + 11), real, 200, s).value for s in range(100)
    ]
    assert sum(ours) / sum(floors) == pytest.approx(1, abs=0.2)


def test_agreement_of_all_halves_is_no_certainty() -> None:
    """None of 200 images is near a real one: an upper limit remains, about that of the rule of three."""
    found = distances.manifold(normal(200, 2, 0, shift=100.0), normal(200, 2, 1))
    for figure in (
        found.recall,
        found.coverage,
        found.density,
        distances.class_balance(torch.zeros(200).long(), torch.ones(1)),
    ):
        assert (figure.value, figure.low) == (0, 0)
        assert 3 / 200 < figure.high < 4 / 200
    assert distances.mean_interval(torch.tensor([1.0, 1.0, 0.99]), 0.0, 1.0).high == 1.0


# --- Precision, recall, density, coverage ---


@pytest.mark.parametrize(("k", "seed"), list(product((1, 3, 5), (0, 1))))
def test_manifold_equals_prdc(k: int, seed: int) -> None:
    x, y = mixed(150, seed), mixed(150, seed + 10) * 1.1
    theirs = compute_prdc(real_features=y.numpy(), fake_features=x.numpy(), nearest_k=k)
    ours = distances.manifold(x, y, k_precision=k, k_density=max(k, 5), count=2)
    assert ours.precision.value == pytest.approx(theirs["precision"], abs=1e-9)
    assert ours.recall.value == pytest.approx(theirs["recall"], abs=1e-9)
    theirs = compute_prdc(real_features=y.numpy(), fake_features=x.numpy(), nearest_k=max(k, 5))
    assert ours.density.value == pytest.approx(theirs["density"], abs=1e-6)
    assert ours.coverage.value == pytest.approx(theirs["coverage"], abs=1e-9)


def test_recall_of_halves_is_that_of_the_halves_alone() -> None:
    """Radii are found among the half only, from the neighbours in the whole sample."""
    x, y = mixed(400, 3), mixed(400, 4)
    halves = distances.random_halves(400, seed=0, count=2)
    ours = distances.manifold(x, y, count=2)
    for k, name in ((3, "recall"), (5, "coverage")):
        alone = [
            compute_prdc(real_features=y.numpy(), fake_features=x[half].numpy(), nearest_k=k)[name]
            for half in halves
        ]
        assert getattr(ours, name).of_halves == pytest.approx(sum(alone) / 2, abs=1e-9)


# --- Classes ---


def test_total_variation_is_the_mass_to_move() -> None:
    assert distances.total_variation(
        torch.tensor([6.0, 4.0]), torch.tensor([1.0, 1.0])
    ) == pytest.approx(0.1)
    assert distances.total_variation(
        torch.tensor([5.0, 0.0]), torch.tensor([0.0, 3.0])
    ) == pytest.approx(1.0)


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
    assert (
        distances.share_interval(torch.ones(50, dtype=torch.bool)).low < 0.95
    )  # certainty is not claimed


def test_the_interval_of_a_share_is_scipys() -> None:
    from scipy.stats import binomtest

    found = distances.share_interval(torch.arange(80) < 13)
    low, high = binomtest(13, 80).proportion_ci(method="wilson")
    assert found.value == 13 / 80
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
