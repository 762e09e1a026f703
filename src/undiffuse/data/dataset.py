"""Images to learn from: the embedded MNIST, IDX files, folders of PNG or JPEG images; and the order of the batches.

A data set is one uint8 tensor held whole, (N, C, H, W). A batch is a choice of its rows, and which rows is a function
of (seed, step). Networks see floats in [-1, 1]: x = u / 127.5 - 1 for a byte u, here and nowhere else.

IDX is the format of the MNIST files: two zero bytes, the element type (8: unsigned byte), the number of dimensions,
each dimension as a big-endian 32-bit number, then the elements, the last index fastest. A file is trusted for nothing:
what it promises is compared with its length before memory is asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from undiffuse.base.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

MAX_BYTES = 4 << 30  # of one data set, unpacked


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images, uint8 (N, C, H, W), with labels, int64 (N,) in [0, len(classes)), or None."""

    name: str
    images: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def take(self, indices: Tensor) -> Dataset:
        """The images at `indices`, int64 (n,), as a data set with the same classes."""
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, images=self.images[indices], labels=labels)


def _dataset(
    name: str, pixels: NDArray[np.uint8], labels: NDArray[np.uint8] | None, known: NDArray[np.uint8] | None
) -> Dataset:
    """Pixels (N, H, W) or (N, H, W, C) and labels (N,), whose numbers are all among `known`, as a data set."""
    import numpy as np
    import torch

    images = torch.from_numpy(pixels.reshape(*pixels.shape[:3], -1)).permute(0, 3, 1, 2).contiguous()
    if labels is None or known is None:
        return Dataset(name, images)
    numbers = np.unique(known)
    ids = np.searchsorted(numbers, labels).astype(np.int64)
    return Dataset(name, images, torch.from_numpy(ids), tuple(str(number) for number in numbers))


def _check_room(source: Any, *shape: int) -> None:
    if math.prod(shape) > MAX_BYTES:
        need = f"{' x '.join(map(str, shape))} = {math.prod(shape)} bytes"
        raise UserError(f"{source} needs {need}, more than the {MAX_BYTES} of a data set; use fewer or smaller images")
