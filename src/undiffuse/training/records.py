"""Records: what happens in a run.

`training/loop.py` yields the records. `runs/log.py` writes them to log.jsonl and reads them back as
the same types. `console/live.py` shows them in the terminal and `report/sections/training.py` in
the report. Both skip records that they do not know.

Each record is one dataclass. `step` is the number of steps taken so far. `time` is the seconds of
the run so far, over all its sessions. `scalars` is for programs that draw their own curves, such as
the `watch` of `undiffuse.train`.

To add a record, write a dataclass below with its own `event`, add it to `Record`, and yield it in
the loop. When a run is resumed at step n, records of later steps are removed and made again. A
record of step n is kept, so the log may have it twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, TypeVar

from pydantic import ConfigDict, Field

Steps: TypeAlias = Annotated[int, Field(ge=0, le=10**15)]
Seconds: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Line:
    """The part that all records have: the step, and the seconds of the run so far."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")

    step: Steps
    time: Seconds

    def scalars(self) -> dict[str, float]:
        """The finite numbers of the record, by name, for curves over the steps."""
        return {name: value for name, value in self.curves().items() if math.isfinite(value)}

    def curves(self) -> dict[str, float]:
        """All numbers for curves, by name. Some may not be finite."""
        return {}

    def as_line(self) -> dict[str, Any]:
        """The content of the record's line in log.jsonl, with `event` first."""
        content = {key: value for key, value in asdict(self).items() if value is not None}
        return {"event": content.pop("event"), **content}


@dataclass(frozen=True)
class SessionStarted(Line):
    """A session began or resumed the run.

    machine: versions and options on which the bits of the result depend. parameters: the number of
    the network's parameters. notes: for the user."""

    machine: dict[str, Any]
    parameters: Steps
    notes: list[str]
    event: Literal["session"] = "session"


@dataclass(frozen=True)
class Projection(Line):
    """The run is expected to have `steps` steps. `snapshots` snapshots are spread over them."""

    steps: Steps
    snapshots: Steps
    event: Literal["projection"] = "projection"


@dataclass(frozen=True)
class Cooldown(Line):
    """The learning rate falls linearly from step `start` to 0 at step `end`.

    Training ends at step `end`."""

    start: Steps
    end: Steps
    event: Literal["cooldown"] = "cooldown"


@dataclass(frozen=True)
class Rollback(Line):
    """Step number `failed` (from 1) failed. Training continues from `step` at half the rate.

    reason: what was not finite."""

    failed: Steps
    reason: str
    event: Literal["rollback"] = "rollback"


@dataclass(frozen=True)
class StepTaken(Line):
    """Optimiser step number `step` (from 1). loss: of its batch. seconds: its duration."""

    loss: float
    lr: float
    seconds: Seconds
    event: Literal["step"] = "step"

    def curves(self) -> dict[str, float]:
        return {"loss": self.loss, "learning rate": self.lr}


@dataclass(frozen=True)
class CompileFallback(Line):
    """torch.compile failed. The same arithmetic runs without it and is slower."""

    reason: Annotated[str, Field(max_length=1000)]
    event: Literal["compile-fallback"] = "compile-fallback"


@dataclass(frozen=True)
class Validation(Line):
    """The held-out loss of the averaged weights, with the same noise each time.

    levels: (log-SNR, loss) for each noise level."""

    loss: float
    levels: list[tuple[float, float]]
    event: Literal["validation"] = "validation"

    def curves(self) -> dict[str, float]:
        return {"held-out loss": self.loss}


@dataclass(frozen=True)
class Quality(Line):
    """The Frechet distance between n quick samples and the training images.

    The samples are of the averaged weights. floor: the distance of n real images that were not
    trained on. seconds: the duration of the measurement."""

    frechet: float
    floor: float
    n: Steps
    seconds: Seconds
    event: Literal["quality"] = "quality"

    def curves(self) -> dict[str, float]:
        return {"Frechet distance": self.frechet, "Frechet distance, floor": self.floor}


@dataclass(frozen=True)
class Snapshot(Line):
    """Samples from the same noise each time.

    seconds: the duration of sampling and validation. images: uint8 (N, C, H, W) during training;
    the log leaves them out, and the picture is in `file`."""

    seconds: Seconds
    images: Any = field(default=None, repr=False, compare=False)
    event: Literal["snapshot"] = "snapshot"

    @property
    def file(self) -> str:
        """The path of the picture within the run folder."""
        return f"samples/step_{self.step:06d}.png"

    def as_line(self) -> dict[str, Any]:
        return {"event": self.event, "step": self.step, "time": self.time, "seconds": self.seconds}


@dataclass(frozen=True)
class PictureFailed(Line):
    """The figure `file` could not be drawn. The run is whole without it."""

    file: str
    reason: Annotated[str, Field(max_length=1000)]
    event: Literal["picture-failed"] = "picture-failed"


@dataclass(frozen=True)
class Stopped(Line):
    """The session was stopped before the budget was used up. The same command resumes the run."""

    event: Literal["stopped"] = "stopped"


@dataclass(frozen=True)
class Finished(Line):
    """The budget is used up."""

    event: Literal["finished"] = "finished"


Record: TypeAlias = (
    SessionStarted
    | Projection
    | Cooldown
    | Rollback
    | StepTaken
    | CompileFallback
    | Validation
    | Quality
    | Snapshot
    | PictureFailed
    | Stopped
    | Finished
)
R = TypeVar("R", bound=Record)


def of_kind(kind: type[R], records: Iterable[Record]) -> list[R]:
    """The records of one kind, in order."""
    return [record for record in records if isinstance(record, kind)]


Decision: TypeAlias = Projection | Cooldown | Rollback
"""The decisions of the clock. Everything else is a function of the step and of these."""
