"""The configuration of a run: every hyperparameter, its default, and the reason for it.

The configuration is the run's identity: it decides the result. The names that a field accepts are
read from the tables, so a new schedule needs no edit here. What may change from session to session
is in options.py.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from undiffuse.base.errors import UserError
from undiffuse.data.loading import DATASETS
from undiffuse.diffusion.conditioning import Conditioning, Kind
from undiffuse.diffusion.denoiser import PREDICTIONS
from undiffuse.diffusion.grids import GRIDS
from undiffuse.diffusion.objectives import OBJECTIVES
from undiffuse.diffusion.samplers import SAMPLERS
from undiffuse.diffusion.sampling import Sampling
from undiffuse.diffusion.schedule import SCHEDULES
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


NAMES = {field: " | ".join(table) for field, table in TABLES.items()}
"""The names that these fields may take, as far as they are known here."""


def hyper(default: Any, what: str, why: str, **constraints: Any) -> Any:
    """A field of `Config`: its default, what it is, and the reason for the default."""
    return Field(default, description=f"{what} - {why}", **constraints)


def among(field: str, what: str = "") -> str:
    """The names that a field may take, for its description."""
    return f"{what}{' | '.join(TABLES[field])}"


def described(field: str) -> str:
    """The description of a field, with the names that its table has by now."""
    text = Config.model_fields[field].description or ""
    return text.replace(NAMES[field], among(field), 1) if field in TABLES else text


TOWARDS: dict[Kind, float] = {"class": 0.3, "sub-class cluster": 0.6, "cluster": 1.35}
"""How far beyond 1 the usual guidance is after 60,000 images seen; at most 1.

It falls as their number to the power 3/4: the less a network was trained, the vaguer its x_0_hat.
Fitted on MNIST: "sub-class cluster" to 760, 3,223 and 11,300 steps of 64 images, "cluster" to
3,374 steps, "class" to runs of 3 and 10 minutes without prototypes."""

FORMER = {
    "groups": "clusters",
    "label_dropout": "condition_dropout",
    "score_share": "quality_share",
}
"""The names of fields in version 0.1, which are still understood."""


class Config(BaseModel):
    """Every hyperparameter of a run; after the dash, why its default is what it is."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    preset: str = hyper(
        "fast",
        "the preset that the other values start from",
        "the best digits for the minutes spent",
    )

    # How long: one of the three.
    minutes: float | None = hyper(
        None,
        "wall-clock budget from start to exit",
        "the preset's, unless epochs or steps are given",
        gt=0,
        le=1e6,
    )
    epochs: float | None = hyper(
        None, "passes over the training images, in place of minutes", "not used", gt=0, le=1e6
    )
    steps: int | None = hyper(
        None, "optimiser steps, in place of minutes", "not used", ge=1, le=10**9
    )

    # On what.
    data: str = hyper(
        "mnist", "mnist, or a folder of IDX files or of PNG/JPEG images", "the handout's data set"
    )
    size: int | None = hyper(None, "resize images to SIZE x SIZE pixels", "the images' own size")
    subset: int | None = hyper(
        None, "train on a random subset of this many images", "all of them", ge=1
    )
    conditional: bool = hyper(
        False, "train with class labels", "the handout's model has none, and not all data have them"
    )
    clusters: int = hyper(
        200,
        "clusters of similar images, found by k-means, that the network is conditioned on; parts of "
        "the classes where the run is conditional; 0 for none",
        "a network that knows roughly what to denoise learns faster and keeps the data's proportions",
        ge=0,
        le=1000,
    )
    condition_dropout: float = hyper(
        0.1,
        "share of images without their condition in training",
        "guidance needs both predictions; Ho & Salimans 2022",
        ge=0,
        lt=1,
    )

    # The network.
    net: str = hyper(
        "unet",
        f"{among('net')}; options as in unet:channels=64/128,blocks=1/3 or dit:depth=6,patch=4",
        "our own is the fast one; its options are explained in nets/unet.py",
    )

    # What it learns.
    objective: str = hyper("denoising", among("objective"), "the handout's (6)")
    schedule: str = hyper("cosine", among("schedule"), "less time at pure noise than linear")
    chain: int | None = hyper(
        None,
        "steps T of the chain trained on, t in {2..T}/T",
        "continuous time serves any number of sampling steps",
        ge=2,
        le=100_000,
    )
    predict: str = hyper("v", among("predict"), "well scaled at every noise level")
    weighting: str = hyper("snr-plus-1", among("weighting"), "gives the v-prediction unit weight")
    times: str = hyper(
        "logit-normal:mean=0.4,std=1.2",
        among("times", "how training samples t: "),
        "with the cosine schedule most where shapes are decided, and few where hardly any noise is left; the handout's is uniform",
    )
    stratified: bool = hyper(
        True,
        "spread a batch's times evenly over all levels",
        "lowers the gradient's variance for free",
    )

    # How it learns.
    batch_size: int = hyper(
        64,
        "images a step",
        "in short runs the number of steps counts for more than that of images",
        ge=1,
        le=65_536,
    )
    optimizer: str = hyper(
        "muon",
        among("optimizer"),
        "halves the Frechet distance of short runs; a step takes a sixth longer",
    )
    lr: float = hyper(4e-3, "peak learning rate", "Muon bears it, and short runs need it", gt=0)
    beta_1: float = hyper(0.9, "AdamW's momentum", "its usual value", ge=0, lt=1)
    beta_2: float = hyper(
        0.99, "AdamW's decay of squared gradients", "short, for short runs", ge=0, lt=1
    )
    weight_decay: float = hyper(0.01, "AdamW's decoupled weight decay", "its usual value", ge=0)
    grad_clip: float = hyper(
        1.0,
        "gradients are scaled down to this norm",
        "one odd batch cannot derail a short run",
        gt=0,
    )
    warmup: int = hyper(
        20,
        "steps in which the learning rate rises from 0",
        "the moments settle, and a short run has few steps",
        ge=0,
    )
    decay: float = hyper(
        0.4,
        "last part of the run, in which the learning rate falls to 0",
        "so that it ends on the budget, at low noise",
        ge=0,
        le=1,
    )
    ema: float = hyper(
        0.05,
        "width of the weights' average, as a share of the run so far",
        "follows the run's length; Karras et al. 2024",
        gt=0,
        le=0.25,
    )
    seed: int = hyper(
        0, "all of the run's randomness follows from it", "any will do", ge=0, lt=2**63
    )

    # What is kept.
    snapshots: int = hyper(
        12,
        "grids drawn and held-out losses taken, first and last step included",
        "enough to see the digits form",
        ge=2,
        le=10_000,
    )
    snapshot_images: int = hyper(
        40, "images in each of these grids", "cheap, and enough to see", ge=1, le=256
    )
    quality_share: float = hyper(
        0.05,
        "largest share of the arithmetic spent on quality during training: Frechet distances of a "
        "few samples; 0 for none",
        "shows quality over time, and whether to stop, for little",
        ge=0,
        le=0.5,
    )

    # How samples are made where nothing else is asked for.
    sampler: str = hyper(
        "dpmpp-2m-sde",
        among("sampler"),
        "fresh noise corrects an undertrained network's errors, second order saves steps",
    )
    sample_calls: int = hyper(
        24,
        "network calls an image may take: as many sampling steps as that allows, at two calls a step with guidance",
        "twelve guided steps of the default sampler are as good as any more, for networks trained for minutes",
        ge=1,
        le=10_000,
    )
    grid: str = hyper(
        "uniform", among("grid", "times that sampling visits: "), "equal steps of time"
    )
    guidance: float | None = hyper(
        None,
        "classifier-free guidance of samples, by default 1 + w (60,000 / images seen)^(3/4), 2 at "
        f"most, where w is {TOWARDS['sub-class cluster']} towards a cluster within a class, "
        f"{TOWARDS['cluster']} towards any other cluster, {TOWARDS['class']} towards a class",
        "a little corrects malformed digits; more of it narrows the variety; 1 is none, and takes "
        "half the calls",
        ge=0,
    )

    def sampling(self, step: int, conditioning: Conditioning) -> Sampling:
        """How samples are made after `step` steps of training where nothing else is asked for."""
        guidance = 1.0
        kind = conditioning.kind
        if kind and conditioning.unconditional:
            seen = max(1, step * self.batch_size)
            usual = round(1 + min(1, TOWARDS[kind] * (60_000 / seen) ** 0.75), 2)
            guidance = usual if self.guidance is None else self.guidance
        return Sampling(
            sampler=self.sampler, calls=self.sample_calls, grid=self.grid, guidance=guidance
        )

    @field_validator(*TABLES)
    @classmethod
    def is_known(cls, spec: str, info: ValidationInfo) -> str:
        table = TABLES[str(info.field_name)]
        table.check(spec)
        return table.canonical(spec) if table is NETWORKS and ":" in spec else spec

    @field_validator("data")
    @classmethod
    def without_slash(cls, data: str) -> str:
        # But with one, `mnist/` is a folder.
        bare = data.rstrip("/")
        return data if not bare or bare in DATASETS else bare

    @model_validator(mode="after")
    def fits_together(self) -> Config:
        if sum(budget is not None for budget in (self.minutes, self.epochs, self.steps)) != 1:
            raise UserError("give one of --minutes, --epochs and --steps")
        return self


Checked = TypeVar("Checked", bound=BaseModel)


def validated_as(kind: type[Checked], values: dict[str, Any]) -> Checked:
    """kind(**values); pydantic's first complaint becomes the one sentence of a UserError."""
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        given = f" (given: {first['input']!r})" if first["type"] != "value_error" else ""
        raise UserError(f"{where}: {what}{given}" if where else what) from None


def validated(values: dict[str, Any]) -> Config:
    """Config(**values). Raises UserError, one sentence, for anything that does not fit."""
    return validated_as(Config, values)
