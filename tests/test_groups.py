"""Groups: k-means against scikit-learn and known clusters, and what a run makes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

import undiffuse
from conftest import write_idx
from undiffuse import data
from undiffuse.groups import FEWEST, coarse, drawn_groups, k_means
from undiffuse.run import Run


def blobs(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(images (n, 8, 8), kinds (n,)): noise around one of four pictures, a half, a quarter, an eighth and an eighth of them."""
    g = np.random.default_rng(seed)
    pictures = np.random.default_rng(99).integers(40, 216, (4, 8, 8))
    kinds = g.choice(4, size=n, p=[0.5, 0.25, 0.125, 0.125])
    return np.clip(pictures[kinds] + g.normal(0, 12, (n, 8, 8)), 0, 255).astype(np.uint8), kinds


def test_k_means_finds_groups_that_are_there() -> None:
    """With more groups than kinds of picture none holds two kinds."""
    images, kinds = blobs(1600)
    found = k_means(torch.from_numpy(images)[:, None], 12, seed=0).numpy()
    for group in np.unique(found):
        assert len(np.unique(kinds[found == group])) == 1


def test_k_means_is_as_good_as_scikit_learns() -> None:
    """The sum of squared distances to the centres, on digits."""
    images = data.load("mnist").images[:6000]
    x = coarse(images)

    def inertia(group: np.ndarray) -> float:
        return sum((x[group == k] - x[group == k].mean(dim=0)).square().sum().item() for k in np.unique(group))

    theirs = KMeans(32, init="random", n_init=1, max_iter=30, random_state=0).fit(x.numpy())
    assert inertia(k_means(images, 32, seed=0).numpy()) < 1.02 * theirs.inertia_


def test_few_images_have_few_groups() -> None:
    images = torch.from_numpy(blobs(5 * FEWEST + 7)[0])[:, None]
    assert k_means(images, 64, seed=0).max() <= 4
    assert k_means(images[:FEWEST], 64, seed=0).tolist() == [0] * FEWEST
    assert torch.equal(k_means(images, 64, seed=3), k_means(images, 64, seed=3))


def test_identical_images_are_one_group() -> None:
    assert k_means(torch.full((400, 1, 8, 8), 7, dtype=torch.uint8), 4, seed=0).unique().numel() == 1


def test_groups_are_drawn_as_often_as_they_are_large() -> None:
    found = drawn_groups((30, 0, 50, 20), range(5000), seed=1)
    assert torch.bincount(found, minlength=4).tolist() == pytest.approx([1500, 0, 2500, 1000], abs=110)
    assert torch.equal(drawn_groups((30, 0, 50, 20), [7, 4000], seed=1), found[[7, 4000]])
    assert not torch.equal(drawn_groups((30, 0, 50, 20), range(5000), seed=2), found)


@pytest.fixture(scope="module")
def grouped_run(train: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_idx(tmp_path_factory.mktemp("data") / "blobs", blobs(900)[0])
    return train(data=str(folder), steps=150, groups=4, batch_size=32, lr=5e-3, guidance=1.5, sample_calls=20)


def test_a_run_knows_its_groups_and_needs_no_label(grouped_run: Path) -> None:
    about, denoiser = Run(grouped_run).about(), undiffuse.load(grouped_run)
    assert denoiser.groups == about.facts.groups
    assert (denoiser.classes, denoiser.labels) == ((), len(denoiser.groups))
    assert sum(denoiser.groups) == about.facts.training == 855
    with pytest.raises(undiffuse.UserError, match="trained without labels"):
        undiffuse.sample(grouped_run, n=2, labels=[1])


def test_images_are_drawn_in_the_groups_proportions(grouped_run: Path) -> None:
    """Each kind about as often as the data hold it; the same image in any batch."""
    drawn = undiffuse.sample(grouped_run, n=400)
    pictures = np.random.default_rng(99).integers(40, 216, (4, 64))
    nearest = ((drawn.reshape(400, 1, 64).astype(float) - pictures) ** 2).sum(axis=2).argmin(axis=1)
    assert np.bincount(nearest, minlength=4) / 400 == pytest.approx([0.5, 0.25, 0.125, 0.125], abs=0.08)
    alone = undiffuse.sample(grouped_run, n=5, batch_size=2).astype(int)
    assert np.abs(alone - drawn[:5]).max() <= 1


def test_a_finished_run_with_groups_is_known_again(grouped_run: Path) -> None:
    config = Run(grouped_run).about().config
    assert not config.conditional
    assert undiffuse.api.train_config(config, grouped_run) == grouped_run  # finished: the same data are the same data


@pytest.mark.parametrize("fields", [{"groups": 0}, {"groups": 4, "conditional": True}])
def test_without_groups_the_labels_are_the_data_sets(fields: dict[str, object], train: Callable[..., Path]) -> None:
    denoiser = undiffuse.load(train(steps=1, snapshots=2, **fields))
    assert denoiser.groups == ()
    assert denoiser.labels == (10 if "conditional" in fields else 0)
