"""Images to learn from: the embedded MNIST, IDX files, folders of PNG or JPEG images; and the order of the batches.

A data set is one uint8 tensor held whole, (N, C, H, W). A batch is a choice of its rows, and which rows is a function
of (seed, step). Networks see floats in [-1, 1]: x = u / 127.5 - 1 for a byte u, here and nowhere else.

IDX is the format of the MNIST files: two zero bytes, the element type (8: unsigned byte), the number of dimensions,
each dimension as a big-endian 32-bit number, then the elements, the last index fastest. A file is trusted for nothing:
what it promises is compared with its length before memory is asked for.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from undiffuse.base.errors import UserError
from undiffuse.base.rng import stream
from undiffuse.data.dataset import Dataset

if TYPE_CHECKING:
    from torch import Tensor


def subset(dataset: Dataset, n: int, seed: int) -> Dataset:
    """`n` images chosen at random, in their old order. Raises UserError unless 1 <= n <= len(dataset)."""
    if not 1 <= n <= len(dataset):
        raise UserError(f"a subset of '{dataset.name}' has 1 to {len(dataset)} images, not {n}")
    return chosen(dataset, n, seed, "subset")


def random_part(dataset: Dataset, n: int, seed: int) -> Dataset:
    """n images chosen at random, or all where there are no more, in their old order (the first n of a folder may be of one class)."""
    return dataset if n >= len(dataset) else chosen(dataset, n, seed, "part")


def chosen(dataset: Dataset, n: int, seed: int, purpose: str) -> Dataset:
    import torch

    return dataset.take(torch.from_numpy(stream(seed, purpose).permutation(len(dataset))[:n]).sort().values)


def left_out(dataset: Dataset, n: int, seed: int, count: int) -> Dataset:
    """At most `count` images that are not in `subset(dataset, n, seed)`, chosen at random."""
    import torch

    return dataset.take(torch.from_numpy(stream(seed, "subset").permutation(len(dataset))[n : n + count]))


def split_dataset(dataset: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """(training set, validation set): one image in twenty, at most 1,000, is held out at random for validation.

    Both keep the old order. Of fewer than 20 images none is held out."""
    import torch

    held_out = held_out_of(len(dataset))
    order = torch.from_numpy(stream(seed, "validation").permutation(len(dataset)))
    return dataset.take(order[held_out:].sort().values), dataset.take(order[:held_out].sort().values)


def held_out_of(images: int) -> int:
    """How many of so many images `split` holds out."""
    return min(1000, images // 20)


def with_held_out(training: int) -> int:
    """How many images there must be at least, so that `split` leaves so many to train on."""
    return next(n for n in itertools.count(training) if n - held_out_of(n) >= training)


def random_labels(dataset: Dataset, n: int, seed: int, purpose: str) -> Tensor:
    """The labels (n,) of random images of a labelled data set."""
    import torch

    assert dataset.labels is not None
    rows = stream(seed, purpose).integers(len(dataset), size=n)
    return dataset.labels[torch.from_numpy(rows)]
