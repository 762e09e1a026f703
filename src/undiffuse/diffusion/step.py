"""A step of sampling: what a sampler sees, and the table of all samplers.

A sampler is a function from a `Step`, which holds x_t and the times t > s, to x_s. The step calls
the denoiser when x_0 is first read, and derives eps from it. So a sampler is as short as the
equation in its paper. Samplers with a memory read `history`.

To add a sampler: a function Step -> x_s with `@SAMPLERS.add`. Flags, checks, call counts and most
tests take it in. Write its formula into tests/textbook.py, and name it in `study/samplers.py` if
the study of samplers shall compare it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from undiffuse.base.table import Table
from undiffuse.diffusion import process
from undiffuse.diffusion.schedule import NoiseLevel, Schedule, log_snr

if TYPE_CHECKING:
    from torch import Tensor

    from undiffuse.diffusion.guidance import Denoise

SAMPLERS = Table(
    "sampler",
    "undiffuse.diffusion.samplers",
    "undiffuse.diffusion.multistep",
    "undiffuse.diffusion.stochastic",
)

REMEMBERED = 3
"""The steps that a history holds."""


class Past(NamedTuple):
    """An earlier step: its x_t and x_0_hat, (B, C, H, W), and its noise level."""

    x_t: Tensor
    x_0: Tensor
    level: NoiseLevel

    @property
    def eps(self) -> Tensor:
        """The noise in x_t if its image is x_0."""
        return process.eps_from(self.x_t, self.x_0, self.level.alpha, self.level.sigma)

    @property
    def half_log_snr(self) -> Tensor:
        """log(alpha / sigma), not clamped: the "lambda" of DPM-Solver. -inf for pure noise."""
        return log_snr(self.level.alpha, self.level.sigma) / 2


class NoiseSource(Protocol):
    """Standard normal noise like x_t: another one for each `number`."""

    def __call__(self, number: int = 0) -> Tensor: ...


@dataclass
class Step:
    """One step from x_t (B, C, H, W) at time t to x_s at time s < t. Times are float64 ().

    denoise: (x_t, t) -> x_0_hat, with guidance and clipping. noise: new standard normal noise.
    at_t, at_s: the noise levels. schedule: t -> (alpha, sigma). steps: of the whole way. history:
    earlier steps, the last one first. renoise: what eps is derived from, where it is not x_0."""

    denoise: Denoise
    noise: NoiseSource
    x_t: Tensor
    t: Tensor
    s: Tensor
    at_t: NoiseLevel
    at_s: NoiseLevel
    schedule: Schedule
    steps: int
    history: tuple[Past, ...] = ()
    renoise: Denoise | None = None
    _x_0: Tensor | None = field(default=None, repr=False)

    @property
    def x_0(self) -> Tensor:
        """The denoised image x_0_hat. The network is called when it is first read."""
        if self._x_0 is None:
            self._x_0 = self.denoise(self.x_t, self.t)
        return self._x_0

    @property
    def eps(self) -> Tensor:
        """The noise in x_t if its image is x_0, which may be clipped."""
        x_0 = self.x_0 if self.renoise is None else self.renoise(self.x_t, self.t)
        return process.eps_from(self.x_t, x_0, self.at_t.alpha, self.at_t.sigma)

    @property
    def last(self) -> bool:
        """Whether this is the last step: x_s is the image, without noise."""
        return self.at_s.sigma.item() == 0

    @property
    def present(self) -> Past:
        """This step, as it will be remembered."""
        return Past(self.x_t, self.x_0, self.at_t)

    def posterior(self) -> process.Posterior:
        """q(x_s | x_t, x_0), (4)."""
        return process.posterior(self.at_s.alpha, self.at_s.sigma, self.at_t.alpha, self.at_t.sigma)
