"""Optimisers: how the gradient becomes a step.

To add an optimiser, write a function (network, config) -> torch.optim.Optimizer with
`@OPTIMIZERS.add`. Training sets the learning rate of each step in all of its parameter groups. Its
state must be tensors, which checkpoints save by parameter name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from undiffuse.base.errors import UserError
from undiffuse.base.lazy import lazy
from undiffuse.base.table import Table

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = lazy("torch")

OPTIMIZERS = Table("optimizer")


class Settings(Protocol):
    """The fields of the configuration that an optimiser uses."""

    @property
    def lr(self) -> float: ...
    @property
    def beta_1(self) -> float: ...
    @property
    def beta_2(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...


@OPTIMIZERS.add
def adamw(network: nn.Module, config: Settings) -> torch.optim.Optimizer:
    """AdamW: Loshchilov & Hutter 2019 (arXiv:1711.05101)."""
    return torch.optim.AdamW(network.parameters(), **adamw_options(config))


def adamw_options(config: Settings) -> dict[str, Any]:
    """The options of `torch.optim.AdamW`."""
    return {
        "lr": config.lr,
        "betas": (config.beta_1, config.beta_2),
        "weight_decay": config.weight_decay,
        "fused": True,
    }


@OPTIMIZERS.add
def muon(network: nn.Module, config: Settings, *, momentum: float = 0.9) -> torch.optim.Optimizer:
    """Muon for the weights of linear layers and convolutions, AdamW for the other parameters.

    Muon: Jordan et al. 2024 (kellerjordan.github.io/posts/muon). A weight is a matrix of output
    values by all input values. Its momentum is replaced by the nearest orthogonal matrix, so that
    all directions are learnt at the same rate. The update is scaled to a root mean square of 0.2 of
    its entries, which is about that of AdamW, so that both use the same learning rate: Liu et al.
    2025 (arXiv:2502.16982), (4). AdamW updates matrices with fewer than 16 rows or columns.

    momentum: the decay of the momentum for each step. Raises UserError for one out of range."""
    from torch import nn

    from undiffuse.training.muon import Muon, matrix_shape

    if not 0 <= momentum < 1:
        raise UserError(f"optimizer muon: momentum must be at least 0 and below 1, not {momentum}")

    weights = {
        id(module.weight)
        for module in network.modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and min(matrix_shape(module.weight)) >= 16
    }
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for p in network.parameters():
        parts[id(p) in weights].append(p)
    groups = [{"params": part, "muon": chosen} for chosen, part in enumerate(parts) if part]
    return Muon(groups, momentum, **adamw_options(config))
