"""What images are sampled for: new images here; a start from an image, or from chosen noise.

inverse.py has the task of fitting a measurement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from undiffuse.base.errors import UserError
from undiffuse.diffusion import process
from undiffuse.diffusion.process import expand
from undiffuse.diffusion.schedule import noise_level

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from undiffuse.diffusion.schedule import Schedule
    from undiffuse.diffusion.step import Step
    from undiffuse.diffusion.walk import Frame


@dataclass(frozen=True)
class Task:
    """New images from pure noise. Other tasks change where sampling begins, or its steps."""

    @property
    def particles(self) -> int:
        """The number of candidates that are sampled for each image."""
        return 1

    @property
    def clips(self) -> bool:
        """Whether the task clips x_0_hat itself, after it has used the values that are not."""
        return False

    def begin(
        self, noise: Tensor, times: Tensor, schedule: Schedule, samples: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """(x at the first time, the times). noise: standard normal (B, C, H, W)."""
        level = noise_level(schedule, times[0])
        return expand((level.alpha**2 + level.sigma**2).sqrt(), noise) * noise, times

    def steps(
        self, step_of: Callable[[Step], Tensor], samples: Sequence[int], *, clip: bool
    ) -> Callable[[Step], Tensor]:
        """The sampler for these samples."""
        return step_of

    def result(self, frames: Iterator[Frame], samples: Sequence[int]) -> Tensor:
        """The images (B, C, H, W), from the steps."""
        *_, last = frames
        return last.x_s


NEW = Task()


@dataclass(frozen=True)
class FromImage(Task):
    """An image with noise up to time `strength` is denoised: SDEdit.

    Meng et al. 2022 (arXiv:2108.01073), algorithm 1. image: float (1, C, H, W), or one for each
    sample. strength: in [0, 1]. 0 gives the image itself, and 1 a new image. The times of the grid
    are multiplied by it. Raises UserError for another strength."""

    image: Tensor
    strength: float

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise UserError(f"strength must be from 0 to 1, not {self.strength:g}")

    def begin(
        self, noise: Tensor, times: Tensor, schedule: Schedule, samples: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        if self.strength == 1:
            return super().begin(noise, times, schedule, samples)
        image = rows_of(self.image, samples).to(noise)
        level = noise_level(schedule, self.strength * times[0])
        return process.jump(image, noise, level.alpha, level.sigma), self.strength * times

    def result(self, frames: Iterator[Frame], samples: Sequence[int]) -> Tensor:
        unchanged = rows_of(self.image, samples)
        return unchanged if self.strength == 0 else super().result(frames, samples)


@dataclass(frozen=True)
class FromNoise(Task):
    """Sampling begins with chosen noise, standard normal: (1, C, H, W), or one for each sample."""

    noise: Tensor

    def begin(
        self, noise: Tensor, times: Tensor, schedule: Schedule, samples: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        return super().begin(rows_of(self.noise, samples).to(noise), times, schedule, samples)


def rows_of(values: Tensor, samples: Sequence[int]) -> Tensor:
    """The values of the samples: there is one row for all, or one for each sample."""
    return values.expand(len(samples), *values.shape[1:]) if len(values) == 1 else values[samples]
