"""Networks of others as models: any function of a noisy image and of its noise level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from undiffuse.base.errors import UserError
from undiffuse.diffusion.conditioning import Conditioning
from undiffuse.diffusion.process import expand
from undiffuse.diffusion.schedule import SCHEDULES, noise_level, time_of

if TYPE_CHECKING:
    from undiffuse.diffusion.schedule import Schedule

Level: TypeAlias = Literal["t", "step", "log-snr", "sigma"]
LEVELS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "t": lambda t, log_snr, steps: t,
    "step": lambda t, log_snr, steps: (t * steps).round().long() - 1,
    "log-snr": lambda t, log_snr, steps: log_snr,
    "sigma": lambda t, log_snr, steps: (-log_snr / 2).exp(),
}
"""What the function is told of the noise: (t, log-SNR, steps of its chain) -> its second argument.

"step" counts from 0, as in DDPM's code. "sigma" is sigma / alpha, and the function then gets
x_t / alpha, as in EDM's and k-diffusion's code."""


class Wrapped(nn.Module):
    """A network of undiffuse's kind, (x, log-SNR, condition) -> output, around a function.

    schedule: of the function. level: an entry of LEVELS. steps: of its chain. classes: whether it
    takes class numbers as a third argument."""

    def __init__(
        self, function: Callable[..., Any], schedule: str, level: str, steps: int, classes: bool
    ) -> None:
        super().__init__()
        self.function = function
        self.schedule: Schedule = SCHEDULES[schedule]
        self.level, self.steps, self.classes = level, steps, classes

    def forward(self, x: Tensor, log_snr: Tensor, condition: Tensor | None) -> Tensor:
        t = time_of(self.schedule, log_snr)
        alpha, sigma, _ = noise_level(self.schedule, t)
        # x is x_t / sqrt(alpha^2 + sigma^2). The function gets x_t, or x_t / alpha. For that, alpha
        # is taken from the clamped log-SNR: at pure noise it is not 0.
        root = log_snr.double().sigmoid().sqrt()
        scale = 1 / root if self.level == "sigma" else (alpha**2 + sigma**2).sqrt()
        told = LEVELS[self.level](t, log_snr, self.steps)
        told = told if told.dtype == torch.long else told.to(x.dtype)
        out: Tensor = self.function(
            expand(scale, x) * x, told, *([condition] if self.classes else [])
        )
        if tuple(out.shape) != tuple(x.shape):
            raise UserError(
                f"the wrapped function returned {tuple(out.shape)} for images {tuple(x.shape)}"
            )
        return out


def description_of(
    shape: Sequence[int], schedule: str, predict: str, level: str, classes: Sequence[str]
) -> dict[str, Any]:
    """The fields of a `Description` for a wrapped network. Raises UserError for what cannot be."""
    if len(shape) != 3 or not all(isinstance(side, int) and side > 0 for side in shape):
        raise UserError(f"shape must be (channels, height, width), not {tuple(shape)}")
    if level not in LEVELS:
        raise UserError(f"level must be one of {', '.join(LEVELS)}, not '{level}'")
    if predict.partition(":")[0] == "edm":
        raise UserError("wrap EDM's denoiser D itself, with predict='x0' and level='sigma'")
    return {
        "net": "wrapped",
        "schedule": schedule,
        "predict": predict,
        "shape": tuple(shape),
        "conditioning": Conditioning(tuple(classes)),
    }
