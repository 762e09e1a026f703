"""One training step: a step of the optimiser and of the average of the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from undiffuse.base import rng
from undiffuse.base.process import own_randomness
from undiffuse.base.team import side_by_side
from undiffuse.diffusion.objectives import part_of
from undiffuse.training.averages import WIDE_EVERY, ema_decay, ema_exponent, wide_decay

if TYPE_CHECKING:
    from torch import Tensor, nn

    from undiffuse.training.config import Config
    from undiffuse.training.state import State

BatchLoss: TypeAlias = "Callable[[Any], Tensor]"
"""Takes what an objective prepared and returns the loss of each image, (B,)."""

SHARDS = 2
"""The parts of a batch whose gradients are computed side by side.

The sum of their gradients does not depend on the number of threads."""


class Gradient:
    """The loss and the gradient of a batch, as the sum over its shards.

    batch_loss: as `BatchLoss`. The shards of the first batch take turns. Where the network changed
    torch's random state or its own buffers meanwhile, as dropout does, they always take turns,
    since the result depends on the order."""

    def __init__(self, batch_loss: BatchLoss, network: nn.Module, shards: int = SHARDS) -> None:
        self.batch_loss, self.network, self.shards = batch_loss, network, shards
        self.ordered: bool | None = None  # not yet known

    def __call__(self, batch: Any) -> Tensor:
        """The mean loss (). Sets the gradient of each parameter."""
        count = len(batch[0])
        parameters = list(self.network.parameters())

        def of_shard(shard: Any) -> tuple[Tensor, Sequence[Tensor | None]]:
            loss = self.batch_loss(shard).sum() / count
            return loss.detach(), torch.autograd.grad(loss, parameters, allow_unused=True)

        rows = torch.arange(count).tensor_split(min(self.shards, count))
        shards = [part_of(batch, own) for own in rows] if len(rows) > 1 else [batch]
        if self.ordered is False and len(shards) > 1:
            found = side_by_side(of_shard, shards)
        else:
            before = self.mutable() if self.ordered is None else None
            found = [of_shard(shard) for shard in shards]
            if before is not None:
                self.ordered = self.mutable() != before
        losses, gradients = zip(*found, strict=True)
        for parameter, *parts in zip(parameters, *gradients, strict=True):
            known = [part for part in parts if part is not None]
            parameter.grad = sum(known[1:], known[0]) if known else None
        return sum(losses[1:], losses[0])

    def mutable(self) -> tuple[bytes, list[int]]:
        """What a network may change in a call: torch's random state, and its buffers' versions."""
        buffers = [buffer._version for buffer in self.network.buffers()]
        return torch.get_rng_state().numpy().tobytes(), buffers


def widen(state: State, parameters: list[Tensor], width: float) -> None:
    """Take the step of the wide average, where one is due. width: that of the other average."""
    step = state.step + 1
    if step % WIDE_EVERY == 0 and state.wide is not None:
        decay = wide_decay(step, WIDE_EVERY, width)
        torch._foreach_lerp_(list(state.wide.parameters()), parameters, 1 - decay)


def train_step(
    gradient: Gradient, state: State, batch: Any, lr: float, config: Config
) -> tuple[float, str | None]:
    """Take one step of the optimiser and of the average.

    batch: what the objective prepared. lr: the learning rate of this step. Returns the loss, and
    "loss", "gradient" or "weight or moment" for what is not finite, else None. Where something is
    not finite, the state cannot be used: restore an earlier one."""
    seed = int(rng.stream(config.seed, "dropout", state.step).integers(2**63))
    parameters: list[Tensor] = list(state.network.parameters())
    average: list[Tensor] = list(state.average.parameters())
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    with own_randomness(seed):
        value = gradient(batch)
    norm = torch.nn.utils.clip_grad_norm_(parameters, config.grad_clip)
    pairs = (("loss", value), ("gradient", norm))
    wrong = next((what for what, x in pairs if not x.isfinite()), None)
    if wrong is None:
        state.optimizer.step()
        decay = ema_decay(state.step + 1, ema_exponent(config.ema))
        torch._foreach_lerp_(average, parameters, 1 - decay)
        widen(state, parameters, config.ema)
        wrong = None if state.is_finite() else "weight or moment"
    state.optimizer.zero_grad()
    state.step += 1
    return value.item(), wrong
