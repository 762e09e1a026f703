"""The networks: one file each, and the file's name is the network's. Files with `_` are shared.

A network is a class with forward(x, log_snr, condition). x is (B, C, H, W), float32 with a variance
of about 1. log_snr is (B,). condition is (B,), int64, or None. It returns (B, C, H, W), float32.

It is built as Network(shape=(C, H, W), conditions=K). Its own options are keyword-only and have
defaults, and a spec sets them: `unet:channels=64/128`. It knows K + 1 conditions, the last of which
is "unconditional". With K = 0 it takes none.

A class may have these attributes:

- `predicts`: the only prediction that the network is made for.
- `worth_compiling`: whether `torch.compile` makes its training enough faster.
- `prototypes`: a buffer (K + 1, C, H, W). Before training it is filled with the mean image of each
  condition, and last with the mean of all images, for "unconditional".
- `reasons`: for each option, what it is and why its default is what it is.

To add one: a new file `nets/NAME.py` with the class `Name`, decorated with `@NETWORKS.add`. A
script of your own may register one in the same way.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from undiffuse.base.errors import UserError
from undiffuse.base.lazy import lazy
from undiffuse.base.process import own_randomness
from undiffuse.base.table import Table

if TYPE_CHECKING:
    import torch
    from torch import nn
else:
    torch = lazy("torch")


class NetworkTable(Table):
    """The table of the networks. It imports a network's file when the network is first asked for.

    So `undiffuse --help` lists the networks without importing torch."""

    def __iter__(self) -> Iterator[str]:
        files = (m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
        return iter(sorted({*files, *self._functions}))

    def __contains__(self, name: object) -> bool:
        return name in list(self)

    def check(self, spec: str) -> None:
        """Raises UserError for an unknown name, and for options that cannot be.

        A network may say which cannot in a static method `check_options`, without being built."""
        super().check(spec)
        name, colon, _ = spec.partition(":")
        if colon and (refuse := getattr(self.function(name), "check_options", None)):
            try:
                refuse(**{**self.defaults(name), **self.options(spec)})
            except UserError as error:
                raise UserError(f"network '{name}': {error}") from error

    def function(self, name: str) -> Callable[..., Any]:
        """The class of the network called `name`. Raises UserError for an unknown name."""
        if name in self and name not in self._functions:
            importlib.import_module(f"{__name__}.{name}")
        return super().function(name)


NETWORKS = NetworkTable("network")


def build_network(
    net: str,
    shape: tuple[int, int, int],
    conditions: int,
    *,
    predict: str | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> nn.Module:
    """Build the network of a spec, with random weights that `seed` decides.

    net: a spec such as "unet:heads=4". shape: (C, H, W) of an image. conditions: K, without
    "unconditional". predict: the prediction it is built for; None for any. On the device "meta" the
    network takes no memory. Raises UserError for options that do not fit together, and where the
    network is made for another prediction only."""
    with own_randomness(seed), torch.device(device):
        network: nn.Module = NETWORKS[net](shape=shape, conditions=conditions)
    only = getattr(network, "predicts", None)
    if None not in (only, predict) and predict != only:
        raise UserError(f"predict must be '{only}' for network '{net}', not '{predict}'")
    return network


@dataclass(frozen=True)
class Option:
    """An option of a network.

    value: in a spec. what: what it is, or "" where the network does not say. reason: for its
    default."""

    name: str
    value: Any
    default: Any
    what: str
    reason: str


def options_of(net: str) -> list[Option]:
    """The options of the network of a spec."""
    name, chosen = net.partition(":")[0], NETWORKS.options(net)
    reasons = getattr(NETWORKS.function(name), "reasons", {})
    return [
        Option(
            option,
            chosen.get(option, default),
            default,
            reasons.get(option, "").partition(" - ")[0],
            reasons.get(option, "").partition(" - ")[2] or "the network's default",
        )
        for option, default in NETWORKS.defaults(name).items()
    ]
