"""Objectives: what the network learns from a batch.

An objective has two parts. `prepare` turns images, noise and times into what the network sees and
what it should return. It runs once a step, and its coefficients are float64. `loss` runs the
network and compares. It may be compiled.

To add one: a file in this folder with a function (denoiser, weighting) -> Objective, decorated with
`@OBJECTIVES.add`. `weighting` is a function log-SNR -> weight.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any, Protocol

from undiffuse.diffusion.objectives._table import OBJECTIVES

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["OBJECTIVES", "Objective", "part_of"]


class Objective(Protocol):
    """What the network learns."""

    def prepare(self, x_0: Tensor, noise: Tensor, t: Tensor, condition: Tensor | None) -> Any:
        """What the network sees and should return, as a tuple of tensors.

        x_0, noise: (B, C, H, W). t: (B,). condition: (B,), or None."""

    def loss(self, network: Callable[..., Tensor], batch: Any) -> Tensor:
        """The loss of each image (B,). batch: what `prepare` returned, or some of its rows."""


def part_of(batch: Any, rows: Tensor) -> Any:
    """Some rows of a batch. batch: what `prepare` returned. rows: their indices."""
    made_of = getattr(batch, "_make", tuple)  # a named tuple, or a plain one
    return made_of(None if x is None else x[rows] for x in batch)


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
