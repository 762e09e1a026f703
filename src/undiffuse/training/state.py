"""The state of training: what it changes, and how a checkpoint saves and restores it."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from undiffuse.base.team import side_by_side
from undiffuse.training.averages import WIDE_EVERY, wide_decay
from undiffuse.training.optimizers import OPTIMIZERS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from undiffuse.training.config import Config


WIDE = "wide/"
"""How the names of the wide average's tensors begin. Checkpoints of earlier versions have none."""


@dataclass
class State:
    """What training changes: the network, its average over the steps, and the optimiser.

    wide: the average of about twice the width, over every WIDE_EVERY-th step; None in a run that an
    earlier version began. step: the number of steps taken."""

    network: nn.Module
    average: nn.Module
    wide: nn.Module | None
    optimizer: torch.optim.Optimizer
    step: int = 0

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint, by name: weights, averaged weights and the moments."""
        found = {f"weights/{name}": value for name, value in self.network.state_dict().items()}
        found |= {f"ema/{name}": value for name, value in self.average.state_dict().items()}
        if self.wide is not None:
            found |= {f"{WIDE}{name}": value for name, value in self.wide.named_parameters()}
        for name, parameter in self.network.named_parameters():
            moments = self.optimizer.state.get(parameter, {})
            found |= {f"optimizer/{name}/{key}": value for key, value in moments.items()}
        return {name: value.detach() for name, value in found.items()}

    def wide_average(self, width: float) -> dict[str, Tensor] | None:
        """The wide average at this step, with the steps since its last one; None without one.

        width: that of the other average."""
        if self.wide is None:
            return None
        decay = wide_decay(self.step, self.step % WIDE_EVERY, width)
        now = dict(self.network.named_parameters())
        return {
            name: value.lerp(now[name].detach(), 1 - decay) if name in now else value
            for name, value in self.wide.state_dict().items()
        }

    def restore(self, tensors: dict[str, Tensor], step: int) -> None:
        """The inverse of `tensors`. tensors: those of the same network. step: their step."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        def laid_out_like(parameter: Tensor, moment: Tensor) -> Tensor:
            # Tensors from files are contiguous. The fused optimiser needs the parameter's layout.
            return torch.empty_like(parameter).copy_(moment) if moment.ndim else moment.clone()

        self.network.load_state_dict(part("weights/"))
        self.average.load_state_dict(part("ema/"))
        wide = part(WIDE)
        if self.wide is None or not wide:
            self.wide = None
        else:
            self.wide.load_state_dict(part("ema/") | wide)
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
        """Copies of the tensors, and the step, for `restore`. Later steps do not change them."""
        return {name: value.clone() for name, value in self.tensors().items()}, self.step

    def is_finite(self) -> bool:
        """Whether all weights, averaged weights and moments are finite."""
        # The wide average is one of weights that were looked at before.
        found = self.tensors().items()
        tensors = [value for name, value in found if not name.startswith(WIDE)]
        norms = side_by_side(torch._foreach_norm, (tensors[::2], tensors[1::2]))
        return bool(torch.stack([*itertools.chain(*norms)]).isfinite().all())


def new_state(config: Config, network: nn.Module) -> State:
    """The state before the first step."""
    average = copy.deepcopy(network).eval().requires_grad_(False)
    return State(
        network, average, copy.deepcopy(average), OPTIMIZERS[config.optimizer](network, config)
    )


def stepped_tensors(config: Config, network: nn.Module) -> dict[str, Tensor]:
    """The tensors of a checkpoint after a step, for their names and shapes.

    They come from a step with zero gradients, on a copy of the network."""
    state = new_state(config, copy.deepcopy(network))
    for parameter in state.network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()
    return state.tensors()
