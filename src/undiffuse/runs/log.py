"""The log of a run, log.jsonl: what its lines may be. Each is checked when it is read, and read by itself, however long the file is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from undiffuse.base.errors import UserError
from undiffuse.training.clock import Cut, Decision, Outlook

LONGEST_LINE = 2**16  # bytes


Steps: TypeAlias = Annotated[int, Field(ge=0, le=10**15)]


Seconds: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Line(BaseModel):
    """event: what happened. step: after how many steps. time: seconds of the run so far, over all its sessions."""

    model_config = ConfigDict(strict=True, extra="forbid")

    event: str
    step: Steps
    time: Seconds


class SessionLine(Line):
    """A process begins, or goes on. machine: what the bits depend on."""

    event: Literal["session"]
    machine: dict[str, Any]


class ClockLine(Line):
    """What the clock decided, one of the three; of a cut also the step that went wrong, and how."""

    @model_validator(mode="after")
    def is_one_of_them(self) -> ClockLine:
        found = [record for record in (self.decision, self.outlook, self.cut) if record is not None]
        if len(found) != 1 or not all(0 <= value <= 10**15 for value in vars(found[0]).values()):
            raise ValueError("a clock's line is one decision, outlook or cut, whose steps are possible")
        return self

    event: Literal["clock"]
    decision: Decision | None = None
    outlook: Outlook | None = None
    cut: Cut | None = None
    of: Steps | None = None
    reason: str | None = None


class StepLine(Line):
    event: Literal["step"]
    loss: float
    lr: float


class UncompiledLine(Line):
    event: Literal["uncompiled"]
    reason: str


class ValidationLine(Line):
    """levels: (log-SNR, loss) pairs."""

    event: Literal["validation"]
    loss: float
    levels: list[tuple[float, float]]


class ScoreLine(Line):
    """seconds: that it took."""

    event: Literal["score"]
    frechet: float
    floor: float
    n: Steps
    seconds: Seconds


class SnapshotLine(Line):
    """file: within the run folder. seconds: that it and the validation took."""

    event: Literal["snapshot"]
    seconds: Seconds
    file: Annotated[str, Field(pattern=r"^samples/step_\d{6,18}\.png$")]


class EndLine(Line):
    event: Literal["stopped", "finished"]


AnyLine: TypeAlias = (
    SessionLine | ClockLine | StepLine | UncompiledLine | ValidationLine | ScoreLine | SnapshotLine | EndLine
)


LINE: TypeAdapter[AnyLine] = TypeAdapter(Annotated[AnyLine, Field(discriminator="event")])


def log_line(event: dict[str, Any]) -> bytes:
    """An event as a line, checked: what is written can be read."""
    line = json.dumps(event).encode() + b"\n"
    LINE.validate_json(line)
    if len(line) > LONGEST_LINE:
        raise ValueError(f"a line of the log has at most {LONGEST_LINE:,} bytes, not {len(line):,}")
    return line


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """The log's events in order. A last line that a crash cut off is passed over. UserError, with its number, for a damaged one."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), start=1):
            if not line.endswith(b"\n"):
                if len(line) < LONGEST_LINE:
                    return
                raise UserError(f"{path} line {number} is damaged: it is longer than {LONGEST_LINE:,} bytes")
            try:
                yield LINE.validate_json(line).model_dump(exclude_none=True)
            except ValidationError as error:
                first = error.errors()[0]
                where = "".join(f" {part}" for part in first["loc"])
                raise UserError(f"{path} line {number} is damaged:{where}: {first['msg']}") from error
