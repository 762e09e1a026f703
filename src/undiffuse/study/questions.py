"""The studies that train: one training for each value of one hyperparameter and each seed.

The other hyperparameters are those of the run that is studied. All trainings have the same time.

To add a study, add a row to `QUESTIONS`. The command, its help and the report then show it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from undiffuse.diffusion.denoiser import PREDICTIONS
from undiffuse.diffusion.schedule import SCHEDULES


@dataclass(frozen=True)
class Question:
    """A study that trains.

    field: the field of `Config` that is varied. values: its values. also: fields that have other
    values than the run's, the same in all trainings."""

    field: str
    values: tuple[Any, ...]
    also: dict[str, Any] = dataclasses.field(default_factory=dict)


QUESTIONS = {
    # Uniform times: the default times were fitted to the cosine schedule.
    "schedules": Question("schedule", tuple(SCHEDULES), {"times": "uniform"}),
    # The linear schedule: eps is impossible with the other schedules.
    "predictions": Question(
        "predict", tuple(PREDICTIONS), {"schedule": "linear", "times": "uniform"}
    ),
    # Without clusters: their number depends on the number of images.
    "subset": Question("subset", (300, 3000, 30_000, None), {"clusters": 0}),
}
