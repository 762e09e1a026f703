"""The three functions of `import undiffuse`: train, sample, load; the command does the same through them."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
import torch

from undiffuse.base.errors import UserError
from undiffuse.base.images import as_array
from undiffuse.base.pixels import to_uint8
from undiffuse.diffusion.denoiser import Denoiser
from undiffuse.diffusion.grids import time_grid
from undiffuse.diffusion.samplers import SAMPLERS
from undiffuse.diffusion.sampling import Frame, steps_within, trajectory
from undiffuse.runs.folder import Run
from undiffuse.runs.session import Began, train_session
from undiffuse.training.config import Config
from undiffuse.training.events import Event
from undiffuse.training.precision import in_precision
from undiffuse.training.presets import make_config

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

Where = str | os.PathLike[str]


MOST_IMAGES = 10_000_000  # of one request: 8 GB of digits


def train(
    out: Where | None = None,
    preset: str = "fast",
    *,
    watch: Callable[[Began | Event], None] | None = None,
    **fields: Any,
) -> Path:
    """Train a run in folder `out` (runs/PRESET), or go on with it; returns the folder. The command `undiffuse train` in Python.

    fields: any of `Config`'s, such as minutes=3 or data="photos/". watch: called with each event as it happens.
    A finished run is left as it is. Raises UserError for anything that does not fit, before anything is written; and, after Ctrl-C or
    SIGTERM, when all is saved, `session.Stopped`, which like KeyboardInterrupt is no Exception."""
    return train_config(make_config(preset, **fields), Path(out or f"runs/{preset}"), watch=watch)


def train_config(
    config: Config,
    path: Path,
    *,
    replay: Path | None = None,
    started: float | None = None,
    watch: Callable[[Began | Event], None] | None = None,
) -> Path:
    """`train` for a whole configuration. started: see `train_session`."""
    for event in train_session(config, path, replay=replay, started=started):
        if watch:
            watch(event)
    return path


def load(run: Where) -> Denoiser:
    """The denoiser of a run folder: its averaged weights, fp32, in evaluation mode. Raises UserError where there is none."""
    return Run(Path(run)).denoiser()[0]


@dataclass(frozen=True)
class Request:
    """What to draw from a run; None stands for the run's own default.

    labels: classes to cycle through, in a conditional run: numbers from 0, or names, or numbers as text; one alone, too. By default all in turn."""

    n: int = 64
    sampler: str | None = None
    steps: int | None = None
    grid: str | None = None
    labels: Sequence[SupportsIndex | str] | SupportsIndex | str | None = None
    guidance: float | None = None
    clip: bool = True
    seed: int = 0
    batch_size: int = 256
    precision: str = "fp32"


@dataclass
class Drawing:
    """A request made ready: the denoiser, the class of each image (n,) or None, and `trajectory`'s options.

    step: of the weights. calls: network calls for each image, known after the first batch."""

    denoiser: Denoiser
    step: int
    request: Request
    label: Tensor | None
    options: dict[str, Any]
    calls: int = 0

    @property
    def note(self) -> dict[str, Any]:
        """What a picture of these images is. usual: drawn as the run does it by itself."""
        r = self.request
        usual = Request(n=r.n, seed=r.seed, batch_size=r.batch_size, precision=r.precision)
        return {"step": self.step, "usual": r.labels is None and r == usual, **self.options}

    def frames(self, first: int, count: int) -> Iterator[Frame]:
        """The steps of the images with numbers first..first + count - 1, as one batch."""
        label = None if self.label is None else self.label[first : first + count]
        for frame in trajectory(self.denoiser, range(first, first + count), label=label, **self.options):
            self.calls = frame.calls
            yield frame

    def batches(self) -> Iterator[Tensor]:
        """The images, uint8 (B, C, H, W), a batch at a time."""
        size = self.request.batch_size
        for first in range(0, self.request.n, size):
            *_, last = self.frames(first, min(size, self.request.n - first))
            yield to_uint8(last.x_s)

    def stages(self, count: int) -> list[Tensor]:
        """The first `count` images at every time from 1 to 0, uint8 (count, C, H, W) each."""
        frames = list(self.frames(0, min(count, self.request.n)))
        return [to_uint8(x) for x in (frames[0].x_t, *(frame.x_s for frame in frames))]


def prepare(run: Where, request: Request) -> Drawing:
    """Read the run and check the request. Raises UserError for what the run cannot do."""
    folder = Run(Path(run))
    config = folder.about().config
    denoiser, step = folder.denoiser()
    classes = len(denoiser.classes)
    if request.n < 1 or request.batch_size < 1:
        raise UserError(f"--n and --batch-size must be at least 1, not {min(request.n, request.batch_size)}")
    check_numbers(request.n, request.seed)
    guidance = request.guidance if request.guidance is not None else config.drawing(step, denoiser.told)["guidance"]
    if not 0 <= guidance < math.inf:
        raise UserError(f"guidance must be a finite number of at least 0, not {guidance}")
    if request.precision not in ("fp32", "bf16"):
        raise UserError(f"precision must be fp32 or bf16, not '{request.precision}'")
    if not classes and request.labels is not None:
        raise UserError(
            f"{run} was trained without labels, so it can't be asked for one; train a run with --conditional"
        )
    if request.guidance not in (None, 1.0) and not (denoiser.labels and config.label_dropout):
        how, remedy = "without labels", "--conditional"
        if denoiser.labels:
            how, remedy = "with --label-dropout 0, so it has no guess without label", "--label-dropout 0.1"
        raise UserError(f"{run} was trained {how}, so there is nothing to guide by; train a run with {remedy}")
    cycle = list(range(classes))
    if request.labels is not None:
        asked = np.atleast_1d(np.asarray(request.labels, dtype=object))  # of one, a list, an array or a tensor alike
        if asked.ndim > 1:
            raise UserError(f"give labels one after the other, not as a table of {' x '.join(map(str, asked.shape))}")
        if not len(asked):
            raise UserError("an empty list of labels leaves nothing to draw; name at least one")
        cycle = [class_number(run, label, denoiser) for label in asked]
    options: dict[str, Any] = {
        "sampler": request.sampler or config.sampler,
        "grid": request.grid or config.grid,
        "guidance": guidance,
        "clip": request.clip,
        "seed": request.seed,
    }
    SAMPLERS.check(options["sampler"])
    within = steps_within(config.sample_calls, denoiser, **options)  # and a rehearsal, which finds unusable options
    steps = request.steps if request.steps is not None else within
    time_grid(options["grid"], denoiser.schedule, steps)
    label = None
    if classes:
        label = torch.tensor(cycle)[torch.arange(request.n) % len(cycle)]
    quick = replace(denoiser, network=in_precision(denoiser.network, request.precision))
    return Drawing(quick, step, request, label, {**options, "steps": steps})


def check_numbers(n: int, seed: int) -> None:
    """UserError for more images than are drawn at a time, or for a seed that is none."""
    if n > MOST_IMAGES:
        raise UserError(f"--n must be at most {MOST_IMAGES:,}, not {n:,}; draw more with another --seed")
    if not (hasattr(seed, "__index__") and 0 <= seed < 2**63):
        raise UserError(f"a seed is a number from 0 to 2^63 - 1, not {seed}")


def class_number(run: Where, label: SupportsIndex | str, denoiser: Denoiser) -> int:
    """The number of a class, given by number, by name, or, where no class has that name, by its number as text."""
    names = denoiser.classes
    if isinstance(label, str):
        number = names.index(label) if label in names else int(label) if label.isdecimal() else -1
    else:
        number = operator.index(label) if hasattr(label, "__index__") else -1
    if not 0 <= number < len(names):
        raise UserError(f"{run} has no class {label}; its classes are 0 to {len(names) - 1}: {', '.join(names)}")
    return number


def sample(run: Where, n: int = 64, **request: Any) -> NDArray[np.uint8]:
    """Draw n images from a run: uint8 (n, H, W), or (n, H, W, 3) in colour. Other arguments: `Request`'s.

    The same seed gives the same images, whatever the batch size. Raises UserError for what the run cannot do."""
    return as_array(torch.cat(list(prepare(run, Request(n=n, **request)).batches())))
