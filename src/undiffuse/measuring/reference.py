"""Evaluation: how good generated images are, how likely the model holds real ones, and whether it copies.

Every figure comes with its 95% interval, and beside it the same figure of real images that were not trained on, at the
same number of images: its control, or floor. What cannot be given for a data set is listed with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from undiffuse.base.errors import UserError
from undiffuse.data.dataset import Dataset
from undiffuse.data.idx import NoTestSet
from undiffuse.data.loading import load_dataset
from undiffuse.data.splits import split_dataset

FEWEST = 100
"""Fewer images than this give no statistic worth the name."""


@dataclass(frozen=True)
class Reference:
    """Real images. For quality: the data set as a `whole`, its `training` part, and its `test` part, the control. For
    novelty and likelihood: those `seen` by the run, and those `unseen`. `control` says what test and unseen ones are."""

    whole: Dataset
    training: Dataset
    test: Dataset
    seen: Dataset
    unseen: Dataset
    control: str


Split: TypeAlias = "Callable[[Dataset], tuple[Dataset, Dataset]]"


def reference(spec: str, size: int | None = None, trained_on: Split | None = None) -> Reference:
    """The real images of a data set, or of a run on it.

    trained_on: the whole data set -> (images that the run was trained on, images that it held out).

    Without a test set, one in twenty is the control of quality, always the same ones; what the run itself held out is
    that of novelty and likelihood. Raises UserError where the data are not those of the run, or too few."""
    whole = load_dataset(spec, size)
    test, control = real_test_set(spec, size), "test set"
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
            f"'{spec}': its test images are {test.shape}, its training images {whole.shape}; give both one size"
        )
    for part, what in ((seen, "training images"), (test, control), (unseen, control)):
        if len(part) < FEWEST:
            more = (
                f"; of {20 * FEWEST:,} images or more enough are held out"
                if control == "held-out images"
                else ""
            )
            raise UserError(
                f"'{spec}' has only {len(part)} {what}, too few to compare with: {FEWEST} are needed{more}"
            )
    return Reference(whole, training, test, seen, unseen, control)


def real_test_set(spec: str, size: int | None) -> Dataset | None:
    """The test set, None where there is none."""
    try:
        return load_dataset(spec, size, split="test")
    except NoTestSet:
        return None
