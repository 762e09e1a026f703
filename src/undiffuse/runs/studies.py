"""The schema of the studies' files, RUN/study/NAME.json. It is checked on writing and reading."""

from __future__ import annotations

from typing import Any, Literal

from undiffuse.base.schema import Count, Number, Strict

FORMAT = 7


class Distance(Strict):
    """The Frechet distance with its 95% interval, where the data have a feature network."""

    frechet: Number | None = None
    frechet_low: Number | None = None
    frechet_high: Number | None = None


class SamplerRow(Distance):
    """One sampler with one number of steps.

    calls: network calls for an image. spread: how different images with the same condition are from
    one another, in 8-bit values. picture: its file name beside the file. classes: the number of
    images that the classifier assigns to each class. confidence: the classifier's mean
    confidence."""

    sampler: str
    steps: Count
    guidance: Number
    calls: Count
    seconds_per_image: Number
    spread: Number
    picture: str
    classes: list[Count] | None = None
    confidence: Number | None = None


class TrainingRow(Distance):
    """One training.

    value: of the hyperparameter that the study varies. images: training images. unseen, seen: the
    mean squared errors of x_0_hat on images that were not or were trained on, at the log-SNRs
    `levels`. copies: whether the audit found copies. near, near_expected: the share of samples near
    a training image, and that of real images. floor: the Frechet distance of real images."""

    value: Any
    seed: Count
    steps: Count
    images_seen: Count
    images: Count
    levels: list[Number]
    unseen: list[Number]
    seen: list[Number]
    picture: str
    copies: bool | None = None
    near: Number | None = None
    near_expected: Number | None = None
    floor: Number | None = None


class ProgressRow(Distance):
    """The samples of the averaged weights of one step.

    minutes: of training until then. images_seen: by training until then."""

    step: Count
    minutes: Number
    images_seen: Count


class RestorationRow(Strict):
    """One operator with one method.

    noise: the standard deviation in the measurement; 1 is the distance from black to white. psnr:
    of one answer, in dB, with its 95% interval; psnr_mean: of the mean of an image's answers.
    spread: between an image's answers, in 8-bit values. agreement: the share of answers that the
    classifier gives the image's class. picture: its file name beside the file."""

    operator: str
    noise: Number
    method: str
    psnr: Number
    psnr_low: Number
    psnr_high: Number
    psnr_mean: Number
    spread: Number
    seconds_per_image: Number
    agreement: Number | None = None
    picture: str


class GuidanceRow(Distance):
    """One method with one strength. calls: network calls for an image."""

    method: str
    guidance: Number
    calls: Count
    precision: Number
    recall: Number


class GridRow(Distance):
    """One grid with one number of steps. calls: network calls for an image."""

    grid: str
    calls: Count
    steps: Count


class Sheet(Strict):
    """The part that all studies have."""

    format: Literal[7]
    machine: dict[str, Any]


class SamplerSheet(Sheet):
    """The study of samplers.

    step: training steps of the run. n: images of each case. cases: the number of cases.
    real_frechet: the distance of test images, None where there are too few. real_spread: that of
    training images."""

    seed: Count
    step: Count
    n: Count
    cases: Count
    real_frechet: Number | None
    real_spread: Number
    rows: list[SamplerRow]


class TrainingSheet(Sheet):
    """A study that trains.

    minutes_each: of each training. field: the hyperparameter that is varied. also: other
    hyperparameters that differ from the run's."""

    minutes_each: Number
    field: str
    also: dict[str, Any]
    rows: list[TrainingRow]


class ProgressSheet(Sheet):
    """The study of quality as training went on.

    step: the last one of the run. n: images of each row. cases: the number of rows. sampler, steps,
    guidance: how all of them are sampled. real_frechet: the distance of n test images, None where
    there are too few."""

    seed: Count
    step: Count
    n: Count
    cases: Count
    sampler: str
    steps: Count
    guidance: Number
    real_frechet: Number | None
    rows: list[ProgressRow]


class RestorationSheet(Sheet):
    """The study of restoration.

    step: training steps of the run. n: images. draws: answers to each. steps: of each answer.
    real_agreement: the share of the images themselves that the classifier gives their class."""

    seed: Count
    step: Count
    n: Count
    draws: Count
    steps: Count
    cases: Count
    real_agreement: Number | None
    rows: list[RestorationRow]


class GuidanceSheet(Sheet):
    """The study of guidance.

    step: training steps of the run. n: images of each case. weaker_step: that of the weaker model;
    None where the run kept none. real_frechet: the distance of n test images, None where there are
    too few."""

    seed: Count
    step: Count
    n: Count
    cases: Count
    weaker_step: Count | None
    real_frechet: Number | None
    rows: list[GuidanceRow]


class GridSheet(Sheet):
    """The study of grids.

    step: training steps of the run. n: images of each case. fitted: the grid that was found for the
    run. sampler, guidance: as the run's images are sampled. real_frechet: the distance of n test
    images, None where there are too few."""

    seed: Count
    step: Count
    n: Count
    cases: Count
    fitted: str
    sampler: str
    guidance: Number
    real_frechet: Number | None
    rows: list[GridRow]


SHEETS: dict[str, type[Sheet]] = {
    "samplers": SamplerSheet,
    "progress": ProgressSheet,
    "restoration": RestorationSheet,
    "guidance": GuidanceSheet,
    "grids": GridSheet,
}
"""The sheets of the studies of one run. All others are studies that train."""


def check_study(name: str, content: Any) -> dict[str, Any]:
    """The content of a study's file, checked.

    Raises ValueError. The first line of its text says where the error is."""
    if not isinstance(content, dict):
        raise ValueError("it holds no study")
    SHEETS.get(name, TrainingSheet).model_validate(content)
    return content
