"""Training: `fit`, one visible loop that yields what happens as events.

Who reads the events (the console, the run folder) decides what to do with them; the loop knows neither. All of its
randomness is a function of (seed, step), so a state at step n is the same whichever sessions led there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import torch

from undiffuse.base import rng
from undiffuse.base.pixels import to_float
from undiffuse.data.batches import batch_indices
from undiffuse.diffusion.denoiser import Denoiser
from undiffuse.diffusion.objective import Problem, regression
from undiffuse.diffusion.times import TIMES, draw_times
from undiffuse.diffusion.weightings import WEIGHTINGS
from undiffuse.training.averages import ema_decay, ema_exponent
from undiffuse.training.state import State

if TYPE_CHECKING:
    from torch import Tensor

    from undiffuse.data.dataset import Dataset
    from undiffuse.training.config import Config

if TYPE_CHECKING:
    BatchLoss: TypeAlias = Callable[[Problem, Tensor | None], Tensor]


def problem_of(denoiser: Denoiser, config: Config, training: Dataset, step: int) -> tuple[Problem, Tensor | None]:
    """What step number `step` (from 0) learns from: a batch of images x_0, each noised to a time of its own, and their labels (B,), where
    the network knows some. A function of (seed, step) alone."""
    rows = batch_indices(len(training.images), config.batch_size, step, config.seed)
    x_0 = to_float(training.images[rows])
    noise = rng.normal(x_0.shape, config.seed, "noise", step)
    generator = rng.stream(config.seed, "times", step)
    t = draw_times(TIMES[config.times], len(rows), generator, stratified=config.stratified, steps=config.chain)
    labels = training.labels if denoiser.labels else None
    label = None if labels is None else hide_labels(labels[rows], denoiser.labels, config, step)
    return regression(denoiser, WEIGHTINGS[config.weighting], x_0, noise, t), label


def descend(
    batch_loss: BatchLoss, state: State, problem: Problem, label: Tensor | None, lr: float, config: Config
) -> tuple[float, str | None]:
    """One step down the gradient of (6), by the optimiser, and of the average: (the loss, what of it is not finite, if anything).
    `state` is spoilt where something is not."""
    torch.manual_seed(int(rng.stream(config.seed, "dropout", state.step).integers(2**63)))
    parameters: list[Tensor] = list(state.network.parameters())
    average: list[Tensor] = list(state.average.parameters())
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    value = batch_loss(problem, label)
    value.backward()
    norm = torch.nn.utils.clip_grad_norm_(parameters, config.grad_clip)
    wrong = next((what for what, x in (("loss", value), ("gradient", norm)) if not x.isfinite()), None)
    if wrong is None:
        state.optimizer.step()
        decay = ema_decay(state.step + 1, ema_exponent(config.ema))
        torch._foreach_lerp_(average, parameters, 1 - decay)
        wrong = None if state.is_finite() else "weight or moment"
    state.optimizer.zero_grad()
    state.step += 1
    return value.item(), wrong


def hide_labels(label: Tensor, no_label: int, config: Config, step: int) -> Tensor:
    """The labels, each replaced by `no_label` with probability config.label_dropout."""
    hidden = rng.stream(config.seed, "label dropout", step).random(len(label)) < config.label_dropout
    return label.masked_fill(torch.from_numpy(hidden), no_label)
