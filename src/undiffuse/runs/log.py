"""log.jsonl: the records of a run, one a line, checked when they are written and read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from undiffuse.base.errors import UserError
from undiffuse.training.records import Record

LONGEST_LINE = 2**16  # bytes

RECORD: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="event")])


def log_line(record: Record) -> bytes:
    """A record as a line, checked: what is written can be read."""
    line = json.dumps(record.as_line()).encode() + b"\n"
    RECORD.validate_json(line)
    if len(line) > LONGEST_LINE:
        raise ValueError(f"a line of the log has at most {LONGEST_LINE:,} bytes, not {len(line):,}")
    return line


def follow_log(path: Path, position: int = 0) -> Iterator[tuple[Record, int]]:
    """(record, position after it) of each whole line from byte `position` on; one at a time.

    A last line that is not yet whole, or that a crash cut off, is left for later. Raises UserError,
    with its number or position, for a damaged line."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(position)
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), start=1):
            where = f"{path} line {number}" + (f" after byte {position}" if position else "")
            if not line.endswith(b"\n"):
                if len(line) < LONGEST_LINE:
                    return
                raise UserError(f"{where} is damaged: it is longer than {LONGEST_LINE:,} bytes")
            try:
                record = RECORD.validate_json(line)
            except ValidationError as error:
                first = error.errors()[0]
                part = " ".join(map(str, first["loc"]))
                what = f"{part}: {first['msg']}" if part else first["msg"]
                raise UserError(f"{where} is damaged: {what}") from error
            yield record, file.tell()


def read_log(path: Path) -> Iterator[Record]:
    """The records of a log in order."""
    return (record for record, _ in follow_log(path))
