"""The study `grids`: the times that sampling visits, at few network calls.

It finds the grid `fitted` for the run from the model's own paths, and compares it with the other
grids, from the same noise, with the run's own sampler and guidance.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from undiffuse.base.errors import UserError
from undiffuse.data.splits import random_labels
from undiffuse.diffusion.grids import GRIDS, fitted_times
from undiffuse.diffusion.sampling import (
    Sampling,
    network_calls,
    steps_within,
    trajectory,
)
from undiffuse.diffusion.schedule import SCHEDULES
from undiffuse.measuring.scorer import Scorer
from undiffuse.runs.folder import Run
from undiffuse.runs.studies import check_study
from undiffuse.study.samplers import (
    fastest,
    features_of_samples,
    images_within,
    real_distance,
    seconds_per_call,
)
from undiffuse.study.sheet import Sheet, check_minutes, data_of, distance_of, scorer_of, sheet

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from undiffuse.diffusion.denoiser import Denoiser

CALLS = (5, 8, 14)
"""The most network calls for each image."""

FEWEST, MOST = 500, 5000
"""The fewest and the most images of a case."""

PATHS, FINE, QUANTILES = 64, 64, 16
"""Images whose paths are followed, the steps of each, and the quantiles that are kept."""


@dataclass(frozen=True)
class Case:
    """A grid with a number of network calls."""

    grid: str
    calls: int
    steps: int

    @property
    def row(self) -> dict[str, Any]:
        """The fields of its row that tell it from others."""
        return {"grid": self.grid, "calls": self.calls}


@dataclass
class GridStudy:
    """A study of grids, ready to run. own: how the run samples."""

    sheet: Sheet
    denoiser: Denoiser
    own: Sampling
    scorer: Scorer
    classes: Tensor | None
    cases: list[Case]
    seconds: float

    @property
    def n(self) -> int:
        """The number of images of each case."""
        return self.sheet.n

    def plan(self) -> str:
        """What is left to do, in one sentence."""
        left = self.sheet.plan(f"{len(self.cases)} cases", self.seconds)
        return f"{left}; the fitted grid is {self.sheet.facts['fitted']}"

    def rows(self) -> Iterator[tuple[str, float, dict[str, Any]]]:
        """(what was done, the share of the study that is done, its row). See `Study`."""
        for number, case in enumerate(self.cases, 1):
            row = self.sheet.once(partial(self.measured, case), **case.row)
            name = case.grid.partition(":")[0]
            yield f"{name}, {case.calls} calls", number / len(self.cases), row

    def measured(self, case: Case) -> dict[str, Any]:
        """The row of a case."""
        sampling = replace(self.own, grid=case.grid, steps=case.steps)
        x = features_of_samples(self.denoiser, self.n, sampling, self.classes, self.scorer)
        return {
            **case.row,
            "steps": case.steps,
            **distance_of(x, self.scorer, sampling.seed),
        }


def fitted_grid(denoiser: Denoiser, own: Sampling, classes: Tensor | None) -> str:
    """The spec of the grid that is fitted to a model: from paths of DDIM in FINE steps."""
    sampling = replace(own, sampler="ddim", steps=FINE, grid="uniform")
    part = None if classes is None else classes[:PATHS]
    times, before, change = [1.0], None, []
    for frame in trajectory(denoiser, range(PATHS), sampling, classes=part):
        if before is not None:
            change.append((frame.x_0 - before).double().square().mean().sqrt())
            times.append(frame.t)
        before = frame.x_0
    times.append(0.0)
    change.append(change[-1])  # of the last step, whose end is the denoised image itself
    found = fitted_times(
        SCHEDULES[denoiser.schedule],
        torch.tensor(times, dtype=torch.float64),
        torch.stack(change),
        QUANTILES,
    )
    return f"fitted:times={'/'.join(f'{t:g}' for t in found)}"


def grid_study(path: Path, minutes: float = 4.0, seed: int = 0) -> GridStudy:
    """The study of the run in folder `path`, ready to run.

    Raises UserError where the run's quality cannot be measured."""
    check_minutes(minutes)
    run = Run(path)
    model, whole = run.model(), data_of(run)
    end = model.description.step
    scorer = scorer_of(run, whole)
    denoiser = fastest(model.denoiser)
    own = run.about().config.sampling(end, denoiser.conditioning).checked(denoiser)
    own = replace(own, seed=seed)
    labels = random_labels(whole, MOST, seed, "study labels") if model.classes else None
    grid = fitted_grid(denoiser, own, labels)
    cases = []
    for calls in CALLS:
        for name in [*(name for name in GRIDS if name != "fitted"), grid]:
            usual = replace(own, grid=name)
            steps = steps_within(calls, denoiser, usual)
            cases.append(Case(name, network_calls(denoiser, usual, steps), steps))
    total = sum(case.calls for case in cases)
    per_call = seconds_per_call(denoiser)
    n = images_within(minutes, total, per_call, (FEWEST, MOST), whole)
    kept = sheet(
        run,
        "grids",
        same=("seed", "step", "fitted"),
        seed=seed,
        step=end,
        n=n,
        cases=len(cases),
        fitted=grid,
        sampler=own.sampler,
        guidance=own.guidance,
        real_frechet=real_distance(run, scorer, n, seed),
    )
    n = kept.facts["n"]  # of the study's file, where there is one
    left = total - sum(row["calls"] for row in kept.rows)
    classes = None if labels is None else labels[:n]
    return GridStudy(kept, denoiser, own, scorer, classes, cases, n * left * per_call)


def fitted_to(path: Path) -> str:
    """The grid that the study found for the run in folder `path`.

    Raises UserError where there is no study, or where the run was trained further since."""
    run, what = Run(path), f"'undiffuse study grids {path}' does it"
    try:
        found = check_study("grids", json.loads((path / "study" / "grids.json").read_bytes()))
    except FileNotFoundError:
        raise UserError(f"no grid has been fitted to {path}; {what}") from None
    except ValueError as error:
        raise UserError(
            f"{path}/study/grids.json can't be read ({str(error).splitlines()[0]}); remove it"
        ) from error
    if found["step"] != run.model().description.step:
        raise UserError(f"the grid of {path} was fitted before its last steps; {what} again")
    return str(found["fitted"])
