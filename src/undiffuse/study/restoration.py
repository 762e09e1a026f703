"""The study `restoration`: how well real images come back from a measurement.

Images that the run was not trained on are measured by an operator, with noise. Each method then
samples several answers to each measurement. The pseudo-inverse, which knows no images, is the
control; its iterations stop where it would fit the noise.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from undiffuse.base import rng
from undiffuse.base.errors import UserError
from undiffuse.base.images import image_grid, png_bytes
from undiffuse.base.pixels import to_float, to_uint8
from undiffuse.data.splits import random_part
from undiffuse.diffusion.inverse import Fit
from undiffuse.diffusion.operators import Mask, Operator, operator_of, pseudo_inverse
from undiffuse.diffusion.sampling import sample
from undiffuse.measuring.reference import real_test_set
from undiffuse.measuring.scorer import Scorer, scorer_for
from undiffuse.runs.folder import Run
from undiffuse.study.samplers import seconds_per_call
from undiffuse.study.sheet import Sheet, check_minutes, data_of, sheet
from undiffuse.training.experiment import prepare_data

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from undiffuse.data.dataset import Dataset
    from undiffuse.diffusion.denoiser import Denoiser
    from undiffuse.model.edits import Editor

DRAWS, STEPS = 4, 50
"""Answers to each measurement, and the steps of each."""

FEWEST, MOST = 10, 500
"""The fewest and the most images."""

INVERSE = "pseudo-inverse"

COST = {"mmps": 12.0, "pigdm": 5.0, "repaint": 10.0, INVERSE: 0.0}
"""About how many network calls a step of a method takes, its gradients counted as calls."""

SHOWN = 5  # images in a case's picture


@dataclass(frozen=True)
class Case:
    """An operator with its noise, of which 1 is the distance from black to white; a method."""

    operator: str
    noise: float
    method: str

    @property
    def row(self) -> dict[str, Any]:
        """The fields of its row that tell it from others."""
        return {"operator": self.operator, "noise": self.noise, "method": self.method}

    @property
    def picture(self) -> str:
        """The name of the file with some of its images."""
        return f"restoration-{self.operator.partition(':')[0]}-{self.method}.png"


def cases(shape: tuple[int, int, int]) -> list[Case]:
    """All cases for images (C, H, W)."""
    _, height, width = shape
    half = f"mask:left={width // 2},top=0,right={width},bottom={height}"
    factor = next((f for f in (4, 2, 1) if height % f == 0 and width % f == 0), 1)
    measured = [(half, 0.0), (f"downsample:factor={factor}", 0.05), ("blur:sigma=2", 0.05)]
    found = [
        Case(operator, noise, method)
        for operator, noise in measured
        for method in (INVERSE, "mmps", "pigdm")
    ]
    found.insert(3, Case(half, 0.0, "repaint"))
    return [*found, Case("noise", 0.3, INVERSE), Case("noise", 0.3, "mmps")]


@dataclass
class RestorationStudy:
    """A study of restoration, ready to run.

    images: real ones, not trained on. seconds: an estimate for the cases that are left. inferred:
    the conditions of the answers, by operator and noise."""

    sheet: Sheet
    editor: Editor
    images: Dataset
    scorer: Scorer | None
    cases: list[Case]
    seconds: float
    inferred: dict[str, Tensor | None] = field(default_factory=dict)

    @property
    def denoiser(self) -> Denoiser:
        return self.editor.denoiser

    def plan(self) -> str:
        """What is left to do, in one sentence."""
        return (
            f"restoration: {len(self.images):,} images, {DRAWS} answers each, {len(self.cases)} "
            f"cases, about {self.seconds / 60:.1f} minutes"
        )

    def rows(self) -> Iterator[tuple[str, float, dict[str, Any]]]:
        """(what was done, the share of the study that is done, its row). See `Study`."""
        for number, case in enumerate(self.cases, 1):
            row = self.sheet.once(partial(self.measured, case), **case.row)
            yield f"{case.operator}, {case.method}", number / len(self.cases), row

    def measured(self, case: Case) -> dict[str, Any]:
        """The row of a case. Its picture is written to a file."""
        operator = operator_of(case.operator, self.denoiser.shape)
        truth = to_float(self.images.images)
        seen = operator.apply(truth)
        seed = int(self.sheet.facts["seed"])
        fresh = rng.normal_each(range(len(seen)), seen.shape[1:], seed, "measured", 0)
        seen = seen + 2 * case.noise * fresh
        if isinstance(operator, Mask):
            seen = operator.apply(seen)
        if case.method != INVERSE:
            self.conditions(case, operator, seen, seed)  # before the time is taken
        begin = time.monotonic()
        draws = self.answers(case, operator, seen, seed)  # (images, draws, C, H, W)
        seconds = (time.monotonic() - begin) / draws[:, :, 0, 0, 0].numel()
        row = {**case.row, **figures(draws, truth), "seconds_per_image": seconds}
        if self.scorer is not None and self.images.labels is not None:
            _, probabilities = self.scorer.network(to_uint8(draws.flatten(0, 1)))
            labels = self.images.labels.repeat_interleave(draws.shape[1])
            row["agreement"] = (probabilities.argmax(dim=1) == labels).double().mean().item()
        row["picture"] = case.picture
        large = torch.nn.functional.interpolate(seen, truth.shape[2:])
        shown = torch.cat([truth[:, None], large[:, None], draws], dim=1)[:SHOWN]
        grid = image_grid(to_uint8(shown.flatten(0, 1)), shown.shape[1])
        self.sheet.write(case.picture, png_bytes(grid))
        return row

    def answers(self, case: Case, operator: Operator, seen: Tensor, seed: int) -> Tensor:
        """The answers (images, draws, C, H, W) to measurements."""
        if case.method == INVERSE:
            return control(operator, seen, 2 * case.noise)[:, None]
        y = seen.repeat_interleave(DRAWS, dim=0)
        task = Fit(operator, y, 2 * case.noise, case.method)
        sampling = replace(self.editor.usual, steps=STEPS, guidance=1.0, seed=seed)
        condition = self.conditions(case, operator, seen, seed)
        found = sample(self.denoiser, range(len(y)), sampling, condition=condition, task=task)
        return found.unflatten(0, (len(seen), DRAWS))

    def conditions(self, case: Case, operator: Operator, seen: Tensor, seed: int) -> Tensor | None:
        """The condition of each answer, inferred from its measurement. Methods share them."""
        key = f"{case.operator}, {case.noise}"
        if key not in self.inferred:
            each = [
                self.editor.inferred(Fit(operator, y[None], 2 * case.noise), None, DRAWS, seed + i)
                for i, y in enumerate(seen)
            ]
            found = [conditions for conditions in each if conditions is not None]
            self.inferred[key] = torch.cat(found) if found else None
        return self.inferred[key]


def control(operator: Operator, seen: Tensor, std: float) -> Tensor:
    """The pseudo-inverse of measurements, (images, C, H, W), with so many iterations as pay.

    With more, an image fits the measurement better than its noise of standard deviation `std`
    allows: then it is the noise that is restored (Morozov's discrepancy principle)."""
    for iterations in (*range(1, 20), 200):
        x = pseudo_inverse(operator, seen, iterations)
        if (operator.apply(x) - seen).square().mean().sqrt() <= std:
            break
    return x.clamp(-1, 1)


def figures(draws: Tensor, truth: Tensor) -> dict[str, float]:
    """How near answers (images, draws, C, H, W) are to the truth (images, C, H, W).

    psnr: of one answer, in dB: 10 log10(1 / mean squared error), where white less black is 1; the
    mean over images and answers. psnr_mean: of the mean of an image's answers. spread: the standard
    deviation between an image's answers, in 8-bit values, as a root mean square over pixels."""

    def psnr(x: Tensor, y: Tensor) -> Tensor:
        error = ((x - y) / 2).double().square().flatten(-3).mean(-1).clamp(min=1e-10)
        return -10 * error.log10()

    each = psnr(draws, truth[:, None])
    per_image = each.mean(1)
    half_width = 1.96 * per_image.std().item() / len(per_image) ** 0.5
    spread = draws.double().var(dim=1).mean().sqrt().item() * 127.5 if draws.shape[1] > 1 else 0.0
    return {
        "psnr": per_image.mean().item(),
        "psnr_low": per_image.mean().item() - half_width,
        "psnr_high": per_image.mean().item() + half_width,
        "psnr_mean": psnr(draws.mean(dim=1), truth).mean().item(),
        "spread": spread,
    }


def restoration_study(path: Path, minutes: float = 3.0, seed: int = 0) -> RestorationStudy:
    """The study of the run in folder `path`, ready to run.

    Raises UserError where the run cannot be studied."""
    check_minutes(minutes)
    run = Run(path)
    model, whole = run.model(), data_of(run)
    config, editor = run.about().config, model.editor
    test = real_test_set(run.data_place(), config.size, config.background)
    if test is None:
        _, test, _ = prepare_data(config, whole)
        if not len(test):
            raise UserError(
                f"{run.path} was trained on all its images, so none is left to be restored"
            )
    every = cases(model.description.shape)
    inferring = 6 * model.denoiser.conditioning.count * len({case.operator for case in every})
    cost = sum(COST[case.method] for case in every) * STEPS * DRAWS + inferring
    per_call = seconds_per_call(model.denoiser)
    n = max(FEWEST, min(MOST, int(60 * minutes / (cost * per_call)), len(test)))
    kept = sheet(
        run,
        "restoration",
        same=("seed", "step"),
        seed=seed,
        step=model.description.step,
        n=n,
        draws=DRAWS,
        steps=STEPS,
        cases=len(every),
        real_agreement=None,
    )
    images = random_part(test, kept.facts["n"], seed)
    scorer = scorer_for(whole)
    if scorer is not None and images.labels is not None:
        _, probabilities = scorer.network(images.images)
        right = (probabilities.argmax(dim=1) == images.labels).double().mean().item()
        kept.facts["real_agreement"] = right
    done = [Case(row["operator"], row["noise"], row["method"]) for row in kept.rows]
    left = sum(COST[case.method] for case in every if case not in done) * STEPS * DRAWS
    return RestorationStudy(kept, editor, images, scorer, every, left * per_call * len(images))
