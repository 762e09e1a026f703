"""Images to learn from: the embedded MNIST, IDX files, folders of PNG or JPEG images; and the order of the batches.

A data set is one uint8 tensor held whole, (N, C, H, W). A batch is a choice of its rows, and which rows is a function
of (seed, step). Networks see floats in [-1, 1]: x = u / 127.5 - 1 for a byte u, here and nowhere else.

IDX is the format of the MNIST files: two zero bytes, the element type (8: unsigned byte), the number of dimensions,
each dimension as a big-endian 32-bit number, then the elements, the last index fastest. A file is trusted for nothing:
what it promises is compared with its length before memory is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def to_float(images: Tensor) -> Tensor:
    """Bytes 0..255 to float32 in [-1, 1], in any shape."""
    return images.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """Floats in [-1, 1], clamped to that, to the nearest bytes: the inverse of `to_float`, exactly."""
    import torch

    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def images_at_once(images: Tensor) -> int:
    """How many of (N, C, H, W) to compute with at a time: 500 digits, or as many bytes."""
    return max(1, 500 * 28 * 28 // images[0].numel()) if len(images) else 1
