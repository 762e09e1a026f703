"""One training step: a step of the optimiser and of the average of the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from undiffuse.base import rng
from undiffuse.base.process import own_randomness
from undiffuse.training.averages import ema_decay, ema_exponent

if TYPE_CHECKING:
    from torch import Tensor

    from undiffuse.training.config import Config
    from undiffuse.training.state import State

BatchLoss: TypeAlias = "Callable[[Any], Tensor]"
"""Takes what an objective prepared and returns the loss of the batch, ()."""


def train_step(
    batch_loss: BatchLoss, state: State, batch: Any, lr: float, config: Config
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
        value = batch_loss(batch)
        value.backward()
    norm = torch.nn.utils.clip_grad_norm_(parameters, config.grad_clip)
    pairs = (("loss", value), ("gradient", norm))
    wrong = next((what for what, x in pairs if not x.isfinite()), None)
    if wrong is None:
        state.optimizer.step()
        decay = ema_decay(state.step + 1, ema_exponent(config.ema))
        torch._foreach_lerp_(average, parameters, 1 - decay)
        wrong = None if state.is_finite() else "weight or moment"
    state.optimizer.zero_grad()
    state.step += 1
    return value.item(), wrong
