"""Records: what happens in a run.

`training/loop.py` yields them. `runs/log.py` writes them to log.jsonl and reads them back as the
same types. `console/live.py` shows them in the terminal, `report/sections/training.py` in the
report; both pass over records that they do not know.

Each is one dataclass. `step` is the number of steps taken when it holds, `time` the seconds of the
run so far over all its sessions. `scalars` is for programs that draw curves of their own, such as
the `watch` of `undiffuse.train`.

To add one: a dataclass below, with its own `event`, and its name in `Record`. Then yield it in the
loop. A record of step n that comes before `StepTaken` of step n + 1 is kept when a run is resumed
at n, and may be written twice; one of a later step is dropped and written anew.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import ConfigDict, Field

Steps: TypeAlias = Annotated[int, Field(ge=0, le=10**15)]
Seconds: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Line:
    """What all records have."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")

    step: Steps
    time: Seconds

    def scalars(self) -> dict[str, float]:
        """The numbers that a curve over the steps shows, by name; the finite ones."""
        return {name: value for name, value in self.curves().items() if math.isfinite(value)}

    def curves(self) -> dict[str, float]:
        """The numbers of `scalars`, not all of which need be finite."""
        return {}

    def as_line(self) -> dict[str, Any]:
        """The content of the record's line in log.jsonl: `event` first."""
        content = {key: value for key, value in asdict(self).items() if value is not None}
        return {"event": content.pop("event"), **content}


@dataclass(frozen=True)
class SessionStarted(Line):
    """A process begins the run, or goes on with it.

    machine: what the bits of the result depend on. parameters: of the network. notes: for the
    user."""

    machine: dict[str, Any]
    parameters: Steps
    notes: list[str]
    event: Literal["session"] = "session"


@dataclass(frozen=True)
class Projection(Line):
    """The run is expected to have `steps` steps. The snapshots are spread over these."""

    steps: Steps
    event: Literal["projection"] = "projection"


@dataclass(frozen=True)
class Cooldown(Line):
    """From step `start` on the learning rate falls linearly to 0 at step `end`, the last one."""

    start: Steps
    end: Steps
    event: Literal["cooldown"] = "cooldown"


@dataclass(frozen=True)
class Rollback(Line):
    """Step number `failed` (from 1) went wrong. Training goes on from `step`, at half the rate.

    reason: what was not finite."""

    failed: Steps
    reason: str
    event: Literal["rollback"] = "rollback"


@dataclass(frozen=True)
class StepTaken(Line):
    """One optimiser step, number `step` (from 1). seconds: that it took."""

    loss: float
    lr: float
    seconds: Seconds
    event: Literal["step"] = "step"

    def curves(self) -> dict[str, float]:
        return {"loss": self.loss, "learning rate": self.lr}


@dataclass(frozen=True)
class CompileFallback(Line):
    """torch.compile failed. The same arithmetic goes on without it, more slowly."""

    reason: Annotated[str, Field(max_length=1000)]
    event: Literal["compile-fallback"] = "compile-fallback"


@dataclass(frozen=True)
class Validation(Line):
    """Held-out loss of the averaged weights, at the same noise each time.

    levels: (log-SNR, loss) by noise level."""

    loss: float
    levels: list[tuple[float, float]]
    event: Literal["validation"] = "validation"

    def curves(self) -> dict[str, float]:
        return {"held-out loss": self.loss}


@dataclass(frozen=True)
class Quality(Line):
    """The Frechet distance of n quick samples of the averaged weights to the training images.

    floor: that of n real images that were not trained on. seconds: that it took."""

    frechet: float
    floor: float
    n: Steps
    seconds: Seconds
    event: Literal["quality"] = "quality"

    def curves(self) -> dict[str, float]:
        return {"Frechet distance": self.frechet, "Frechet distance, floor": self.floor}


@dataclass(frozen=True)
class Snapshot(Line):
    """Samples from the same noise each time. seconds: that they and the validation took.

    images: uint8 (N, C, H, W), while training; in the log they are a picture, `file`."""

    seconds: Seconds
    images: Any = field(default=None, repr=False, compare=False)
    event: Literal["snapshot"] = "snapshot"

    @property
    def file(self) -> str:
        """The picture's path within the run folder."""
        return f"samples/step_{self.step:06d}.png"

    def as_line(self) -> dict[str, Any]:
        return {"event": self.event, "step": self.step, "time": self.time, "seconds": self.seconds}


@dataclass(frozen=True)
class Stopped(Line):
    """The session was asked to stop before the budget was used up. The same command goes on."""

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
    | Stopped
    | Finished
)
Decision: TypeAlias = Projection | Cooldown | Rollback
"""What the clock decides. Everything else is a function of the step and of these."""
