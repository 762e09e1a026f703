"""Batches: which images each training step sees, as a function of the seed and the step."""

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
    """The indices of the images in batch number `step`, from 0: int64 (batch_size,) in [0, n).

    An epoch is a random order of all `n` images. Epochs follow one another without end, and batches
    are cut from this sequence one after the other. So every image is seen once an epoch, and a
    batch may span several epochs."""
    start, stop = step * batch_size, (step + 1) * batch_size
    epochs = range(start // n, (stop - 1) // n + 1)
    return torch.cat(
        [_permutation(n, seed, e)[max(start - e * n, 0) : stop - e * n] for e in epochs]
    )


@lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> Tensor:
    """The order of the images in an epoch. The last few are kept: many batches share one."""
    return torch.from_numpy(stream(seed, "shuffle", epoch).permutation(n))
