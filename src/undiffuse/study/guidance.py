"""The study `guidance`: quality and variety against the strength of guidance, by several methods.

All images start from the same noise, with the run's own sampler and grid. Precision is the share of
images that look real, and recall the share of real images that the model can make.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from undiffuse.base.errors import UserError
from undiffuse.data.splits import random_labels, random_part
from undiffuse.diffusion.sampling import (
    EVERYWHERE,
    Sampling,
    network_calls,
    unguidable,
)
from undiffuse.measuring import distances
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

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from undiffuse.diffusion.denoiser import Denoiser

FEWEST, MOST = 200, 2000
"""The fewest and the most images of a case."""

SCALES = (1.2, 1.5, 2.0, 3.0)
"""The strengths of guidance by classes or by a weaker model."""

PLUS = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Those of CFG++, from the unconditional prediction to the conditional one."""


@dataclass(frozen=True)
class Case:
    """A method with its strength. method: as the report names it."""

    method: str
    sampling: Sampling
    weaker: bool = False

    @property
    def row(self) -> dict[str, Any]:
        """The fields of its row that tell it from others."""
        return {"method": self.method, "guidance": self.sampling.guidance}


def cases(own: Sampling, weaker: bool) -> list[Case]:
    """All cases. own: how the run samples. weaker: whether there is a weaker model."""
    inside = own.guidance_interval if own.guidance_interval != EVERYWHERE else (-3.0, 15.0)
    found = [Case("none", replace(own, guidance=1.0))]
    everywhere = replace(own, guidance_interval=EVERYWHERE)
    methods = {
        "everywhere": everywhere,
        "in an interval": replace(own, guidance_interval=inside),
        "projected (APG)": replace(everywhere, guidance_method="apg"),
    }
    for name, sampling in methods.items():
        found += [Case(name, replace(sampling, guidance=scale)) for scale in SCALES]
    plus = replace(everywhere, guidance_method="cfg++", sampler="ddim")
    found += [Case("DDIM, no guidance", replace(plus, guidance=1.0, guidance_method="cfg"))]
    found += [Case("CFG++, by DDIM", replace(plus, guidance=scale)) for scale in PLUS]
    if weaker:
        found += [
            Case("by an earlier snapshot", replace(everywhere, guidance=scale), weaker=True)
            for scale in SCALES
        ]
    return found


@dataclass
class GuidanceStudy:
    """A study of guidance, ready to run.

    earlier: the weaker model, or None. real: features of real images for precision and recall.
    calls: network calls of each case. seconds: an estimate for the cases that are left."""

    sheet: Sheet
    denoiser: Denoiser
    earlier: Denoiser | None
    scorer: Scorer
    real: Tensor
    classes: Tensor | None
    cases: list[Case]
    calls: list[int]
    seconds: float

    @property
    def n(self) -> int:
        """The number of images of each case."""
        return self.sheet.n

    def plan(self) -> str:
        """What is left to do, in one sentence."""
        return self.sheet.plan(f"{len(self.cases)} cases", self.seconds)

    def rows(self) -> Iterator[tuple[str, float, dict[str, Any]]]:
        """(what was done, the share of the study that is done, its row). See `Study`."""
        done = 0
        for case, calls in zip(self.cases, self.calls, strict=True):
            done += calls
            row = self.sheet.once(partial(self.measured, case, calls), **case.row)
            yield f"{case.method}, {case.sampling.guidance:g}", done / sum(self.calls), row

    def measured(self, case: Case, calls: int) -> dict[str, Any]:
        """The row of a case."""
        denoiser = replace(self.denoiser, weaker=self.earlier) if case.weaker else self.denoiser
        x = features_of_samples(denoiser, self.n, case.sampling, self.classes, self.scorer)
        found = distances.manifold(x, self.real, seed=case.sampling.seed, count=2)
        return {
            **case.row,
            "calls": calls,
            **distance_of(x, self.scorer, case.sampling.seed),
            "precision": found.precision.value,
            "recall": found.recall.value,
        }


def weaker_step(run: Run, end: int) -> int | None:
    """The step, of the kept averages, that is nearest to a quarter of the training; or None."""
    steps = [step for step in logged_averages(run) if 0 < step < end]
    return min(steps, key=lambda step: abs(step - end / 4), default=None)


def guidance_study(path: Path, minutes: float = 4.0, seed: int = 0) -> GuidanceStudy:
    """The study of the run in folder `path`, ready to run.

    Raises UserError where the run cannot be guided, or its quality cannot be measured."""
    check_minutes(minutes)
    run = Run(path)
    model, whole = run.model(), data_of(run)
    end = model.description.step
    if not model.denoiser.conditioning.guidable:
        raise UserError(unguidable(model.denoiser))
    scorer = scorer_of(run, whole)
    step = weaker_step(run, end)
    earlier = None if step is None else fastest(model_at(run, step).denoiser)
    own = run.about().config.sampling(end, model.denoiser.conditioning).checked(model.denoiser)
    every = cases(replace(own, seed=seed), earlier is not None)
    denoiser = fastest(model.denoiser)
    calls = [calls_of(case, denoiser, earlier) for case in every]
    per_call = seconds_per_call(denoiser)
    n = images_within(minutes, sum(calls), per_call, (FEWEST, MOST), whole)
    kept = sheet(
        run,
        "guidance",
        same=("seed", "step"),
        seed=seed,
        step=end,
        n=n,
        cases=len(every),
        weaker_step=step,
        real_frechet=real_distance(run, scorer, n, seed),
    )
    n = kept.facts["n"]  # of the study's file, where there is one
    classes = random_labels(whole, n, seed, "study labels") if model.classes else None
    real, _ = scorer.network(random_part(whole, n, seed).images)
    left = sum(calls) - sum(row["calls"] for row in kept.rows)
    return GuidanceStudy(
        kept, denoiser, earlier, scorer, real, classes, every, calls, n * left * per_call
    )


def calls_of(case: Case, denoiser: Denoiser, earlier: Denoiser | None) -> int:
    """Network calls for an image of a case."""
    assert case.sampling.steps is not None
    weaker = earlier if case.weaker else None
    return network_calls(replace(denoiser, weaker=weaker), case.sampling, case.sampling.steps)
