"""Studies: the effect of one choice while everything else stays the same.

    samplers     compares samplers on one finished run (samplers.py)
    progress     measures the quality of samples as training went on (progress.py)
    guidance     measures quality and variety against the strength of guidance (guidance.py)
    grids        fits the times that sampling visits to the run, and compares them (grids.py)
    restoration  restores real images that were masked, shrunk, blurred or noised (restoration.py)
    QUESTIONS    compares schedules, predictions, ... with one training for each (questions.py)

A study is kept in RUN/study/NAME.json, with pictures beside it. Each row is written when it is
measured, so an interrupted study continues where it stopped. The report shows the rows so far.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from undiffuse.base.errors import UserError
from undiffuse.base.lazy import lazy
from undiffuse.study.questions import QUESTIONS

if TYPE_CHECKING:
    from undiffuse.study import grids, guidance, progress, restoration, samplers, trainings
    from undiffuse.study.sheet import Sheet
else:
    samplers, trainings = lazy("undiffuse.study.samplers"), lazy("undiffuse.study.trainings")
    grids, guidance = lazy("undiffuse.study.grids"), lazy("undiffuse.study.guidance")
    progress, restoration = lazy("undiffuse.study.progress"), lazy("undiffuse.study.restoration")

OF_ONE_RUN = {"samplers": 2.0, "progress": 1.0, "guidance": 4.0, "grids": 4.0, "restoration": 3.0}
"""The studies of a finished run -> the minutes that they take by default."""

MINUTES = 30.0
"""The minutes that the studies with trainings take by default."""

STUDIES = (*OF_ONE_RUN, *QUESTIONS)


class Study(Protocol):
    """A study that is ready to run."""

    sheet: Sheet

    def plan(self) -> str:
        """What is left to do, in one sentence."""

    def rows(self) -> Iterator[tuple[str, float, dict[str, Any]]]:
        """(what is done now, the share of the study that is done, its row or {}).

        Each row is written to the file before it is yielded."""


def make_study(
    what: str,
    run: Path,
    minutes: float | None = None,
    seeds: int = 1,
    seed: int = 0,
    values: Sequence[str] = (),
) -> Study:
    """The study called `what` of a run, ready to run.

    minutes: the time that it may take, by default that of OF_ONE_RUN, or MINUTES. seeds: the number
    of trainings for each value. values: those to compare, all by default.

    Raises UserError where the run cannot be studied."""
    if what in OF_ONE_RUN and (seeds != 1 or values):
        raise UserError(f"the study of {what} is of one run; leave --seeds and --values out")
    if minutes is None:
        minutes = OF_ONE_RUN.get(what, MINUTES)
    if what == "samplers":
        return samplers.sampler_study(run, minutes, seed)
    if what == "progress":
        return progress.progress_study(run, minutes, seed)
    if what == "guidance":
        return guidance.guidance_study(run, minutes, seed)
    if what == "grids":
        return grids.grid_study(run, minutes, seed)
    if what == "restoration":
        return restoration.restoration_study(run, minutes, seed)
    return trainings.training_study(run, what, minutes, seeds, seed, values)
