"""Studies: what one choice does, everything else being the same.

    samplers    compares samplers on one finished run
    trainings   compares schedules, predictions, or amounts of data: a training each

A study is RUN/study/NAME.json, and pictures beside it. Each row is written down when it is there, so a study goes on where it was
interrupted; the report takes in what is there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from undiffuse import machine, metrics
from undiffuse.errors import UserError
from undiffuse.files import write_atomic

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from undiffuse.features import Scorer
    from undiffuse.run import Run

FORMAT = 1


@dataclass
class Sheet:
    """What a study has written down: facts that hold for all of it, and its rows so far."""

    run: Run
    name: str
    facts: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def path(self) -> Path:
        return self.run.path / "study" / f"{self.name}.json"

    def find(self, **values: Any) -> dict[str, Any] | None:
        """The row that has these values, if it is there."""
        return next((row for row in self.rows if values.items() <= row.items()), None)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        content = {"format": FORMAT, **self.facts, "machine": machine.facts(), "rows": self.rows}
        self.write(self.path.name, json.dumps(content, indent=2).encode())

    def write(self, name: str, content: bytes) -> None:
        self.path.parent.mkdir(exist_ok=True)
        write_atomic(self.path.parent / name, content)


def sheet(run: Run, name: str, **facts: Any) -> Sheet:
    """A study's sheet, with what was written down before, if that is of the same study: the same seed. Raises UserError for a damaged one."""
    found = Sheet(run, name, facts)
    if found.path.is_file():
        try:
            old = json.loads(found.path.read_bytes())
            if (old.pop("format"), old["seed"]) == (FORMAT, facts["seed"]):
                found.rows = [dict(row) for row in old.pop("rows")]
                found.facts = {name: old[name] for name in facts}
        except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
            raise UserError(f"{found.path} can't be read ({error}); remove it to begin anew") from error
    return found


def distance_of(x: Tensor, scorer: Scorer, seed: int) -> dict[str, float]:
    """A row's Frechet distance, with its interval, of drawn images' features (n, D)."""
    found = metrics.frechet_interval(x, scorer.moments, seed)
    return {"frechet": found.value, "frechet_low": found.low, "frechet_high": found.high}
