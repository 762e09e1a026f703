"""The file of a study, RUN/study/NAME.json."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from undiffuse.base import engine
from undiffuse.base.errors import UserError
from undiffuse.base.files import write_atomic
from undiffuse.measuring import distances
from undiffuse.measuring.scorer import scorer_for
from undiffuse.runs.fitting import trained_on
from undiffuse.runs.studies import FORMAT, check_study
from undiffuse.training.experiment import load_configured

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from undiffuse.data.dataset import Dataset
    from undiffuse.measuring.scorer import Scorer
    from undiffuse.runs.folder import Run


@dataclass
class Sheet:
    """The content of a study's file.

    facts: what holds for the whole study. rows: the rows so far."""

    run: Run
    name: str
    facts: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def path(self) -> Path:
        return self.run.path / "study" / f"{self.name}.json"

    @property
    def n(self) -> int:
        """The number of images of each case."""
        return int(self.facts["n"])

    def plan(self, cases: str, seconds: float) -> str:
        """What is left to do, in one sentence. cases: how many, such as "12 cases"."""
        return (
            f"{self.name}: {self.n:,} images of each of {cases}, about {seconds / 60:.1f} minutes"
        )

    @property
    def all_of_it(self) -> str:
        """The file and the folder to remove so that the study starts again."""
        return f"{self.path} and {self.path.with_suffix('')}"

    def find(self, **values: Any) -> dict[str, Any] | None:
        """The row that has these values; None where there is none."""
        return next((row for row in self.rows if values.items() <= row.items()), None)

    def add(self, row: dict[str, Any]) -> None:
        """Add a row, and write the file."""
        self.rows.append(row)
        self.save()

    def once(self, make: Callable[[], dict[str, Any]], **values: Any) -> dict[str, Any]:
        """The row that has these values; made and added where there is none."""
        row = self.find(**values)
        if row is None:
            row = make()
            self.add(row)
        return row

    def save(self) -> None:
        """Write the file."""
        content = {
            "format": FORMAT,
            **self.facts,
            "machine": engine.machine_facts(),
            "rows": self.rows,
        }
        text = json.dumps(content, indent=2)
        check_study(self.name, json.loads(text))  # so that only what can be read is written
        self.write(self.path.name, text.encode())

    def write(self, name: str, content: bytes) -> None:
        """Write a file beside the study's."""
        write_atomic(self.path.parent / name, content)


def sheet(run: Run, name: str, same: tuple[str, ...] = (), **facts: Any) -> Sheet:
    """The sheet of the study `name`, with the rows that its file has.

    facts: of a new study; the file's facts replace them. same: names of facts that must be equal in
    the file. Where one differs, the study starts again. Raises UserError for a damaged file."""
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
                f"{found.path} can't be read ({error}); remove {found.all_of_it} to start again"
            ) from error
    return found


def check_minutes(minutes: float) -> None:
    """Raises UserError unless minutes is finite and above 0."""
    if not 0 < minutes < math.inf:
        raise UserError(f"--minutes must be a finite number above 0, not {minutes:g}")


def data_of(run: Run) -> Dataset:
    """The whole data set that a run was trained on.

    Raises UserError where the data set has changed since."""
    whole = load_configured(run.about().config, run.data_place())
    trained_on(run, whole)
    return whole


def scorer_of(run: Run, whole: Dataset) -> Scorer:
    """What measures the quality of samples. Raises UserError where the data have no classifier."""
    scorer = scorer_for(whole)
    if scorer is None:
        raise UserError(
            f"the quality of {run.path} cannot be measured without a classifier of its data; "
            f"where these have classes, {run.command_for('evaluate')} trains one"
        )
    return scorer


def distance_of(x: Tensor, scorer: Scorer, seed: int) -> dict[str, float]:
    """The Frechet distance of features (n, D) with its interval, for a row."""
    found = distances.frechet_interval(x, scorer.moments, seed)
    return {"frechet": found.value, "frechet_low": found.low, "frechet_high": found.high}
