"""A request for images, with all options checked, ready to be sampled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from undiffuse.base.errors import UserError
from undiffuse.base.given import check_numbers, real, two_reals, whole
from undiffuse.base.pixels import to_uint8
from undiffuse.base.process import each_undisturbed, undisturbed
from undiffuse.diffusion.denoiser import Denoiser
from undiffuse.diffusion.sampling import Sampling, network_calls, sample_batches, trajectory
from undiffuse.diffusion.tasks import NEW, Task
from undiffuse.diffusion.walk import Frame

BATCH = 256
"""Images that are sampled at once."""


def given_options(sampling: dict[str, Any]) -> dict[str, Any]:
    """Those fields of `Sampling` that a user gave, as numbers where they are numbers.

    None stands for a field that is not given. Raises UserError for unknown names, other types."""
    given = {name: value for name, value in sampling.items() if value is not None}
    if unknown := given.keys() - Sampling.__dataclass_fields__.keys():
        known = ", ".join(Sampling.__dataclass_fields__)
        raise UserError(f"there is no option '{min(unknown)}'; there are: {known}")
    given |= {name: whole(name, given[name]) for name in given.keys() & {"steps", "seed"}}
    if "guidance" in given:
        given["guidance"] = real("guidance", given["guidance"])
    if "guidance_interval" in given:
        given["guidance_interval"] = two_reals("guidance_interval", given["guidance_interval"])
    return given


def counts(n: Any, batch_size: Any, seed: int) -> tuple[int, int]:
    """(n, batch_size) as whole numbers. Raises UserError for those that cannot be."""
    n, batch_size = whole("n", n), whole("batch_size", batch_size)
    for name, value in (("n", n), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, not {value}")
    check_numbers(n, seed)
    return n, batch_size


@dataclass(frozen=True)
class Request:
    """A request for n images, ready to be sampled.

    step: the model's training step. classes: the class number (n,) of each image, or None.
    condition: the condition (n,) of each image; None where it is sampled from the classes.
    batch_size: images that are sampled at once. usual: whether the options are the model's own,
    apart from seed and precision. task: what the images are sampled for."""

    denoiser: Denoiser
    step: int
    n: int
    classes: Tensor | None
    sampling: Sampling
    batch_size: int = BATCH
    usual: bool = True
    condition: Tensor | None = None
    task: Task = NEW

    @property
    def steps(self) -> int:
        """Sampling steps."""
        assert self.sampling.steps is not None
        return self.sampling.steps

    @property
    def calls(self) -> int:
        """Network calls for each image, of a task without gradients and repeated steps."""
        return network_calls(self.denoiser, self.sampling, self.steps)

    @property
    def note(self) -> dict[str, Any]:
        """The metadata of a picture of these images."""
        names = set(Sampling.__dataclass_fields__) - {"calls", "precision"}
        return {
            "step": self.step,
            "usual": self.usual,
            **{name: getattr(self.sampling, name) for name in sorted(names)},
        }

    def of(self, rows: range) -> dict[str, Any]:
        """The classes and conditions of some images, and the task."""
        own = {"classes": self.classes, "condition": self.condition}
        found: dict[str, Any] = {
            name: None if value is None else value[rows.start : rows.stop]
            for name, value in own.items()
        }
        return found | {"task": self.task}

    def frames(self, first: int, count: int) -> Iterator[Frame]:
        """The sampling steps of the images first to first + count - 1, as one batch."""
        rows = range(first, first + count)
        return each_undisturbed(trajectory(self.denoiser, rows, self.sampling, **self.of(rows)))

    def batches(self) -> Iterator[Tensor]:
        """The images, uint8 (B, C, H, W), a batch at a time."""
        batches = sample_batches(
            self.denoiser,
            self.n,
            self.sampling,
            batch_size=self.batch_size,
            **self.of(range(self.n)),
        )
        yield from each_undisturbed(map(to_uint8, batches))

    def images(self) -> Tensor:
        """All images, uint8 (n, C, H, W)."""
        return torch.cat(list(self.batches()))

    @undisturbed()
    def stages(self, count: int) -> list[Tensor]:
        """The first `count` images at every time from 1 to 0, uint8 (count, C, H, W) each."""
        frames = list(self.frames(0, min(count, self.n)))
        return [to_uint8(x) for x in (frames[0].x_t, *(frame.x_s for frame in frames))]
