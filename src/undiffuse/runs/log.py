"""log.jsonl: the records of a run, one on each line.

A record is checked when it is written and when it is read.
"""

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
    """The line of a record. It is checked first, so what is written can be read."""
    line = json.dumps(record.as_line()).encode() + b"\n"
    RECORD.validate_json(line)
    if len(line) > LONGEST_LINE:
        raise ValueError(f"a line of the log has at most {LONGEST_LINE:,} bytes, not {len(line):,}")
    return line


def follow_log(path: Path, position: int = 0) -> Iterator[tuple[Record, int]]:
    """(record, position after it) of each complete line from byte `position` on.

    An incomplete last line is left out: it is being written, or a crash cut it off. One record is
    in memory at a time. Raises UserError for a damaged line, with its number."""
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
    """The records of a log, in order."""
    return (record for record, _ in follow_log(path))
