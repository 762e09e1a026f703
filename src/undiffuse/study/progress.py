"""The study `progress`: the quality of samples as training went on.

It uses the averaged weights that the run kept at each of its snapshots. All are sampled in the same
way, as the finished run's own images are, so they differ by their training only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from undiffuse.base.errors import UserError
from undiffuse.data.dataset import Dataset
from undiffuse.data.splits import random_labels
from undiffuse.diffusion.sampling import Sampling, network_calls
from undiffuse.measuring.scorer import Scorer
from undiffuse.runs.averages import logged_averages, model_at
from undiffuse.runs.folder import Run
from undiffuse.study.samplers import (
    fastest,
    features_of_samples,
    images_within,
    real_distance,
    seconds_per_call,
)
from undiffuse.study.sheet import Sheet, check_minutes, data_of, distance_of, scorer_of, sheet
from undiffuse.training.records import Snapshot

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

FEWEST, MOST = 100, 2000
"""The fewest and the most images of a step."""


@dataclass
class ProgressStudy:
    """A study of a run's quality over time, ready to run.

    steps: those whose averaged weights are sampled. seconds: an estimate for those that are left.
    sampling: the options of all samples. classes: of the samples (n,), or None."""

    sheet: Sheet
    whole: Dataset
    scorer: Scorer
    steps: list[int]
    sampling: Sampling
    classes: Tensor | None
    seconds: float

    @property
    def n(self) -> int:
        """The number of images of each step."""
        return self.sheet.n

    def plan(self) -> str:
        """What is left to do, in one sentence."""
        return self.sheet.plan(f"{len(self.steps)} steps", self.seconds)

    def rows(self) -> Iterator[tuple[str, float, dict[str, Any]]]:
        """(what was done, the share of the study that is done, its row). See `Study`."""
        for number, step in enumerate(self.steps, 1):
            row = self.sheet.once(partial(self.measured, step), step=step)
            yield f"step {step:,}", number / len(self.steps), row

    def measured(self, step: int) -> dict[str, Any]:
        """The row of a step."""
        run = self.sheet.run
        denoiser = fastest(model_at(run, step).denoiser)
        features = features_of_samples(denoiser, self.n, self.sampling, self.classes, self.scorer)
        time = next(record.time for record in run.of(Snapshot) if record.step == step)
        return {
            "step": step,
            "minutes": time / 60,
            "images_seen": step * run.about().config.batch_size,
            **distance_of(features, self.scorer, self.sampling.seed),
        }


def progress_study(path: Path, minutes: float = 1.0, seed: int = 0) -> ProgressStudy:
    """The study of the run in folder `path`, ready to run.

    A batch is timed to find how many images the minutes allow. Raises UserError where the run
    cannot be studied."""
    check_minutes(minutes)
    run = Run(path)
    model, whole = run.model(), data_of(run)
    end, about = model.description.step, run.about()
    steps = [step for step in logged_averages(run) if 0 < step <= end]
    if not steps:
        raise UserError(
            f"{run.path} kept no averaged weights of its snapshots, so its quality over time "
            "cannot be measured; train a new run"
        )
    scorer = scorer_of(run, whole)
    own = about.config.sampling(end, model.denoiser.conditioning).checked(model.denoiser)
    own = replace(own, seed=seed)
    assert own.steps is not None
    calls = network_calls(model.denoiser, own, own.steps)
    per_call = seconds_per_call(fastest(model.denoiser))
    n = images_within(minutes, len(steps) * calls, per_call, (FEWEST, MOST), whole)
    kept = sheet(
        run,
        "progress",
        same=("seed", "step"),
        seed=seed,
        step=end,
        n=n,
        cases=len(steps),
        sampler=own.sampler,
        steps=own.steps,
        guidance=own.guidance,
        real_frechet=real_distance(run, scorer, n, seed),
    )
    n = kept.facts["n"]  # of the study's file, where there is one
    classes = random_labels(whole, n, seed, "study labels") if model.classes else None
    seconds = n * (len(steps) - len(kept.rows)) * calls * per_call
    return ProgressStudy(kept, whole, scorer, steps, own, classes, seconds)
