"""The spectrum of images: their variances along their principal components."""

from __future__ import annotations

from typing import TYPE_CHECKING

from undiffuse.base.lazy import lazy
from undiffuse.base.pixels import to_float

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch")

IMAGES = 2000  # at most, evenly spaced
SMALLEST = (2 / 255) ** 2 / 12
"""The variance that rounding to 8 bits gives a pixel in [-1, 1]. Smaller ones are no images."""


def variances(images: Tensor) -> Tensor:
    """The variances along the principal components, float64 (K,), those of mere rounding left out.

    images: uint8 (N, C, H, W). They are taken as x in [-1, 1]."""
    rows = torch.linspace(0, len(images) - 1, min(len(images), IMAGES)).long()
    x = to_float(images[rows]).flatten(1).double()  # (N, D)
    x = x - x.mean(dim=0)
    products = x.T @ x if x.shape[1] < len(x) else x @ x.T  # both have the same eigenvalues
    found = torch.linalg.eigvalsh(products) / len(x)
    return found[found > SMALLEST]
