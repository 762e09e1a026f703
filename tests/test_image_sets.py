"""The image sets of the benchmark of generality."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import image_sets
from image_sets import ASIDE, SETS, WITHOUT_LABELS, Made, make_set
from undiffuse.data.loading import load_dataset


def test_a_set_is_data_for_training_and_the_same_each_time(tmp_path: Path) -> None:
    (first, whole), (second, _) = (make_set("small-digits", tmp_path / part) for part in "ab")
    assert first == whole
    training, test = load_dataset(str(first)), load_dataset(str(first), split="test")
    assert (len(training), len(test), training.shape) == (1397, 400, (1, 8, 8))
    assert training.classes == test.classes == tuple("0123456789")
    assert (load_dataset(str(second)).images == training.images).all()


def test_the_sets_that_are_kept_aside_are_sets() -> None:
    assert set(ASIDE) < set(SETS)
    assert set(WITHOUT_LABELS) < set(SETS)


def test_a_set_without_labels_is_judged_by_a_classifier_that_was_told_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quarters(random: np.random.Generator) -> Made:
        labels = random.integers(0, 4, 300)
        return (60 * labels[:, None, None] + np.zeros((300, 8, 8))).astype(np.uint8), labels, 100

    monkeypatch.setitem(image_sets.WITHOUT_LABELS, "quarters", 50)
    with SETS.added(quarters):
        told, whole = make_set("quarters", tmp_path)
    assert told != whole
    hidden, shown = load_dataset(str(told)), load_dataset(str(whole))
    assert hidden.labels is None
    assert len(hidden) == 50
    assert len(shown.classes) == 4
    assert (hidden.images == shown.images[:50]).all()
    test = load_dataset(str(told), split="test")
    assert (test.images == load_dataset(str(whole), split="test").images).all()
