"""Images to learn from: the embedded MNIST, IDX files, folders of PNG or JPEG images; and the order of the batches.

A data set is one uint8 tensor held whole, (N, C, H, W). A batch is a choice of its rows, and which rows is a function
of (seed, step). Networks see floats in [-1, 1]: x = u / 127.5 - 1 for a byte u, here and nowhere else.

IDX is the format of the MNIST files: two zero bytes, the element type (8: unsigned byte), the number of dimensions,
each dimension as a big-endian 32-bit number, then the elements, the last index fastest. A file is trusted for nothing:
what it promises is compared with its length before memory is asked for.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from undiffuse.base.lazy import lazy
from undiffuse.base.rng import stream

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch")


def batch_indices(n: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Which of `n` images batch `step` (from 0) holds: int64 (batch_size,).

    Epochs, each a permutation of all n images, follow one another endlessly, and batches are cut from them without
    regard to where one ends: a batch may span several, and every image is seen once an epoch."""
    start, stop = step * batch_size, (step + 1) * batch_size
    epochs = range(start // n, (stop - 1) // n + 1)
    return torch.cat(
        [_permutation(n, seed, e)[max(start - e * n, 0) : stop - e * n] for e in epochs]
    )


@lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> Tensor:
    return torch.from_numpy(stream(seed, "shuffle", epoch).permutation(n))
