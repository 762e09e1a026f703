"""The real images that generated images are compared with.

The control of every figure is computed from real images that the run was not trained on: the test
set, or held-out images where the data set has no test set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from undiffuse.base.errors import UserError
from undiffuse.data.arrays import NoTestSet
from undiffuse.data.dataset import Dataset
from undiffuse.data.loading import load_dataset
from undiffuse.data.splits import split_dataset

FEWEST = 100
"""The fewest images for a statistic."""


@dataclass(frozen=True)
class Reference:
    """Real images.

    whole: the data set. training, test: for quality; test images are the control.
    seen, unseen: for novelty and likelihood; the images that the run was trained on, and images
    that it was not trained on. control: what test and unseen images are, in words."""

    whole: Dataset
    training: Dataset
    test: Dataset
    seen: Dataset
    unseen: Dataset
    control: str


Split: TypeAlias = "Callable[[Dataset], tuple[Dataset, Dataset]]"


def reference(
    spec: str,
    size: int | None = None,
    trained_on: Split | None = None,
    *,
    background: str = "auto",
) -> Reference:
    """The real images of a data set, or of a run that was trained on it.

    spec, size, background: as for `load_dataset`. trained_on: the whole data set ->
    (images that the run was trained on, images that it held out).

    Without a test set, one image in twenty is the control of quality, always the same images. The
    control of novelty and likelihood is then what the run itself held out.

    Raises UserError where the data are not the run's, there are too few images, or the test images
    have another shape."""
    whole = load_dataset(spec, size, background=background)
    test, control = real_test_set(spec, size, background), "test set"
    training, seen = whole, whole
    if test is None:
        control = "held-out images"
        training, test = split_dataset(whole, seed=0)
        seen = training
    unseen = test
    if trained_on is not None:
        seen, held_out = trained_on(whole)
        unseen = held_out if control == "held-out images" else test
    if test.shape != whole.shape:
        raise UserError(
            f"'{spec}': its test images are {test.shape}, its training images {whole.shape}; give "
            "both the same size"
        )
    for part, what in ((seen, "training images"), (test, control), (unseen, control)):
        if len(part) < FEWEST:
            more = (
                f"; a data set of {20 * FEWEST:,} images or more holds out enough"
                if control == "held-out images"
                else ""
            )
            raise UserError(
                f"'{spec}' has only {len(part)} {what}, too few to compare with: {FEWEST} are "
                f"needed{more}"
            )
    return Reference(whole, training, test, seen, unseen, control)


def real_test_set(spec: str, size: int | None, background: str) -> Dataset | None:
    """The test set of a data set; None where it has none."""
    try:
        return load_dataset(spec, size, split="test", background=background)
    except NoTestSet:
        return None
