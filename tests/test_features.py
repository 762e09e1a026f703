"""The feature network: that it is the pinned one, how good it is, and what is kept of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from undiffuse.base.cache import to_cache
from undiffuse.base.errors import UserError
from undiffuse.base.tensors import save_tensors
from undiffuse.data.dataset import Dataset
from undiffuse.data.loading import load_dataset
from undiffuse.measuring import features
from undiffuse.measuring.distances import frechet, moments
from undiffuse.measuring.scorer import SCORE_COUNTS, scorer_file, scorer_for, stored_scorer


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def shades(n: int, classes: int = 3, size: int = 8) -> Dataset:
    """Images whose brightness is their class."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % classes
    images = (
        torch.randint(0, 60, (n, 1, size, size), generator=g) + 80 * labels[:, None, None, None]
    )
    return Dataset.of("shades", images.to(torch.uint8), labels, tuple("abc"[:classes]))


def test_the_digits_network_is_as_good_as_promised() -> None:
    network = features.digits_network()
    # A pair: whoever changes the weights gives the metric another name.
    assert (network.name, network.sha256) == (
        "digits-64",
        "f1abf8eef997528ee901fc9a0505ecf053f549f5017ae33aee3956e36bf562cb",
    )
    assert network.classes == tuple("0123456789")
    assert (
        features.correct(network.network, load_dataset("mnist", split="test")).double().mean()
        >= 0.996
    )
    path = Path(features.__file__).parent / "weights" / "digits-64.safetensors"
    assert path.stat().st_size < 1_000_000


def test_mnist_is_given_the_pinned_network() -> None:
    found = features.feature_network(load_dataset("mnist"))
    assert found is not None
    assert found.sha256 == features.DIGITS_SHA256


def test_another_network_in_its_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "DIGITS_SHA256", "1" * 64)
    with pytest.raises(UserError, match="damaged"):
        features.digits_network()


def test_features_do_not_depend_on_the_batch() -> None:
    network, images = features.digits_network(), load_dataset("mnist", split="test").images[:520]
    together, probabilities = network(images)
    alone, _ = network(images[510:512])
    assert together.shape == (520, 64)
    torch.testing.assert_close(together[510:512], alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(520))


def test_the_packaged_scorer_holds_mnists_own_moments_and_floors() -> None:
    scorer = scorer_for(load_dataset("mnist"))
    assert scorer is not None
    test = load_dataset("mnist", split="test").images
    own, _ = scorer.network(load_dataset("mnist").images[:3000])
    assert (
        own.double().mean(dim=0) - scorer.moments.mean
    ).norm() < 0.1 * scorer.moments.mean.norm()
    assert scorer.moments.n == 60_000
    assert set(scorer.floors) == set(SCORE_COUNTS)
    distances = [scorer(part) for part in test[:2000].split(500)]
    assert sum(distances) / 4 == pytest.approx(scorer.floors[500], rel=0.25)
    assert scorer.floors[500] > scorer.floors[1000] > scorer.floors[2000] > 0


def test_a_network_for_other_data_is_trained_once(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = shades(120)
    first = features.feature_network(dataset)
    assert first is not None
    assert features.correct(first.network, dataset).double().mean() > 0.95
    monkeypatch.setattr(features, "train_classifier", None)
    again = features.feature_network(dataset)
    assert again is not None
    assert again.sha256 == first.sha256
    assert again.name == first.name == f"own-64-{first.sha256[:8]}"
    assert again.classes == ("a", "b", "c")
    assert scorer_for(dataset) is None  # no floor is known before an evaluation
    x, _ = features.reference_features(first, dataset)
    y, _ = features.reference_features(first, dataset)
    assert torch.equal(x, y)
    to_cache(scorer_file(features.dataset_key(dataset)), stored_scorer(first, x, x.repeat(5, 1)))
    scorer = scorer_for(dataset)
    assert scorer is not None
    assert scorer(dataset.images) == pytest.approx(frechet(moments(x), moments(x)), abs=1e-3)
    assert list(scorer.floors) == [500]
    named = features.feature_network(dataclasses.replace(dataset, classes=("x", "y", "z")))
    assert named is not None
    assert named.classes == ("x", "y", "z")


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_cache_is_computed_anew(
    damage: bytes | None, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "FEWEST_STEPS", 60)
    dataset = shades(60)
    first = features.feature_network(dataset)
    assert first is not None
    x, _ = features.reference_features(first, dataset)
    for path in own_cache.iterdir():
        if damage is None:  # whole, but of something else
            save_tensors(path, {"other": torch.zeros(1)}, {})
        else:
            path.write_bytes(damage)
    assert scorer_for(dataset) is None
    again = features.feature_network(dataset)
    assert again is not None
    y, _ = features.reference_features(again, dataset)
    torch.testing.assert_close(x, y)


def test_without_a_cache_there_is_a_warning_and_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="cache can't be used"):
        assert features.feature_network(shades(60)) is not None


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64), (1, 8, 8), (1, 20, 36)])
def test_a_classifier_ends_at_about_seven_pixels(shape: tuple[int, int, int]) -> None:
    network = features.Classifier(shape, 5).eval()
    x = torch.zeros(2, *shape)
    side = min(network.convolutions(x).shape[-2:])
    assert 5 <= side <= 10
    assert network(x).shape == (2, 5)


def test_without_labels_or_with_one_class_there_is_none() -> None:
    dataset = shades(40)
    assert features.feature_network(Dataset.of("bare", dataset.images)) is None
    assert (
        features.feature_network(
            Dataset.of("one", dataset.images, torch.zeros(40, dtype=torch.long), ("a",))
        )
        is None
    )


def test_augmentation_moves_and_keeps_brightness() -> None:
    x = torch.full((4, 1, 28, 28), -1.0)
    x[:, :, 10:18, 10:18] = 1
    moved = features.random_affine(x, seed=0, step=0)
    assert not torch.equal(moved[0], moved[1])
    assert torch.equal(moved, features.random_affine(x, seed=0, step=0))
    assert (moved > 0).float().mean() == pytest.approx((x > 0).float().mean().item(), rel=0.3)
    assert moved[..., 0, 0].max() == -1
