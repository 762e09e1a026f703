"""What the fields of the configuration have in common: their description, and named choices."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from undiffuse.diffusion.denoiser import PREDICTIONS
from undiffuse.diffusion.grids import GRIDS
from undiffuse.diffusion.objectives import OBJECTIVES
from undiffuse.diffusion.schedule import SCHEDULES
from undiffuse.diffusion.step import SAMPLERS
from undiffuse.diffusion.times import TIMES
from undiffuse.diffusion.weightings import WEIGHTINGS
from undiffuse.nets import NETWORKS
from undiffuse.training.optimizers import OPTIMIZERS

TABLES = {
    "net": NETWORKS,
    "schedule": SCHEDULES,
    "predict": PREDICTIONS,
    "weighting": WEIGHTINGS,
    "times": TIMES,
    "sampler": SAMPLERS,
    "grid": GRIDS,
    "objective": OBJECTIVES,
    "optimizer": OPTIMIZERS,
}
"""The fields that name an entry of a table."""


AUTO = "auto"  # the value of a field that is decided from the training images, by from_data.py
BY_RULE = {"times": AUTO, "guidance_limit": AUTO, "net": "unet"}
"""The fields that may be decided from the training images -> the value that leaves it to that."""

NAMES = {field: " | ".join(table) for field, table in TABLES.items()}
"""The names of these fields' tables when this module is imported; others may come later."""


def hyper(default: Any, what: str, why: str, **constraints: Any) -> Any:
    """A field of `Config`. what: what it is, with its unit. why: the reason for the default."""
    return Field(default, description=f"{what} - {why}", **constraints)


def among(field: str, what: str = "") -> str:
    """The names that a field may take, for its description. what: a text before them."""
    return f"{what}{' | '.join(TABLES[field])}"
