"""The networks: one file each, and the file's name is the network's.

A network is a class with forward(x, log_snr, label): x (B, C, H, W) float32 of about unit size, log_snr (B,),
label (B,) int64 or None; it returns (B, C, H, W) float32. It is built as
Network(shape=(C, H, W), classes=K, channels=, blocks=, attention=, heads=, dropout=) and knows K + 1 labels,
the last of which is "no label"; with K = 0 it takes none. One that is made for a single prediction names it in `predicts`. Where it
takes labels it may have a buffer `pictures` (K + 1, C, H, W), which is filled before training with the mean image of each, and of all for "no label".

To add one: a new file `nets/NAME.py` with the class `Name`, decorated with `@NETWORKS.add`. A script of your own may
register one in the same way.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

from undiffuse.base.errors import UserError
from undiffuse.base.table import Table


class NetworkTable(Table):
    """A table whose functions are imported when they are asked for: networks import torch, and --help must not."""

    def __iter__(self) -> Iterator[str]:
        files = (module.name for module in pkgutil.iter_modules(__path__))
        return iter(sorted({*files, *self._functions}))

    def __contains__(self, name: object) -> bool:
        return name in list(self)

    def check(self, spec: str) -> None:
        name, colon, _ = spec.partition(":")
        super().check(name)
        if colon:
            raise UserError(
                f"network '{name}' takes no parameters after a colon; --channels, --blocks, --heads are flags"
            )

    def __getitem__(self, spec: str) -> Callable[..., Any]:
        if spec in self and spec not in self._functions:
            importlib.import_module(f"{__name__}.{spec}")
        return super().__getitem__(spec)


NETWORKS = NetworkTable("network")
