"""The schema of the files of studies, RUN/study/NAME.json, checked on writing and reading."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

FORMAT = 5

Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class Strict(BaseModel):
    """All names are known."""

    model_config = ConfigDict(extra="forbid")


class Distance(Strict):
    """The Frechet distance with its interval, where the data have a feature network."""

    frechet: Number | None = None
    frechet_low: Number | None = None
    frechet_high: Number | None = None


class SamplerRow(Distance):
    """One sampler at one number of steps. spread: in 8-bit values. picture: beside the file."""

    sampler: str
    steps: Count
    calls: Count
    seconds_per_image: Number
    spread: Number
    picture: str
    classes: list[Count] | None = None
    confidence: Number | None = None


class TrainingRow(Distance):
    """One training. unseen, seen: errors of x_0_hat at the log-SNRs `levels`."""

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


class Sheet(Strict):
    """What all studies have."""

    format: Literal[5]
    machine: dict[str, Any]


class SamplerSheet(Sheet):
    """The study of samplers. n: images of each case. cases: how many there are in all."""

    seed: Count
    step: Count
    n: Count
    guidance: Number
    cases: Count
    real_frechet: Number | None
    real_spread: Number
    rows: list[SamplerRow]


class TrainingSheet(Sheet):
    """A study that trains. field: the hyperparameter. also: others that differ from the run's."""

    minutes_each: Number
    field: str
    also: dict[str, Any]
    rows: list[TrainingRow]


def check_study(name: str, content: Any) -> dict[str, Any]:
    """The content of a study's file, checked. Raises ValueError, whose first line says where."""
    if not isinstance(content, dict):
        raise ValueError("it holds no study")
    (SamplerSheet if name == "samplers" else TrainingSheet).model_validate(content)
    return content
