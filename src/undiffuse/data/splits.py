"""Parts of a data set: random subsets, and the images that are held out for validation.

Each part is a function of a seed.
"""

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
    """A random subset of `n` images, in their old order.

    Raises UserError unless 1 <= n <= len(dataset)."""
    if not 1 <= n <= len(dataset):
        raise UserError(f"a subset of '{dataset.name}' has 1 to {len(dataset)} images, not {n}")
    return dataset.take(chosen_rows(len(dataset), n, seed, "subset"))


def random_part(dataset: Dataset, n: int, seed: int) -> Dataset:
    """A random part of `n` images, in their old order, or all images where there are fewer."""
    return dataset.take(random_rows_of(len(dataset), n, seed))


def random_rows_of(total: int, n: int, seed: int) -> Tensor:
    """The rows of `random_part`: int64, `n` of `total` rows in rising order, or all of them."""
    return torch.arange(total) if n >= total else chosen_rows(total, n, seed, "part")


def chosen_rows(total: int, n: int, seed: int, purpose: str) -> Tensor:
    """`n` of `total` rows, chosen at random without replacement: int64 (n,) in rising order."""
    return torch.from_numpy(stream(seed, purpose).permutation(total)[:n]).sort().values


def left_out(dataset: Dataset, n: int, seed: int, count: int) -> Dataset:
    """At most `count` random images that are not in `subset(dataset, n, seed)`."""
    return dataset.take(
        torch.from_numpy(stream(seed, "subset").permutation(len(dataset))[n : n + count])
    )


def split_dataset(dataset: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """Split a data set at random: (training set, validation set), both in the old order.

    One image in twenty is held out for validation, but at most 1,000. Of fewer than 20 images none
    is held out."""
    held_out = held_out_of(len(dataset))
    order = torch.from_numpy(stream(seed, "validation").permutation(len(dataset)))
    training, validation = order[held_out:].sort().values, order[:held_out].sort().values
    return dataset.take(training), dataset.take(validation)


def held_out_of(images: int) -> int:
    """How many of so many images `split_dataset` holds out."""
    return min(1000, images // 20)


def with_held_out(training: int) -> int:
    """The fewest images of which `split_dataset` leaves `training` images to train on."""
    return next(n for n in itertools.count(training) if n - held_out_of(n) >= training)


def random_labels(dataset: Dataset, n: int, seed: int, purpose: str) -> Tensor:
    """The labels of `n` random images, int64 (n,), of a data set with classes.

    An image may be chosen more than once. purpose: the name of the random stream."""
    assert dataset.labels is not None
    rows = stream(seed, purpose).integers(len(dataset), size=n)
    return dataset.labels[torch.from_numpy(rows)]
