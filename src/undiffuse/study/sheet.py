"""What a study has written down: RUN/study/NAME.json."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from undiffuse.base import engine
from undiffuse.base.errors import UserError
from undiffuse.base.files import write_atomic
from undiffuse.data.loading import load_dataset
from undiffuse.measuring import distances
from undiffuse.runs.session import trained_on
from undiffuse.runs.studies import FORMAT, check_study

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from undiffuse.data.dataset import Dataset
    from undiffuse.measuring.scorer import Scorer
    from undiffuse.runs.folder import Run


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

    @property
    def all_of_it(self) -> str:
        """What there is to remove for the study to begin anew."""
        return f"{self.path} and {self.path.with_suffix('')}"

    def find(self, **values: Any) -> dict[str, Any] | None:
        """The row that has these values, if it is there."""
        return next((row for row in self.rows if values.items() <= row.items()), None)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.save()

    def save(self) -> None:
        content = {
            "format": FORMAT,
            **self.facts,
            "machine": engine.machine_facts(),
            "rows": self.rows,
        }
        text = json.dumps(content, indent=2)
        check_study(self.name, json.loads(text))  # what is written can be read
        self.write(self.path.name, text.encode())

    def write(self, name: str, content: bytes) -> None:
        write_atomic(self.path.parent / name, content)


def sheet(run: Run, name: str, same: tuple[str, ...] = (), **facts: Any) -> Sheet:
    """A study's sheet, with what was written down before.

    same: the names of facts that must be as they were; else it begins anew. Raises UserError for a
    damaged file."""
    found = Sheet(run, name, facts)
    if found.path.is_file():
        try:
            old = json.loads(found.path.read_bytes())
            if old["format"] == FORMAT:
                check_study(name, old)
            if old.pop("format") == FORMAT and all(old[name] == facts[name] for name in same):
                found.rows = [dict(row) for row in old.pop("rows")]
                found.facts = {name: old[name] for name in facts}
        except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
            raise UserError(
                f"{found.path} can't be read ({error}); remove {found.all_of_it} to begin anew"
            ) from error
    return found


def check_minutes(minutes: float) -> None:
    """UserError unless a study can take that long."""
    if not 0 < minutes < math.inf:
        raise UserError(
            f"a study takes some time: --minutes must be a finite number above 0, not {minutes:g}"
        )


def data_of(run: Run) -> Dataset:
    """The whole data set that a run was trained on.

    Raises UserError where its place holds other images now."""
    config = run.about().config
    whole = load_dataset(config.data, config.size)
    trained_on(run, whole)
    return whole


def distance_of(x: Tensor, scorer: Scorer, seed: int) -> dict[str, float]:
    """A row's Frechet distance, with its interval, of samples' features (n, D)."""
    found = distances.frechet_interval(x, scorer.moments, seed)
    return {"frechet": found.value, "frechet_low": found.low, "frechet_high": found.high}
