"""The image sets of the benchmark of generality, and its measure for images without labels."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from generality import ratio_without_labels
from image_sets import ASIDE, SETS, make_set
from undiffuse.data.loading import load_dataset


def test_a_set_is_data_for_training_and_the_same_each_time(tmp_path: Path) -> None:
    first, second = (make_set("small-digits", tmp_path / part) for part in "ab")
    training, test = load_dataset(str(first)), load_dataset(str(first), split="test")
    assert (len(training), len(test), training.shape) == (1397, 400, (1, 8, 8))
    assert training.classes == test.classes == tuple("0123456789")
    assert (load_dataset(str(second)).images == training.images).all()


def test_the_sets_that_are_kept_aside_are_sets() -> None:
    assert set(ASIDE) < set(SETS)


@pytest.mark.parametrize(("blurred", "low", "high"), [(False, 0.5, 2.0), (True, 5.0, 1e9)])
def test_real_images_have_a_ratio_of_one_and_smooth_ones_far_more(
    tmp_path: Path, blurred: bool, low: float, high: float
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (900, 8, 8, 3), dtype=np.uint8)
    drawn = images[600:].astype(float)
    if blurred:
        drawn = (drawn + np.roll(drawn, 1, axis=1)) / 2
    np.savez(tmp_path / "data.npz", train_images=images[:300], test_images=images[300:600])
    np.savez(tmp_path / "samples.npz", images=drawn.astype(np.uint8))
    found = ratio_without_labels(tmp_path, tmp_path / "samples.npz")
    assert low < found["ratio"] < high
    assert found["ratio_low"] < found["ratio"] < found["ratio_high"]
