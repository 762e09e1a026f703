"""What training changes, and how it becomes a checkpoint and comes back."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from undiffuse.training.optimizers import OPTIMIZERS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from undiffuse.training.config import Config


@dataclass
class State:
    """The network, its average over the steps, the optimiser, and the number of steps taken."""

    network: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0

    def tensors(self) -> dict[str, Tensor]:
        """Everything that going on needs, by name."""
        found = {f"weights/{name}": value for name, value in self.network.state_dict().items()}
        found |= {f"ema/{name}": value for name, value in self.average.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            moments = self.optimizer.state.get(parameter, {})
            found |= {f"optimizer/{name}/{key}": value for key, value in moments.items()}
        return {name: value.detach() for name, value in found.items()}

    def restore(self, tensors: dict[str, Tensor], step: int) -> None:
        """The inverse of `tensors`, for those of the same network."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        def laid_out_like(parameter: Tensor, moment: Tensor) -> Tensor:
            # Files hold contiguous tensors. The fused optimiser walks parameter and moments in
            # memory order.
            return torch.empty_like(parameter).copy_(moment) if moment.ndim else moment.clone()

        self.network.load_state_dict(part("weights/"))
        self.average.load_state_dict(part("ema/"))
        self.optimizer.state.clear()
        moments = part("optimizer/")
        for name, parameter in self.network.named_parameters():
            own = {
                key.removeprefix(f"{name}/"): value
                for key, value in moments.items()
                if key.startswith(f"{name}/")
            }
            if own:
                self.optimizer.state[parameter] = {
                    key: laid_out_like(parameter, value) for key, value in own.items()
                }
        self.step = step

    def copy(self) -> tuple[dict[str, Tensor], int]:
        """What `restore` takes, of now: later steps do not change it."""
        return {name: value.clone() for name, value in self.tensors().items()}, self.step

    def is_finite(self) -> bool:
        return bool(
            torch.stack(torch._foreach_norm(list(self.tensors().values()))).isfinite().all()
        )


def new_state(config: Config, network: nn.Module) -> State:
    """The state before the first step."""
    average = copy.deepcopy(network).eval().requires_grad_(False)
    return State(network, average, OPTIMIZERS[config.optimizer](network, config))


def stepped_tensors(config: Config, network: nn.Module) -> dict[str, Tensor]:
    """The tensors of a checkpoint after a step, with the names and shapes that each has.

    They are those of a step on a copy, with gradients of zero."""
    state = new_state(config, copy.deepcopy(network))
    for parameter in state.network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()
    return state.tensors()
