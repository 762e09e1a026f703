"""The audit against brute force, its false alarms on real digits, its power on planted copies."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from undiffuse.base import rng
from undiffuse.data.loading import load_dataset
from undiffuse.measuring import novelty


@pytest.fixture(scope="module")
def train() -> Tensor:
    return load_dataset("mnist").images


@pytest.fixture(scope="module")
def test() -> Tensor:
    return load_dataset("mnist", split="test").images


def shuffled_halves(ratios: Tensor, seed: int, purpose: str, index: int) -> tuple[Tensor, Tensor]:
    order = torch.from_numpy(rng.stream(seed, purpose, index).permutation(len(ratios)))
    audited, control = ratios[order].chunk(2)
    return audited, control


def brute_force(query: Tensor, training: Tensor) -> tuple[Tensor, Tensor]:
    """The order of the training images by their distance, and the distances in that order.

    A distance is the root mean square difference of 8-bit values, for the best of nine shifts.
    Pixels from outside repeat the border."""
    padded = np.pad(query.numpy(), ((0, 0), (1, 1), (1, 1)), mode="edge").astype(float)
    height, width = query.shape[-2:]
    best = np.full(len(training), np.inf)
    for y in range(3):
        for x in range(3):
            way = padded[:, y : y + height, x : x + width]
            d = np.sqrt(((training.numpy().astype(float) - way) ** 2).mean(axis=(1, 2, 3)))
            best = np.minimum(best, d)
    order = best.argsort()
    return torch.from_numpy(order), torch.from_numpy(best[order])


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 20, 20), (1, 64, 64)])
def test_the_nearest_images_are_those_of_brute_force(shape: tuple[int, int, int]) -> None:
    g = torch.Generator().manual_seed(0)
    coarse = torch.rand(60, shape[0], 5, 5, generator=g)
    smooth = torch.nn.functional.interpolate(coarse, shape[1:], mode="bilinear")
    training = (255 * smooth).to(torch.uint8)
    queries = (255 * (0.7 * smooth[:5] + 0.3 * smooth[5:10])).to(torch.uint8)
    found = novelty.nearest_images(queries, training)
    for i, query in enumerate(queries):
        order, distance = brute_force(query, training)
        assert found.nearest[i].tolist() == order[:2].tolist()
        torch.testing.assert_close(found.distance[i].double(), distance[:2], rtol=1e-5, atol=1e-3)


def test_on_digits_the_candidates_hold_the_nearest(train: Tensor, test: Tensor) -> None:
    found = novelty.nearest_images(test[:12], train[:4000])
    for i in range(12):
        order, distance = brute_force(test[i], train[:4000])
        assert found.nearest[i, 0] == order[0]
        assert found.distance[i, 0] == pytest.approx(distance[0].item(), rel=1e-4)


def test_copies_of_duplicated_training_images_are_seen(train: Tensor) -> None:
    """Networks memorise duplicated images first. A duplicate is not the second nearest."""
    once = novelty.nearest_images(train[:40], train[:2000])
    twice = novelty.nearest_images(train[:40], torch.cat([train[:2000], train[:2000]]))
    assert (once.ratio == 0).all()
    assert (twice.ratio == 0).all()
    assert (twice.distance[:, 1] >= once.distance[:, 1]).all()  # from fewer candidates


def test_where_all_candidates_are_one_image_the_ratio_is_that_of_the_last() -> None:
    images = torch.zeros(20, 1, 8, 8, dtype=torch.uint8)
    found = novelty.nearest_images(images[:2] + 9, images)
    assert found.distance.tolist() == [[9.0, 9.0]] * 2
    assert found.ratio.tolist() == [1.0, 1.0]


def test_distances_are_in_8_bit_values() -> None:
    training = torch.stack([torch.full((1, 8, 8), v, dtype=torch.uint8) for v in (100, 200)])
    found = novelty.nearest_images(torch.full((1, 1, 8, 8), 110, dtype=torch.uint8), training)
    assert found.distance.tolist() == [[10.0, 90.0]]
    assert found.ratio.item() == pytest.approx(1 / 9)


# --- The test behind the alarm ---


@pytest.mark.parametrize(("audited", "control", "rank"), [(50, 80, 3), (30, 20, 1), (200, 100, 10)])
def test_the_chance_is_exact(audited: int, control: int, rank: int) -> None:
    """Against shuffles: any order of the pooled values is as likely as any other."""
    g = np.random.default_rng(0)
    counts = []
    for _ in range(4000):
        is_control = g.permutation(np.arange(audited + control) < control)
        counts.append(int((~is_control[: np.flatnonzero(is_control)[rank - 1]]).sum()))
    for count in (0, 1, 2, 5, 10, 20, 30):
        expected = np.mean(np.array(counts) >= count)
        found = novelty.chance_of_as_many(count, audited, control, rank)
        assert found == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 4000))


def test_the_chance_is_that_of_the_hypergeometric() -> None:
    from scipy.stats import hypergeom

    cases = (7, 100, 200, 2), (120, 5000, 5000, 50), (15, 5000, 5000, 5)
    for count, audited, control, rank in cases:
        expected = hypergeom.cdf(rank - 1, audited + control, control, count + rank - 1)
        found = novelty.chance_of_as_many(count, audited, control, rank)
        assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("audited", "control"), [(200, 240), (2000, 2000), (10_000, 10_000)])
def test_the_detectable_share_is_the_smallest_that_rings(audited: int, control: int) -> None:
    """So many copies in place of the least ratios raise the alarm. Two fewer do not."""
    g = torch.Generator().manual_seed(0)
    of_control = torch.rand(control, generator=g, dtype=torch.float64).sort().values
    # The audited ones lie at the control's quantiles, so each tail has exactly the expected number.
    ours = of_control[((torch.arange(audited) + 0.5) / audited * control).long()]
    share = novelty.detectable_share(audited, control)

    def rings(copies: int) -> bool:
        of_audited = torch.cat([torch.zeros(copies).double(), ours[: audited - copies]])
        return novelty.audit(of_audited, of_control).raised

    assert rings(math.ceil(share * audited) + 1)
    assert not rings(math.ceil(share * audited) - 2)


@pytest.mark.slow
def test_false_alarms_and_power_on_all_of_mnist() -> None:
    """Halves of the whole test set against the whole training set.

    The planted copies of each kind are 1% and 5%."""
    training, everything = load_dataset("mnist").images, load_dataset("mnist", split="test").images
    of_test = novelty.nearest_images(everything, training).ratio
    halves = [shuffled_halves(of_test, 2, "d", i) for i in range(100)]
    assert sum(novelty.audit(audited, control).raised for audited, control in halves) <= 5
    for copy in (exact, moved, noised):
        copies = novelty.nearest_images(copy(training[torch.arange(250) * 239]), training).ratio
        for count in (50, 250):
            for audited, control in halves[:10]:
                assert novelty.audit(torch.cat([audited[count:], copies[:count]]), control).raised


@pytest.fixture(scope="module")
def ratios(train: Tensor, test: Tensor) -> Tensor:
    """d1/d2 of 4,000 test digits, against 8,000 training digits."""
    return novelty.nearest_images(test[:4000], train[:8000]).ratio


def test_real_digits_raise_at_most_five_alarms_in_a_hundred(ratios: Tensor) -> None:
    alarms = 0
    for index in range(100):
        audited, control = shuffled_halves(ratios, 0, "draw", index)
        alarms += novelty.audit(audited, control).raised
    assert alarms <= 5


def exact(images: Tensor) -> Tensor:
    return images.clone()


def moved(images: Tensor) -> Tensor:
    return torch.roll(images, (1, 1), dims=(2, 3))


def noised(images: Tensor) -> Tensor:
    noise = 8 * rng.normal(images.shape, 0, "planted noise")
    return (images.float() + noise).clamp(0, 255).round().to(torch.uint8)


@pytest.mark.parametrize(
    ("copy", "share"), [(exact, 0.01), (moved, 0.01), (noised, 0.01), (noised, 0.05)]
)
def test_planted_copies_raise_the_alarm(
    copy: Callable[[Tensor], Tensor], share: float, train: Tensor, ratios: Tensor
) -> None:
    count = round(share * 2000)
    planted = copy(train[torch.arange(count) * 37 % 8000])
    copies = novelty.nearest_images(planted, train[:8000]).ratio
    for index in range(5):
        audited, control = shuffled_halves(ratios, 1, "draw", index)
        assert novelty.audit(torch.cat([audited[count:], copies]), control).raised


def test_other_proportions_of_the_classes_are_no_copies(ratios: Tensor) -> None:
    """A model that makes too many 1s does not copy, though they lie close together."""
    labels = load_dataset("mnist", split="test").labels
    assert labels is not None
    ones, others = (ratios[rows] for rows in ((labels[:4000] == 1), (labels[:4000] != 1)))
    control = torch.cat([ones[:200], others[:1800]])
    audited = torch.cat([ones[200:], others[1800:2300]])  # about a third 1s in place of a tenth
    assert not novelty.audit(audited, control).raised


# --- C_T, and the share that is nearer ---


def test_c_t_is_the_mann_whitney_score_of_scipy() -> None:
    from scipy.stats import mannwhitneyu

    g = torch.Generator().manual_seed(0)
    q, p = torch.rand(300, generator=g), torch.rand(200, generator=g) + 0.05
    p[:20] = q[:20]  # ties
    u = mannwhitneyu(q.numpy(), p.numpy()).statistic
    expected = (u - 300 * 200 / 2) / math.sqrt(300 * 200 * 501 / 12)
    assert novelty.c_t(q, p) == pytest.approx(expected, rel=1e-9)
    assert novelty.c_t(p, q) == pytest.approx(-expected, rel=1e-9)


def test_c_t_averages_over_cells_by_their_test_images() -> None:
    g = torch.Generator().manual_seed(1)
    q, p = torch.rand(200, generator=g), torch.rand(300, generator=g)
    q_cell, p_cell = torch.arange(200) % 2, (torch.arange(300) % 3 > 0).long()
    q[q_cell == 0] /= 2
    scores = [novelty.mann_whitney(q[q_cell == c], p[p_cell == c]) for c in (0, 1)]
    expected = (100 * scores[0] + 200 * scores[1]) / 300
    assert novelty.c_t(q, p, (q_cell, p_cell)) == pytest.approx(expected)
    assert scores[0] < -5


def test_c_t_of_too_few_is_not_a_number() -> None:
    assert math.isnan(novelty.c_t(torch.rand(10), torch.rand(100)))


def test_the_share_that_is_nearer_is_one_percent_of_real_ones() -> None:
    test_distances = torch.arange(10_000).float()
    assert novelty.nearer_share(test_distances, test_distances) == pytest.approx(0.01, abs=1e-4)
    assert novelty.nearer_share(test_distances / 2, test_distances) == pytest.approx(0.02, abs=2e-4)
