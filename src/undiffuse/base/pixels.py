"""Images as bytes and as floats.

A byte u in 0..255 becomes the float x = u / 127.5 - 1 in [-1, 1]. Only this file converts.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from undiffuse.base.errors import UserError
from undiffuse.base.given import as_tensor
from undiffuse.base.lazy import lazy

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor
else:
    torch = lazy("torch")


def to_float(images: Tensor) -> Tensor:
    """Bytes 0..255 as float32 in [-1, 1]; any shape."""
    return images.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """Floats as the nearest bytes, uint8; any shape. It is exactly the inverse of `to_float`.

    Floats outside [-1, 1] are clamped first."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def images_at_once(shape: Sequence[int]) -> int:
    """How many images of `shape` (C, H, W) to compute with at a time, at least 1.

    They have about as many bytes as 500 MNIST digits."""
    return max(1, 500 * 28 * 28 // math.prod(shape))


def from_array(images: Any, shape: tuple[int, int, int]) -> Tensor:
    """A user's images, an array or a tensor, as a tensor uint8 (N, C, H, W).

    images: uint8 (N, H, W), (N, H, W, C) or (N, C, H, W). shape: the (C, H, W) that they must have.
    Raises UserError for another type or shape, and for no images."""
    found = as_tensor("images", images)
    if found.dtype != torch.uint8:
        raise UserError(f"images must be uint8, 0 to 255, not {str(found.dtype).partition('.')[2]}")
    channels, height, width = shape
    given = tuple(found.shape[1:])
    if found.ndim and not len(found):
        raise UserError("there are no images; give at least one")
    if found.ndim >= 3 and given == shape:
        return found
    if found.ndim == 4 and given == (height, width, channels):
        return found.movedim(-1, 1)
    if found.ndim == 3 and channels == 1 and given == (height, width):
        return found[:, None]
    raise UserError(
        f"images must be (n, {height}, {width}{f', {channels}' if channels > 1 else ''}), not "
        f"{tuple(found.shape)}"
    )
