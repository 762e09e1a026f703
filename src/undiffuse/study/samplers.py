"""The study `samplers`: it compares samplers on one run.

All samplers start from the same noise and classes. They sample without guidance.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from undiffuse.base import engine, rng
from undiffuse.base.engine import in_precision
from undiffuse.base.images import image_grid, png_bytes
from undiffuse.base.pixels import to_float, to_uint8
from undiffuse.data.dataset import Dataset
from undiffuse.data.splits import random_labels, random_part
from undiffuse.diffusion import process
from undiffuse.diffusion.sampling import (
    Sampling,
    network_calls,
    sample_batches,
    steps_within,
    trajectory,
)
from undiffuse.measuring.scorer import scorer_for
from undiffuse.runs.folder import Run
from undiffuse.study.sheet import Sheet, check_minutes, data_of, distance_of, sheet
from undiffuse.training.experiment import prepare_data

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image
    from torch import Tensor

    from undiffuse.diffusion.denoiser import Denoiser
    from undiffuse.measuring.scorer import Scorer

COMPARED = ("posterior-mean", "ddpm-printed", "ddpm", "ddim", "heun", "dpmpp-2m", "dpmpp-2m-sde")
"""(7), (8) as printed, (8) corrected, DDIM, and the samplers of second order."""


CALLS = (5, 10, 25)
"""The most network calls for each image. Heun's method takes an odd number: for 10 it takes 9."""


FEWEST, MOST = 50, 2000  # the fewest and the most images of a case


SHOWN = 10  # images in a case's picture


BATCH = 250  # images of the batch that is timed


@dataclass(frozen=True)
class Case:
    """A sampler with its number of steps and of network calls for each image."""

    sampler: str
    steps: int
    calls: int


def cases(denoiser: Denoiser) -> list[Case]:
    """All cases: each sampler with as many steps as each number of network calls allows."""
    found = []
    for sampler in COMPARED:
        sampling = Sampling(sampler)
        for calls in CALLS:
            steps = steps_within(calls, denoiser, sampling)
            found.append(Case(sampler, steps, network_calls(denoiser, sampling, steps)))
    return found


@dataclass
class SamplerStudy:
    """A comparison of samplers, ready to run.

    whole: the run's data set. cases: all of them. seconds: an estimate for those that are left."""

    sheet: Sheet
    denoiser: Denoiser
    whole: Dataset
    cases: list[Case]
    seconds: float

    @property
    def n(self) -> int:
        """The number of images of each case."""
        return int(self.sheet.facts["n"])

    @property
    def seed(self) -> int:
        return int(self.sheet.facts["seed"])

    def plan(self) -> str:
        """What is left to do, in one sentence."""
        return (
            f"samplers: {self.n:,} images of each of {len(self.cases)} cases, about "
            f"{self.seconds / 60:.1f} minutes"
        )

    def rows(self) -> Iterator[tuple[str, float, dict[str, Any]]]:
        """(what was done, the share of the study that is done, its row). See `Study`."""
        scorer, classes = scorer_for(self.whole), None
        if self.denoiser.conditioning.classes:
            classes = random_labels(self.whole, self.n, self.seed, "study labels")
        self.sheet.write("denoising.png", png_bytes(self.denoising(classes)))
        if self.denoiser.conditioning.unconditional:
            self.sheet.write("denoised.png", png_bytes(self.denoised()))
        total, done = sum(case.calls for case in self.cases), 0
        for case in self.cases:
            done += case.calls
            what = f"{case.sampler}, {case.steps} steps"
            row = self.sheet.find(sampler=case.sampler, steps=case.steps)
            if row is None:
                row = self.measured(case, classes, scorer)
                self.sheet.add(row)
            yield what, done / total, row

    def measured(self, case: Case, classes: Tensor | None, scorer: Scorer | None) -> dict[str, Any]:
        """The row of a case. Its picture is written to a file."""
        begin = time.monotonic()
        grid = self.sheet.run.about().config.grid
        sampling = Sampling(case.sampler, case.steps, grid=grid, seed=self.seed)
        batches = sample_batches(self.denoiser, self.n, sampling, classes=classes)
        images = to_uint8(torch.cat(list(batches)))
        row: dict[str, Any] = {
            "sampler": case.sampler,
            "steps": case.steps,
            "calls": case.calls,
            "seconds_per_image": (time.monotonic() - begin) / self.n,
            "spread": spread(images, classes),
            "picture": f"{case.sampler}-{case.steps}.png",
        }
        if scorer is not None:
            x, probabilities = scorer.network(images)
            predicted = probabilities.argmax(dim=1)
            row |= {
                **distance_of(x, scorer, self.seed),
                "classes": torch.bincount(predicted, minlength=len(self.whole.classes)).tolist(),
                "confidence": probabilities.amax(dim=1).mean().item(),
            }
        self.sheet.write(str(row["picture"]), png_bytes(image_grid(images[:SHOWN], SHOWN)))
        return row

    def denoising(self, classes: Tensor | None, count: int = 3, columns: int = 11) -> Image.Image:
        """Some images on their way from noise, by (8).

        For each image there are two rows: x_t, and below it x_0_hat. classes: (n,), or None."""
        own = None if classes is None else classes[:count]
        sampling = Sampling("ddpm", 50, seed=self.seed)
        frames = list(trajectory(self.denoiser, range(count), sampling, classes=own))
        shown = [frames[round(k * (len(frames) - 1) / (columns - 1))] for k in range(columns)]
        # (columns, 2, count, C, H, W)
        both = torch.stack([torch.stack([frame.x_t, frame.x_0]) for frame in shown])
        return image_grid(to_uint8(both.permute(2, 1, 0, 3, 4, 5).flatten(0, 2)), columns)

    @torch.no_grad()
    def denoised(self, count: int = 3, columns: int = 11) -> Image.Image:
        """What the network gets at each noise level, and what it predicts without a condition.

        For each of some real images there are two rows: x_t, and below it x_0_hat. The images are
        held-out ones where the run has some."""
        training, held_out, _ = prepare_data(self.sheet.run.about().config, self.whole)
        x_0 = to_float(random_part(held_out if len(held_out) else training, count, 0).images)
        noise = rng.normal(x_0.shape, self.seed, "study noise")
        both = []
        for t in torch.linspace(1 / (columns - 1), 1, columns - 1, dtype=torch.float64):
            level = self.denoiser.noise_level(t)
            x_t = process.jump(x_0, noise, level.alpha, level.sigma)
            both.append(torch.stack([x_t, self.denoiser(x_t, t.expand(len(x_0)))]))
        both.insert(0, torch.stack([x_0, x_0]))
        rows = torch.stack(both).permute(2, 1, 0, 3, 4, 5).flatten(0, 2)
        return image_grid(to_uint8(rows), columns)


def spread(images: Tensor, classes: Tensor | None = None) -> float:
    """How much images uint8 (n, C, H, W) differ from each other, in 8-bit values.

    It is the root mean square difference between an image and the mean of all images. With classes
    (n,) it is the difference from the mean of the image's class."""
    x = images.double()
    own = torch.zeros(len(x), dtype=torch.long) if classes is None else classes
    means = torch.stack([x[own == k].mean(dim=0) for k in range(int(own.max()) + 1)])
    return (x - means[own]).square().mean().sqrt().item()


def sampler_study(path: Path, minutes: float = 2.0, seed: int = 0) -> SamplerStudy:
    """The study of the run in folder `path`, ready to run.

    A batch is timed to find how many images the minutes allow. Raises UserError where the run
    cannot be studied."""
    check_minutes(minutes)
    run = Run(path)
    model = run.model()
    whole = data_of(run)
    precision = "bf16" if engine.has_bf16() else "fp32"
    denoiser = model.denoiser
    quick = replace(denoiser, network=in_precision(denoiser.network, precision))
    compared = cases(denoiser)
    calls = sum(case.calls for case in compared)
    per_call = seconds_per_call(quick)
    n = max(FEWEST, min(MOST, int(60 * minutes / (calls * per_call)), len(whole)))
    real = random_part(whole, n, seed)
    scorer = scorer_for(whole)
    kept = sheet(
        run,
        "samplers",
        same=("seed", "step"),
        seed=seed,
        step=model.description.step,
        n=n,
        guidance=1.0,
        cases=len(compared),
        real_frechet=None if scorer is None else scorer(real.images),
        real_spread=spread(real.images, real.labels if model.classes else None),
    )
    left = calls - sum(row["calls"] for row in kept.rows)
    return SamplerStudy(kept, quick, whole, compared, kept.facts["n"] * left * per_call)


def seconds_per_call(denoiser: Denoiser) -> float:
    """The seconds of one network call, divided by the images of the batch."""
    classes = torch.zeros(BATCH, dtype=torch.long) if denoiser.conditioning.classes else None

    def timed(steps: int) -> float:
        begin = time.monotonic()
        list(trajectory(denoiser, range(BATCH), Sampling(steps=steps), classes=classes))
        return time.monotonic() - begin

    timed(1)
    return timed(4) / 4 / BATCH
