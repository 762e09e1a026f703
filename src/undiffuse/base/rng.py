"""Random numbers as a function of where they are used, not of how many were sampled before.

Every stream is keyed by (seed, purpose, index, ...). So the noise of training step 1,234 is the
same in a run that was resumed at step 1,000, and image 7 of seed 0 is the same in every batch. The
streams are Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). Their key
and counter are set directly.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from undiffuse.base.lazy import lazy

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import torch
    from torch import Tensor
else:
    torch = lazy("torch")
    np = lazy("numpy")


def stream(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """The random stream of (seed, purpose, *indices): up to two indices, each below 2^64.

    The key is a hash of seed and purpose. The indices are the upper words of the counter. Streams
    with different indices start 2^128 blocks apart, so they never overlap. Raises ValueError for
    more than two indices."""
    if len(indices) > 2:
        raise ValueError("a stream has at most two indices")
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=16).digest()
    key = np.frombuffer(digest, dtype="<u8")
    counter = np.array([0, 0, *indices, *[0] * (2 - len(indices))], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def normal(shape: Sequence[int], seed: int, purpose: str, *indices: int) -> Tensor:
    """Standard normal numbers, float32 of `shape`, from one stream."""
    return torch.from_numpy(
        stream(seed, purpose, *indices).standard_normal(tuple(shape), dtype=np.float32)
    )


def normal_each(
    samples: Sequence[int], shape: Sequence[int], seed: int, purpose: str, step: int
) -> Tensor:
    """Standard normal numbers, float32 (len(samples), *shape), from one stream for each sample.

    So the numbers of a sample depend neither on the batch that it is in nor on the process."""
    noise = np.empty((len(samples), *shape), dtype=np.float32)
    for row, own in zip(noise, streams(samples, seed, purpose, step), strict=True):
        own.standard_normal(dtype=np.float32, out=row)
    return torch.from_numpy(noise)


def uniform_each(
    samples: Sequence[int], shape: Sequence[int], seed: int, purpose: str, step: int = 0
) -> Tensor:
    """Uniform numbers in [0, 1), float64 (len(samples), *shape): one stream for each sample."""
    numbers = np.empty((len(samples), *shape))
    for row, own in zip(numbers, streams(samples, seed, purpose, step), strict=True):
        row[...] = own.random(tuple(shape))
    return torch.from_numpy(numbers)


def streams(
    samples: Sequence[int], seed: int, purpose: str, step: int
) -> Iterator[np.random.Generator]:
    """stream(seed, purpose, step, sample) of each sample. Use one before asking for the next."""
    generator = stream(seed, purpose, step)
    state = generator.bit_generator.state  # set anew: to make a stream takes three times as long
    for sample in samples:
        state["state"]["counter"][:] = (0, 0, step, sample)
        generator.bit_generator.state = state
        yield generator
