"""Parts of a data set: random subsets, and the held-out images. Each is a function of a seed."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from undiffuse.base.errors import UserError
from undiffuse.base.lazy import lazy
from undiffuse.base.rng import stream
from undiffuse.data.dataset import Dataset

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch")


def subset(dataset: Dataset, n: int, seed: int) -> Dataset:
    """`n` images chosen at random, in their old order. Raises UserError unless 1 <= n <= len(dataset)."""
    if not 1 <= n <= len(dataset):
        raise UserError(f"a subset of '{dataset.name}' has 1 to {len(dataset)} images, not {n}")
    return dataset.take(chosen_rows(len(dataset), n, seed, "subset"))


def random_part(dataset: Dataset, n: int, seed: int) -> Dataset:
    """n images chosen at random, in their old order; all where there are no more."""
    return dataset.take(random_rows_of(len(dataset), n, seed))


def random_rows_of(total: int, n: int, seed: int) -> Tensor:
    """The rows of `random_part`: n of `total` at random, rising; all where there are no more."""
    return torch.arange(total) if n >= total else chosen_rows(total, n, seed, "part")


def chosen_rows(total: int, n: int, seed: int, purpose: str) -> Tensor:
    return torch.from_numpy(stream(seed, purpose).permutation(total)[:n]).sort().values


def left_out(dataset: Dataset, n: int, seed: int, count: int) -> Dataset:
    """At most `count` images that are not in `subset(dataset, n, seed)`, chosen at random."""
    return dataset.take(
        torch.from_numpy(stream(seed, "subset").permutation(len(dataset))[n : n + count])
    )


def split_dataset(dataset: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """(training set, validation set): one image in twenty, at most 1,000, is held out at random for validation.

    Both keep the old order. Of fewer than 20 images none is held out."""
    held_out = held_out_of(len(dataset))
    order = torch.from_numpy(stream(seed, "validation").permutation(len(dataset)))
    return dataset.take(order[held_out:].sort().values), dataset.take(
        order[:held_out].sort().values
    )


def held_out_of(images: int) -> int:
    """How many of so many images `split` holds out."""
    return min(1000, images // 20)


def with_held_out(training: int) -> int:
    """How many images there must be at least, so that `split` leaves so many to train on."""
    return next(n for n in itertools.count(training) if n - held_out_of(n) >= training)


def random_labels(dataset: Dataset, n: int, seed: int, purpose: str) -> Tensor:
    """The labels (n,) of random images of a labelled data set."""
    assert dataset.labels is not None
    rows = stream(seed, purpose).integers(len(dataset), size=n)
    return dataset.labels[torch.from_numpy(rows)]
