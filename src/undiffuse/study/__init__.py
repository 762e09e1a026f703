"""Studies: what one choice does, everything else being the same.

    samplers     compares samplers on one finished run (samplers.py)
    QUESTIONS    compares schedules, predictions, ...: a training for each (questions.py)

A study is RUN/study/NAME.json, and pictures beside it. Each row is written down when it is there, so
a study goes on where it was interrupted. The report takes in what is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from undiffuse.base.errors import UserError
from undiffuse.base.lazy import lazy
from undiffuse.study.questions import QUESTIONS

if TYPE_CHECKING:
    from undiffuse.study import samplers, trainings
    from undiffuse.study.sheet import Sheet
else:
    samplers, trainings = lazy("undiffuse.study.samplers"), lazy("undiffuse.study.trainings")

STUDIES = ("samplers", *QUESTIONS)


class Study(Protocol):
    """A study made ready."""

    sheet: Sheet

    def plan(self) -> str:
        """What there is to do, in a sentence."""

    def rows(self) -> Iterator[tuple[str, float, dict[str, Any]]]:
        """(what is done, the share of all that is done, its row); each is written down first."""


def make_study(
    what: str, run: Path, minutes: float | None = None, seeds: int = 1, seed: int = 0
) -> Study:
    """Make a study of a run ready. minutes: 2 for samplers, 30 for the others by default.

    Raises UserError where it cannot be."""
    if what == "samplers":
        if seeds != 1:
            raise UserError(
                "the samplers are compared on one run, so --seeds does not go with them"
            )
        return samplers.sampler_study(run, 2.0 if minutes is None else minutes, seed)
    return trainings.training_study(run, what, 30.0 if minutes is None else minutes, seeds, seed)
