"""The networks: one file each, and the file's name is the network's.

A network is a class with forward(x, log_snr, condition): x (B, C, H, W) float32 of about unit size,
log_snr (B,), condition (B,) int64 or None. It returns (B, C, H, W) float32.

It is built as Network(shape=(C, H, W), conditions=K), with options of its own, which are
keyword-only and have defaults: `unet:channels=64/128`. It knows K + 1 conditions, the last of which
is "unconditional"; with K = 0 it takes none. A network that is made for a single prediction names
it in `predicts`. A network may have a buffer `prototypes` (K + 1, C, H, W). It is filled before
training with the mean image of each condition, and of all images for "unconditional".
`reasons` says for each option what it is and why its default is what it is.

To add one: a new file `nets/NAME.py` with the class `Name`, decorated with `@NETWORKS.add`. A
script of your own may register one in the same way.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from undiffuse.base.errors import UserError
from undiffuse.base.lazy import lazy
from undiffuse.base.table import Table

if TYPE_CHECKING:
    import torch
    from torch import nn
else:
    torch = lazy("torch")


class NetworkTable(Table):
    """A table whose classes are imported when they are asked for: --help must not import torch."""

    def __iter__(self) -> Iterator[str]:
        files = (m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
        return iter(sorted({*files, *self._functions}))

    def __contains__(self, name: object) -> bool:
        return name in list(self)

    def function(self, name: str) -> Callable[..., Any]:
        if name in self and name not in self._functions:
            importlib.import_module(f"{__name__}.{name}")
        return super().function(name)


NETWORKS = NetworkTable("network")


def build_network(
    net: str, shape: tuple[int, int, int], conditions: int, *, seed: int = 0, device: str = "cpu"
) -> nn.Module:
    """The network of a spec, with the seed's random weights.

    On the device "meta" it takes no memory. Raises UserError for options that do not fit."""
    with torch.random.fork_rng(devices=[]), torch.device(device):  # the caller's state stays
        torch.manual_seed(seed)
        network: nn.Module = NETWORKS[net](shape=shape, conditions=conditions)
    return network


def check_prediction(net: str, network: nn.Module, prediction: str) -> None:
    """Raises UserError where a network is made for another prediction."""
    only = getattr(network, "predicts", None)
    if only is not None and prediction != only:
        raise UserError(f"network '{net}' goes with --predict {only} only, not with '{prediction}'")
