"""Optimisers: how the gradient becomes a step.

To add an optimiser, write a function (network, config) -> torch.optim.Optimizer with
`@OPTIMIZERS.add`. Training sets the learning rate of each step in all of its parameter groups. Its
state must be tensors, which checkpoints save by parameter name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from undiffuse.base import engine
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

    if not 0 <= momentum < 1:
        raise UserError(f"optimizer muon: momentum must be at least 0 and below 1, not {momentum}")

    class Muon(torch.optim.AdamW):
        def step(self, closure: None = None) -> None:  # type: ignore[override]
            """Update Muon's parameters and remove their gradients, so that AdamW skips them."""
            for group in self.param_groups:
                if group["muon"]:
                    self.orthogonal_step(group)
            super().step()

        @torch.no_grad()
        def orthogonal_step(self, group: dict[str, Any]) -> None:
            """Update the parameters of a group. Matrices of the same shape are one batch."""
            alike: dict[tuple[int, int], list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    alike.setdefault(matrix_shape(p), []).append(p)
            for (rows, columns), parameters in alike.items():
                directions = []
                for p in parameters:
                    gradient, state = p.grad, self.state[p]
                    assert gradient is not None
                    if not state:
                        state["momentum"] = torch.zeros_like(p)
                    state["momentum"].lerp_(gradient, 1 - momentum)
                    directions.append(
                        gradient.lerp(state["momentum"], momentum).reshape(rows, columns)
                    )  # Nesterov's
                scale = -group["lr"] * 0.2 * max(rows, columns) ** 0.5
                for p, update in zip(parameters, orthogonal(torch.stack(directions)), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(
                        update.view(p.shape), alpha=scale
                    )
                    p.grad = None

    weights = {
        id(module.weight)
        for module in network.modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and min(matrix_shape(module.weight)) >= 16
    }
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for p in network.parameters():
        parts[id(p) in weights].append(p)
    groups = [{"params": part, "muon": chosen} for chosen, part in enumerate(parts) if part]
    return Muon(groups, **adamw_options(config))


def matrix_shape(weight: Tensor) -> tuple[int, int]:
    """(output values, all input values): the shape of a weight as a matrix."""
    return len(weight), weight[0].numel()


NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""The coefficients (a, b, c) of Jordan et al. 2024."""


ITERATIONS = 3
"""Newton-Schulz iterations.

Five, as in the original, had the same held-out loss after 600 steps, which took a tenth longer."""


def orthogonal(matrices: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """Approximately the nearest orthogonal matrix to each of the matrices (K, R, C).

    The quintic Newton-Schulz iteration X <- a X + (b S + c S^2) X, with S = X X^T, moves singular
    values to about 0.7 to 1.2. Each iteration enlarges small ones 3.4 times. So after three of
    them, those below a fiftieth of the matrix's Frobenius norm stay smaller. It is computed in
    bfloat16 where the CPU has it."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if engine.has_bf16():
        x = x.bfloat16()
    for _ in range(iterations):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float()
