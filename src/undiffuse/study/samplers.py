"""The study `samplers`: it compares samplers on one run.

All samplers start from the same noise and classes. They sample without guidance. One further case
samples as the run's own images are sampled, with guidance where these have it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from undiffuse.base import engine, rng
from undiffuse.base.engine import in_precision
from undiffuse.base.images import image_grid, png_bytes
from undiffuse.base.pixels import to_float, to_uint8
from undiffuse.data.dataset import Dataset
from undiffuse.data.splits import random_labels, random_part, random_rows_of
from undiffuse.diffusion import process
from undiffuse.diffusion.sampling import (
    EVERYWHERE,
    Sampling,
    network_calls,
    sample_batches,
    steps_within,
    trajectory,
)
from undiffuse.measuring.reference import real_test_set
from undiffuse.measuring.scorer import scorer_for
from undiffuse.runs.folder import Run
from undiffuse.study.sheet import Sheet, check_minutes, data_of, distance_of, sheet
from undiffuse.training.experiment import condition_on, prepare_data

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image
    from torch import Tensor

    from undiffuse.diffusion.denoiser import Denoiser
    from undiffuse.measuring.scorer import Scorer
    from undiffuse.training.config import Config

COMPARED = ("posterior-mean", "ddpm-printed", "ddpm", "ddim", "heun", "dpmpp-2m", "dpmpp-2m-sde")
"""(7), (8) as printed, (8) corrected, DDIM, and the samplers of second order."""


COLLAPSED = ("posterior-mean", "ddpm-printed", "ddpm", "ddim")
"""The ways whose variety within one condition is shown."""


CALLS = (5, 10, 25)
"""The most network calls for each image. Heun's method takes an odd number: for 10 it takes 9."""


LONG = 6.0
"""The minutes from which on a study compares the further samplers and numbers of calls too."""

FURTHER = (
    "exp-ab", "dpmpp-3m", "dpmpp-3m-sde", "unipc", "deis", "lms", "pndm", "heun-churn", "restart"
)  # fmt: skip

MORE_CALLS = (3, 5, 8, 12, 25, 50)


FEWEST, MOST = 50, 2000  # the fewest and the most images of a case


SHOWN = 10  # images in a case's picture


BATCH = 250  # images of the batch that is timed


@dataclass(frozen=True)
class Case:
    """A sampler with its numbers of steps and of network calls for each image, and its guidance."""

    sampler: str
    steps: int
    calls: int
    guidance: float = 1.0
    guidance_interval: tuple[float, float] = EVERYWHERE

    @property
    def row(self) -> dict[str, Any]:
        """The fields of its row that tell it from others."""
        return {"sampler": self.sampler, "steps": self.steps, "guidance": self.guidance}

    @property
    def picture(self) -> str:
        """The name of the file with its images."""
        guided = "" if self.guidance == 1 else "-guided"
        return f"{self.sampler}-{self.steps}{guided}.png"


def cases(denoiser: Denoiser, own: Sampling, *, long: bool = False) -> list[Case]:
    """All cases: each sampler with as many steps as each number of network calls allows.

    own: the options with which the run's own images are sampled. They are the last case, unless an
    earlier one is the same. long: whether the further samplers and calls are among them."""
    found: list[Case] = []
    for sampler in (*COMPARED, *FURTHER) if long else COMPARED:
        sampling = Sampling(sampler)
        for calls in MORE_CALLS if long else CALLS:
            steps = steps_within(calls, denoiser, sampling)
            case = Case(sampler, steps, network_calls(denoiser, sampling, steps))
            if case not in found and case.calls <= calls:
                found.append(case)
    assert own.steps is not None
    calls = network_calls(denoiser, own, own.steps)
    interval = EVERYWHERE if own.guidance == 1 else own.guidance_interval
    last = Case(own.sampler, own.steps, calls, own.guidance, interval)
    return found if last in found else [*found, last]


@dataclass
class SamplerStudy:
    """A comparison of samplers, ready to run.

    whole: the run's data set. cases: all of them. seconds: an estimate for those that are left.
    conditions: the condition (n,) of each image, or None."""

    sheet: Sheet
    denoiser: Denoiser
    whole: Dataset
    cases: list[Case]
    seconds: float
    classes: Tensor | None
    conditions: Tensor | None

    @property
    def n(self) -> int:
        """The number of images of each case."""
        return self.sheet.n

    @property
    def seed(self) -> int:
        return int(self.sheet.facts["seed"])

    def plan(self) -> str:
        """What is left to do, in one sentence."""
        return self.sheet.plan(f"{len(self.cases)} cases", self.seconds)

    def rows(self) -> Iterator[tuple[str, float, dict[str, Any]]]:
        """(what was done, the share of the study that is done, its row). See `Study`."""
        scorer, classes = scorer_for(self.whole), self.classes
        self.sheet.write("denoising.png", png_bytes(self.denoising(classes)))
        self.sheet.write("collapse.png", png_bytes(self.collapse(classes)))
        if self.denoiser.conditioning.unconditional:
            self.sheet.write("denoised.png", png_bytes(self.denoised()))
        total, done = sum(case.calls for case in self.cases), 0
        for case in self.cases:
            done += case.calls
            what = f"{case.sampler}, {case.steps} steps"
            row = self.sheet.once(partial(self.measured, case, scorer), **case.row)
            yield what, done / total, row

    def measured(self, case: Case, scorer: Scorer | None) -> dict[str, Any]:
        """The row of a case. Its picture is written to a file."""
        begin = time.monotonic()
        grid = self.sheet.run.about().config.grid
        sampling = Sampling(
            case.sampler, case.steps, grid=grid, guidance=case.guidance,
            guidance_interval=case.guidance_interval, seed=self.seed,
        )  # fmt: skip
        batches = sample_batches(self.denoiser, self.n, sampling, classes=self.classes)
        images = to_uint8(torch.cat(list(batches)))
        row: dict[str, Any] = {
            **case.row,
            "calls": case.calls,
            "seconds_per_image": (time.monotonic() - begin) / self.n,
            "spread": spread(images, self.conditions),
            "picture": case.picture,
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

    def collapse(self, classes: Tensor | None, count: int = 10) -> Image.Image:
        """Images of one condition from different noises: a row for each of COLLAPSED.

        The condition is that of the first image. classes: (n,), or None."""
        own = None if classes is None else classes[:count]
        condition = None if self.conditions is None else self.conditions[:1].expand(count)
        rows = []
        for sampler in COLLAPSED:
            sampling = Sampling(sampler, 25, seed=self.seed)
            *_, last = trajectory(
                self.denoiser, range(count), sampling, classes=own, condition=condition
            )
            rows.append(last.x_s)
        return image_grid(to_uint8(torch.cat(rows)), count)

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


def spread(images: Tensor, conditions: Tensor | None = None) -> float:
    """How much images uint8 (n, C, H, W) differ from each other, in 8-bit values.

    It is the standard deviation of a pixel, as a root mean square over the pixels. With conditions
    (n,) it is that of images with the same condition: what a network is told does not count as
    variety. It is 0 where no two images have the same condition."""
    x = images.double().flatten(1)
    own = torch.zeros(len(x), dtype=torch.long) if conditions is None else conditions
    _, group, sizes = own.unique(return_inverse=True, return_counts=True)
    means = torch.zeros(len(sizes), x.shape[1], dtype=x.dtype).index_add_(0, group, x)
    means /= sizes[:, None]
    freedom = len(x) - len(sizes)
    squares = (x - means[group]).square().sum() / x.shape[1]
    return (squares / freedom).sqrt().item() if freedom else 0.0


def sampler_study(path: Path, minutes: float = 2.0, seed: int = 0) -> SamplerStudy:
    """The study of the run in folder `path`, ready to run.

    A batch is timed to find how many images the minutes allow. Raises UserError where the run
    cannot be studied."""
    check_minutes(minutes)
    run = Run(path)
    model = run.model()
    whole = data_of(run)
    about = run.about()
    denoiser = model.denoiser
    quick = fastest(denoiser)
    own = about.config.sampling(model.description.step, denoiser.conditioning)
    compared = cases(denoiser, own.checked(denoiser), long=minutes >= LONG)
    calls = sum(case.calls for case in compared)
    per_call = seconds_per_call(quick)
    n = images_within(minutes, calls, per_call, (FEWEST, MOST), whole)
    scorer = scorer_for(whole)
    kept = sheet(
        run,
        "samplers",
        same=("seed", "step", "cases"),
        seed=seed,
        step=model.description.step,
        n=n,
        cases=len(compared),
        real_frechet=real_distance(run, scorer, n, seed),
        real_spread=real_spread(about.config, whole, n),
    )
    left = calls - sum(row["calls"] for row in kept.rows)
    seconds = kept.facts["n"] * left * per_call
    n = kept.facts["n"]  # of the study's file, where there is one
    classes = random_labels(whole, n, seed, "study labels") if model.classes else None
    conditions = denoiser.conditioning.sample(classes, range(n), seed)
    return SamplerStudy(kept, quick, whole, compared, seconds, classes, conditions)


def real_distance(run: Run, scorer: Scorer | None, n: int, seed: int) -> float | None:
    """The Frechet distance of n test images; None where there are not as many."""
    config = run.about().config
    test = real_test_set(run.data_place(), config.size, config.background)
    if scorer is None or test is None or len(test) < n:
        return None
    return scorer(random_part(test, n, seed).images)


def real_spread(config: Config, whole: Dataset, n: int) -> float:
    """The `spread` of n training images, with the conditions that the run gives them."""
    training, held_out, _ = prepare_data(config, whole)
    _, conditions, _ = condition_on(config, training, held_out)
    rows = random_rows_of(len(training), n, config.seed)
    images = training.read(rows)
    return spread(images, None if conditions is None else conditions[rows])


def fastest(denoiser: Denoiser) -> Denoiser:
    """The denoiser in the precision that is fastest here."""
    return replace(denoiser, network=in_precision(denoiser.network, engine.fastest()))


def features_of_samples(
    denoiser: Denoiser, n: int, sampling: Sampling, classes: Tensor | None, scorer: Scorer
) -> Tensor:
    """The features (n, D) of n samples. classes: (n,), or None."""
    batches = sample_batches(denoiser, n, sampling, classes=classes)
    features, _ = scorer.network(to_uint8(torch.cat(list(batches))))
    return features


def images_within(
    minutes: float, calls: float, per_call: float, bounds: tuple[int, int], whole: Dataset
) -> int:
    """How many images of each case the minutes allow, within bounds and the size of the data set.

    calls: network calls of an image of each case, all together. per_call: seconds of a call."""
    fewest, most = bounds
    return max(fewest, min(most, int(60 * minutes / (calls * per_call)), len(whole)))


def seconds_per_call(denoiser: Denoiser) -> float:
    """The seconds of one network call, divided by the images of the batch."""
    classes = torch.zeros(BATCH, dtype=torch.long) if denoiser.conditioning.classes else None

    def timed(steps: int) -> float:
        begin = time.monotonic()
        list(trajectory(denoiser, range(BATCH), Sampling(steps=steps), classes=classes))
        return time.monotonic() - begin

    timed(1)
    return timed(4) / 4 / BATCH
