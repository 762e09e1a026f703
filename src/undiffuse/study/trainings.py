"""Runs the studies of `questions.py`: trains for each value, and measures each training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from undiffuse.base import engine, rng
from undiffuse.base.errors import UserError
from undiffuse.base.images import image_grid, png_bytes
from undiffuse.base.pixels import to_float
from undiffuse.data.splits import left_out, random_labels, random_part
from undiffuse.diffusion import process
from undiffuse.diffusion.denoiser import Denoiser
from undiffuse.diffusion.schedule import SCHEDULES, time_of
from undiffuse.measuring import novelty
from undiffuse.measuring.scorer import scorer_for
from undiffuse.runs.folder import About, Run
from undiffuse.runs.session import train_session
from undiffuse.study.questions import QUESTIONS, Question
from undiffuse.study.sheet import Sheet, check_minutes, data_of, distance_of, sheet
from undiffuse.training.config import Config, validated
from undiffuse.training.experiment import build_configured, load_configured, prepare_data
from undiffuse.training.records import StepTaken
from undiffuse.training.rehearsal import rehearse

if TYPE_CHECKING:
    from torch import Tensor

LEVELS = (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0)
"""log-SNRs at which x_0_hat is compared with x_0.

Losses are not compared, because their meaning depends on the schedule and the prediction."""


DRAWN = 1000  # images sampled from each training


# Real images whose x_0_hat is compared, and images whose nearest training images are found.
COMPARED = 500


SHOWN = 20  # images in a training's picture


BATCH = 250  # images of one network call


MEASURING = 30.0  # estimated seconds of measuring after each training


SHORTEST = 15.0  # the fewest seconds of a training


@dataclass
class TrainingStudy:
    """A comparison of trainings, ready to run.

    base: the configuration of the run that is studied. trainings: the value and seed of each.
    notes: what differs from the request, and why."""

    sheet: Sheet
    question: Question
    base: Config
    trainings: list[tuple[Any, int]]
    notes: list[str]

    @property
    def minutes(self) -> float:
        """The minutes of each training."""
        return float(self.sheet.facts["minutes_each"])

    def plan(self) -> str:
        """What is left to do, in one sentence."""
        left = sum(
            self.sheet.find(value=value, seed=seed) is None for value, seed in self.trainings
        )
        return (
            f"{self.sheet.name}: {left} of {len(self.trainings)} trainings to do, of "
            f"{self.minutes:.1f} minutes each; about "
            f"{left * (self.minutes + MEASURING / 60):.0f} minutes in all"
            + "".join(f"; {note}" for note in self.notes)
        )

    def rows(self) -> Iterator[tuple[str, float, dict[str, Any]]]:
        """(what is done now, the share of the study that is done, its row or {}). See `Study`."""
        for number, (value, seed) in enumerate(self.trainings):
            shown = "all" if value is None else value
            what = f"{self.question.field.replace('_', '-')} {shown}, seed {seed}"
            row = self.sheet.find(value=value, seed=seed)
            if row is None:
                config = varied(self.base, self.question, value, seed, self.minutes)
                folder = (
                    self.sheet.path.parent
                    / self.sheet.name
                    / f"{value}-seed{seed}".replace(":", "-")
                )
                self.sheet.save()  # so that an interrupted study continues with the same facts
                seconds = 0.0
                for record in train_session(config, folder):
                    if isinstance(record, StepTaken):
                        seconds = record.time
                        share = min(1.0, seconds / (60 * self.minutes + MEASURING))
                        yield f"training with {what}", (number + share) / len(self.trainings), {}
                yield f"measuring {what}", (number + 0.9) / len(self.trainings), {}
                picture = f"{self.sheet.name}-{folder.name}.png"
                found, sheet_of = measured(Run(folder))
                self.sheet.write(picture, png_bytes(sheet_of))
                row = {"value": value, "seed": seed, **found, "picture": picture}
                self.sheet.add(row)
            yield what, (number + 1) / len(self.trainings), row


def measured(run: Run) -> tuple[dict[str, Any], Any]:
    """(the figures of a finished training, a picture of its images)."""
    config, end = run.about().config, run.finished()
    assert end is not None
    model = run.model()
    denoiser = model.denoiser
    whole = load_configured(config)
    training, held_out, _ = prepare_data(config, whole)
    others = left_out(whole, config.subset or len(whole), config.seed, COMPARED)
    unseen, seen = (
        random_part(part, COMPARED, 0) for part in (others if len(others) else held_out, training)
    )
    precision = engine.fastest()
    classes = None
    if model.classes:
        labels = random_labels(training, DRAWN, config.seed, "study labels")
        classes = [model.classes[label] for label in labels]
    request = model.request(DRAWN, classes, seed=config.seed, precision=precision, batch_size=BATCH)
    samples = torch.cat(list(request.batches()))
    found: dict[str, Any] = {
        "steps": end.step,
        "images_seen": end.step * config.batch_size,
        "images": len(training),
        "levels": LEVELS,
        "unseen": errors(denoiser, unseen.images),
        "seen": errors(denoiser, seen.images),
    }
    if len(training) >= 2 and len(unseen) >= 100:
        own, real = (
            novelty.nearest_images(part[:COMPARED], training.images).ratio
            for part in (samples, unseen.images)
        )
        alarm = novelty.audit(own, real)
        found |= {"copies": alarm.raised, "near": alarm.share, "near_expected": alarm.expected}
    scorer = scorer_for(whole)
    if scorer is not None:
        found |= distance_of(scorer.network(samples)[0], scorer, config.seed)
        found["floor"] = scorer.floors.get(DRAWN)
    return found, image_grid(samples[:SHOWN], SHOWN // 2)


@torch.no_grad()
def errors(denoiser: Denoiser, real: Tensor) -> list[float]:
    """The mean square of x_0_hat - x_0 at each of LEVELS, for images uint8 (n, C, H, W).

    Images are in [-1, 1]. x_0_hat is predicted without a condition."""
    x_0 = to_float(real)
    noise = rng.normal(x_0.shape, 0, "study noise")
    times = time_of(SCHEDULES[denoiser.schedule], torch.tensor(LEVELS, dtype=torch.float64))
    found = []
    for t in times:
        level = denoiser.noise_level(t)
        x_t = process.jump(x_0, noise, level.alpha, level.sigma)
        total = 0.0
        for rows in torch.arange(len(x_0)).split(BATCH):
            x_0_hat = denoiser(x_t[rows], t.expand(len(rows)))
            total += (x_0_hat - x_0[rows]).square().mean(dim=(1, 2, 3)).sum().item()
        found.append(total / len(x_0))
    return found


def training_study(
    path: Path,
    what: str,
    minutes: float = 30.0,
    seeds: int = 1,
    seed: int = 0,
    only: Sequence[str] = (),
) -> TrainingStudy:
    """The study `what` of QUESTIONS of the run in folder `path`, ready to run.

    only: the values to compare, as they are written; all where it is empty. A value that cannot be
    trained is left out, with a note. Raises UserError for an unknown value, where fewer than two
    values are left, the minutes are too few, or the run cannot be studied."""
    run, question = Run(path), QUESTIONS[what]
    about = run.about()
    check_minutes(minutes)
    if seeds < 1:
        raise UserError(f"a study needs at least one seed: --seeds must be at least 1, not {seeds}")
    there = len(data_of(run))
    if there < 20:
        raise UserError(
            f"'{about.config.data}' has {there} images, too few images to hold some out: a study "
            "needs at least 20 images"
        )
    common = {**about.config.model_dump(), **question.also}
    if (
        common["conditional"] or (common["clusters"] and about.conditioning.clusters)
    ) and not common["condition_dropout"]:
        raise UserError(
            f"{path} was trained with --condition-dropout 0, so it has no unconditional "
            "predictions, which this study compares; study a run with --condition-dropout 0.1"
        )
    values = [v for v in question.values if question.field != "subset" or v is None or v < there]
    if only:
        values = chosen(what, question, values, only)
    values, notes = possible(about, question, values, seed)
    trainings = [(value, seed + k) for k in range(seeds) for value in values]
    each = 60 * minutes / len(trainings) - MEASURING
    if not each >= SHORTEST:
        least = len(trainings) * (SHORTEST + MEASURING) / 60
        raise UserError(
            f"{len(trainings)} trainings and their measurements take at least {least:.0f} minutes; "
            f"--minutes {minutes:g} is too few"
        )
    kept = sheet(run, what, minutes_each=each / 60, field=question.field, also=question.also)
    if abs(kept.facts["minutes_each"] - each / 60) > 0.01:
        notes.append(
            f"the study continues with the minutes it was started with; for {each / 60:.1f} "
            f"minutes each, remove {kept.all_of_it}"
        )
    base = about.config.model_copy(update={"data": run.data_place()})
    return TrainingStudy(kept, question, base, trainings, notes)


def possible(
    about: About, question: Question, values: list[Any], seed: int
) -> tuple[list[Any], list[str]]:
    """(the values that can be trained; a note for each of the others).

    Raises UserError where there are fewer than two."""
    found, notes = [], []
    for value in values:
        try:
            config = varied(about.config, question, value, seed, minutes=1.0)
            rehearse(config)
            build_configured(config, about.facts, about.conditioning, device="meta")
        except UserError as error:
            notes.append(
                f"{question.field} {value} is left out, because it can't be trained here ({error})"
            )
        else:
            found.append(value)
    if len(found) < 2:
        raise UserError(f"there is nothing to compare: {'; '.join(notes) or 'too few images'}")
    return found, notes


def chosen(what: str, question: Question, values: list[Any], only: Sequence[str]) -> list[Any]:
    """Those of the values that are written in `only`. Raises UserError for others, or for one."""
    written = {"all" if value is None else str(value): value for value in values}
    for word in only:
        if word not in written:
            raise UserError(
                f"the study of {what} has no {question.field} '{word}'; it has: "
                f"{', '.join(written)}"
            )
    if len(set(only)) < 2:
        raise UserError("a study compares at least two values; give two or more")
    return [value for word, value in written.items() if word in only]


def varied(base: Config, question: Question, value: Any, seed: int, minutes: float) -> Config:
    """The configuration of one training. Raises UserError for one that is not possible."""
    own = {question.field: value, "seed": seed, "minutes": minutes, "epochs": None, "steps": None}
    quiet = {"quality_share": 0.0, "snapshots": 2}
    return validated({**base.model_dump(), **question.also, **quiet, **own})
