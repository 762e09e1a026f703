"""What a data set is: images in a store, their classes, and which rows of the store it has.

Images are uint8 (C, H, W) until a batch of them is used.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from undiffuse.base.errors import UserError
from undiffuse.base.lazy import lazy
from undiffuse.base.pixels import images_at_once

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor
else:
    torch = lazy("torch")
    np = lazy("numpy")

MAX_BYTES = 4 << 30
"""The most bytes of one data set in memory: 4 GiB."""


class Store(Protocol):
    """Where images are kept: N images of `shape` (C, H, W), which are read by row."""

    shape: tuple[int, int, int]

    def __len__(self) -> int: ...

    def read(self, rows: Tensor) -> Tensor:
        """The images at `rows`, int64 (n,): uint8 (n, C, H, W)."""


class MemoryStore:
    """A store of images in memory, uint8 (N, C, H, W)."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        _, channels, height, width = images.shape
        self.shape = (channels, height, width)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: Tensor) -> Tensor:
        """The images at `rows`, int64 (n,): uint8 (n, C, H, W)."""
        return self.images[rows]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set: some rows of a store of images, so that a part of a data set copies no image.

    labels: the class of each image, int64 (N,) in [0, len(classes)), or None. classes: their names.
    rows: int64 (N,), or None for all rows in order. notes: what a user should know of how the data
    were read, a sentence each."""

    name: str
    store: Store
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    rows: Tensor | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        name: str,
        images: Tensor,
        labels: Tensor | None = None,
        classes: tuple[str, ...] = (),
    ) -> Dataset:
        """A data set of images in memory, uint8 (N, C, H, W)."""
        return cls(name, MemoryStore(images), labels, classes)

    def __len__(self) -> int:
        return len(self.store) if self.rows is None else len(self.rows)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.store.shape

    def read(self, indices: Tensor) -> Tensor:
        """The images at `indices`, int64 (n,): uint8 (n, C, H, W)."""
        return self.store.read(indices if self.rows is None else self.rows[indices])

    def chunks(self) -> Iterator[Tensor]:
        """All images in order, in chunks uint8 (n, C, H, W) of about 400 kB."""
        for indices in torch.arange(len(self)).split(images_at_once(self.shape)):
            yield self.read(indices)

    @property
    def images(self) -> Tensor:
        """All images, uint8 (N, C, H, W), as one tensor in memory."""
        if self.rows is None and isinstance(self.store, MemoryStore):
            return self.store.images
        return self.read(torch.arange(len(self)))

    def take(self, indices: Tensor) -> Dataset:
        """The images at `indices`, int64 (n,), as a data set with the same classes."""
        return replace(
            self,
            rows=indices if self.rows is None else self.rows[indices],
            labels=None if self.labels is None else self.labels[indices],
        )

    def hash_into(self, digest: hashlib._Hash) -> None:
        """Add the bytes of all images to a hash, and then those of the labels."""
        for images in self.chunks():
            digest.update(images.numpy().tobytes())
        if self.labels is not None:
            digest.update(self.labels.numpy().tobytes())


def dataset_from_arrays(
    name: str,
    pixels: NDArray[np.uint8],
    labels: NDArray[Any] | None,
    known: NDArray[Any] | None,
) -> Dataset:
    """A data set in memory, from arrays.

    pixels: (N, H, W) or (N, H, W, C). labels: any numbers (N,), or None. known: labels among which
    each of these numbers occurs. The different numbers in `known`, in rising order, are the
    classes."""
    images = (
        torch.from_numpy(pixels.reshape(*pixels.shape[:3], -1)).permute(0, 3, 1, 2).contiguous()
    )
    if labels is None or known is None:
        return Dataset.of(name, images)
    numbers = np.unique(known)
    ids = np.searchsorted(numbers, labels).astype(np.int64)
    return Dataset.of(name, images, torch.from_numpy(ids), tuple(str(number) for number in numbers))


def check_bytes(source: Any, *shape: int) -> None:
    """Raises UserError, which names `source`, where uint8 of `shape` exceeds MAX_BYTES."""
    if math.prod(shape) > MAX_BYTES:
        need = f"{' x '.join(map(str, shape))} = {math.prod(shape)} bytes"
        raise UserError(
            f"{source} needs {need}, more than the {MAX_BYTES} of a data set; "
            "use fewer or smaller images"
        )
