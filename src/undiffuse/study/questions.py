"""The studies that train: one training for each value of one hyperparameter, and each seed.

The other hyperparameters are those of the run that is studied, and the budget is the same for all.

To add a study: a row of `QUESTIONS`. The command, its help and the report take it in.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from undiffuse.diffusion.denoiser import PREDICTIONS
from undiffuse.diffusion.schedule import SCHEDULES


@dataclass(frozen=True)
class Question:
    """Which field is varied, over which values.

    also: fields that all of the trainings have different from the run's."""

    field: str
    values: tuple[Any, ...]
    also: dict[str, Any] = dataclasses.field(default_factory=dict)


QUESTIONS = {
    # Uniform times, as the usual ones were fitted to the cosine schedule.
    "schedules": Question("schedule", tuple(SCHEDULES), {"times": "uniform"}),
    # The other schedules make eps impossible.
    "predictions": Question(
        "predict", tuple(PREDICTIONS), {"schedule": "linear", "times": "uniform"}
    ),
    # Without clusters, as fewer images have fewer of them.
    "subset": Question("subset", (300, 3000, 30_000, None), {"clusters": 0}),
}
