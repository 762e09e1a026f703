"""The configuration of a run: every hyperparameter, its default, and the reason for the default.

The configuration decides the result of a run. Options that do not change what is trained are in
options.py. The names that a field accepts come from the tables, so a new schedule needs no edit
here.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal, TypeVar

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
from undiffuse.base.files import as_path
from undiffuse.data.loading import DATASETS
from undiffuse.diffusion.conditioning import Conditioning, Kind
from undiffuse.diffusion.sampling import MOST_GUIDANCE, Sampling
from undiffuse.nets import NETWORKS
from undiffuse.training.fields import AUTO, BY_RULE, NAMES, TABLES, among, hyper


def described(field: str) -> str:
    """The description of a field, with the names that are in its table now."""
    text = Config.model_fields[field].description or ""
    return text.replace(NAMES[field], among(field), 1) if field in TABLES else text


TOWARDS: dict[Kind, float] = {"class": 0.3, "sub-class cluster": 0.6, "cluster": 1.35}
"""w of the default guidance 1 + w (60,000 / images seen)^(3/4), by condition; fitted on MNIST."""

FORMER = {
    "groups": "clusters",
    "label_dropout": "condition_dropout",
    "score_share": "quality_share",
}
"""Names of fields in version 0.1 -> today's names. Both are accepted."""


BUDGETS = ("minutes", "epochs", "steps")
"""The fields of the budget, of which a configuration has one."""


class Config(BaseModel):
    """Every hyperparameter of a run.

    A description says what the field is and, after the dash, the reason for its default. Measured
    values are from LOG.md. They were measured on MNIST, on two CPU cores."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    preset: str = hyper(
        "fast",
        "the preset, whose values the other flags change",
        "fast is the preset for image quality",
    )

    # The budget: one of the three.
    minutes: float | None = hyper(
        None,
        "time from start to exit, in minutes",
        "the preset's, unless epochs or steps are given",
        gt=0,
        le=1e6,
    )
    epochs: float | None = hyper(
        None,
        "passes over the training images, in place of minutes",
        "the budget is in minutes",
        gt=0,
        le=1e6,
    )
    steps: int | None = hyper(
        None,
        "optimiser steps, in place of minutes",
        "the budget is in minutes",
        ge=1,
        le=10**9,
    )

    # The data.
    data: str = hyper(
        "mnist", "mnist, or a folder of IDX files or of PNG/JPEG images", "the handout's data set"
    )
    size: int | None = hyper(None, "resize images to SIZE x SIZE pixels", "they keep their size")
    background: Literal["auto", "black", "white"] = hyper(
        "auto",
        "what transparent pixels of image files lie on: black | white | auto, which is white where "
        "what is drawn is dark, and black elsewhere",
        "drawings stay visible",
    )
    subset: int | None = hyper(
        None, "train on a random subset of this many images", "all images are used", ge=1
    )
    conditional: bool = hyper(
        False,
        "condition the network on class labels",
        "the handout's model is unconditional, and some data sets have no labels",
    )
    clusters: int = hyper(
        200,
        "clusters of similar images, found by k-means, on which the network is conditioned; they "
        "divide the classes where the run is conditional; 0 for none",
        "measured in three minutes without classes: 64 clusters lower the Frechet distance from "
        "4.26 to 1.38; with guidance 200 have 0.356, and 64 have 0.460",
        ge=0,
        le=1000,
    )
    condition_dropout: float = hyper(
        0.1,
        "share of the training images whose condition is hidden",
        "guidance needs the unconditional prediction too (Ho & Salimans 2022); measured on a "
        "ten-minute recipe: held-out loss 0.0731, as with 0.05; with 0.2 it is 0.0734",
        ge=0,
        lt=1,
    )

    # The network.
    net: str = hyper(
        "unet",
        f"{among('net')}; options as in unet:channels=64/128,blocks=1/3 or dit:depth=6,patch=4; "
        "unet without options takes its levels from the size of the images",
        "measured: unet trains 10 times as many images per second as the UNet2DModel of diffusers' "
        "tutorials",
    )

    # The objective.
    objective: str = hyper("denoising", among("objective"), "the handout's (6)")
    schedule: str = hyper(
        "cosine",
        among("schedule"),
        "measured in 1.2 minutes with uniform times: Frechet distance 1.3, against 2.3 with "
        "linear; sigmoid and flow differ from cosine by less than the error of 0.3",
    )
    chain: int | None = hyper(
        None,
        "steps T of the chain that is trained, with t in {2..T}/T; none for continuous time",
        "continuous time allows any number of sampling steps",
        ge=2,
        le=100_000,
    )
    predict: str = hyper(
        "v",
        among("predict"),
        "well scaled at every noise level; measured in 0.7 minutes with the linear schedule: "
        "better than x0 and eps; on a ten-minute recipe: held-out loss 0.0731, against 0.0732 with "
        "the coefficients of edm",
    )
    weighting: str = hyper(
        "snr-plus-1",
        among("weighting"),
        "makes the loss the squared error of v, with weight 1 at every noise level; not tuned",
    )
    times: str = hyper(
        AUTO,
        among("times", "how training samples t: ") + ", or auto: by the training images",
        "measured in 740 steps with guidance 1.2: Frechet distance about 0.2 with those that it "
        "takes for digits, against 0.43 with the handout's uniform times",
    )
    stratified: bool = hyper(
        True,
        "spread the times of a batch evenly over the distribution of times",
        "lowers the variance of the gradient at no cost (Kingma et al. 2021); not measured",
    )

    # The optimisation.
    batch_size: int = hyper(
        64,
        "images a step",
        "measured in 2.2 minutes: held-out loss 0.1076, against 0.1101 with 32 and 0.1102 with 128",
        ge=1,
        le=65_536,
    )
    optimizer: str = hyper(
        "muon",
        among("optimizer"),
        "measured in ten minutes with an earlier recipe: 5.6 times the distance of real digits, "
        "against 12.6 with adamw; a step takes a sixth longer",
    )
    lr: float = hyper(
        4e-3,
        "peak learning rate",
        "measured in 2.2 minutes: held-out loss 0.1076, against 0.1102 with 2e-3 and 0.1089 with "
        "8e-3",
        gt=0,
    )
    beta_1: float = hyper(
        0.9,
        "decay of AdamW's average of gradients, for each step",
        "proposed by Kingma & Ba 2015; not tuned",
        ge=0,
        lt=1,
    )
    beta_2: float = hyper(
        0.99,
        "decay of AdamW's average of squared gradients, for each step",
        "an average over about 100 steps, because runs are short; not tuned",
        ge=0,
        lt=1,
    )
    weight_decay: float = hyper(
        0.01,
        "decoupled weight decay, for each step and unit of learning rate",
        "measured on a ten-minute recipe: held-out loss 0.0731 with this and with 0.1, where seeds "
        "differ by 0.0002",
        ge=0,
    )
    grad_clip: float = hyper(
        1.0,
        "largest norm of the gradient; a longer gradient is scaled down to it",
        "limits the effect of a single unusual batch; not tuned",
        gt=0,
    )
    warmup: int = hyper(
        20,
        "steps in which the learning rate rises from 0",
        "measured in 2.2 minutes with batches of 128: held-out loss 0.1145, against 0.1174 with "
        "100",
        ge=0,
    )
    decay: float = hyper(
        0.4,
        "share of the run, at its end, in which the learning rate falls to 0",
        "measured on a ten-minute recipe: held-out loss 0.0731, as with 0.7; with 1 it is 0.0732",
        ge=0,
        le=1,
    )
    ema: float = hyper(
        0.05,
        "width of the average of the weights, as a share of the steps so far (Karras et al. 2024)",
        "measured on a ten-minute recipe: held-out loss 0.0731, as with 0.025; with 0.1 it is "
        "0.0732, where seeds differ by 0.0002",
        gt=0,
        le=0.25,
    )
    seed: int = hyper(
        0,
        "seed of all random choices of the run",
        "not tuned; the results of other seeds differ by chance",
        ge=0,
        lt=2**63,
    )

    # What is measured during training.
    snapshots: int = hyper(
        12,
        "snapshots during training, each with samples and the held-out loss, at the first and last "
        "step too; fewer where they would take more than 3% of the minutes, but at least four",
        "shows how the digits form; measured: a snapshot takes about 1 s",
        ge=2,
        le=10_000,
    )
    snapshot_images: int = hyper(
        40, "samples of a snapshot", "four of each of ten classes; not tuned", ge=1, le=256
    )
    quality_share: float = hyper(
        0.05,
        "largest share of the arithmetic that measures quality during training, as Frechet "
        "distances of 500 to 2,000 samples; 0 for none",
        "shows the quality over time at a small cost; not tuned",
        ge=0,
        le=0.5,
    )

    # The default options of sampling.
    sampler: str = hyper(
        "dpmpp-2m-sde",
        among("sampler"),
        "measured on a ten-minute run with 12 guided steps and 10,000 samples: Frechet distance "
        "0.043, against 0.095 with ddpm",
    )
    sample_calls: int = hyper(
        14,
        "network calls for an image, which decide the number of sampling steps; a guided step "
        "takes two calls",
        "measured on a ten-minute run with 10,000 samples: 3.6 times the distance of real digits "
        "(2.0 to 5.1), and 3.7 (2.2 to 5.2) with 24 calls",
        ge=1,
        le=10_000,
    )
    grid: str = hyper(
        "uniform",
        among("grid", "times of the sampling steps: "),
        "measured on a ten-minute run with 12 guided steps and 2,000 samples: unbiased Frechet "
        "distance 0.049, against 0.066 with log-snr and 0.046 with karras",
    )
    guidance: float | None = hyper(
        None,
        "classifier-free guidance; 1 is none and takes half of the network calls; the default is "
        "1 + w (60,000 / images seen)^(3/4), where w is "
        f"{TOWARDS['sub-class cluster']} towards a cluster within a class, {TOWARDS['class']} "
        f"towards a class, {TOWARDS['cluster']} towards another cluster",
        "fitted on MNIST runs of 1 to 60 minutes; too little gives malformed digits, too much "
        "gives less variety",
        ge=0,
        le=MOST_GUIDANCE,
    )
    guidance_interval: tuple[float, float] = hyper(
        (-3.0, 15.0),
        "log-SNRs from and to which guidance is used; elsewhere a step takes one network call",
        "measured on a ten-minute run with 10,000 samples: 3.6 times the distance of real digits "
        "in 8 steps of 14 calls, and 3.7 in 12 steps that are all guided, of 24 calls "
        "(Kynkäänniemi et al. 2024)",
    )
    guidance_limit: Annotated[float, Field(ge=1, le=MOST_GUIDANCE)] | Literal["auto"] = hyper(
        AUTO,
        "largest default guidance, or auto: by the training images",
        "guidance narrows images that vary in many fine details; measured in three minutes on "
        "images of textures: Frechet distance 2.6 without it, 3.5 with 1.2",
    )

    def sampling(self, step: int, conditioning: Conditioning) -> Sampling:
        """The default options of sampling after `step` steps of training."""
        kind, guidance = conditioning.kind, 1.0
        if kind and conditioning.unconditional:
            seen = max(1, step * self.batch_size)
            usual = 1 + TOWARDS[kind] * (60_000 / seen) ** 0.75
            if isinstance(self.guidance_limit, float):
                usual = min(usual, self.guidance_limit)
            guidance = round(usual, 2) if self.guidance is None else self.guidance
        return Sampling(
            sampler=self.sampler,
            calls=self.sample_calls,
            grid=self.grid,
            guidance=guidance,
            guidance_interval=self.guidance_interval,
        )

    @field_validator(*TABLES)
    @classmethod
    def is_known(cls, spec: str, info: ValidationInfo) -> str:
        if spec == BY_RULE.get(str(info.field_name)):
            return spec
        table = TABLES[str(info.field_name)]
        table.check(spec)
        return table.canonical(spec) if table is NETWORKS and ":" in spec else spec

    @field_validator("data", mode="before")
    @classmethod
    def as_text(cls, data: Any) -> Any:
        return os.fspath(data) if isinstance(data, os.PathLike) else data

    @field_validator("data")
    @classmethod
    def without_slash(cls, data: str) -> str:
        data = str(as_path(data)) if data.startswith("~") else data
        # A data set's name with a slash is a folder: `mnist/`.
        bare = data.rstrip("/")
        return data if not bare or bare in DATASETS else bare

    @model_validator(mode="after")
    def fits_together(self) -> Config:
        if sum(getattr(self, budget) is not None for budget in BUDGETS) != 1:
            raise UserError("give one of minutes=M, epochs=E and steps=S")
        return self


Checked = TypeVar("Checked", bound=BaseModel)


def validated_as(kind: type[Checked], values: dict[str, Any]) -> Checked:
    """kind(**values). Raises UserError, one sentence, for the first value that does not fit."""
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        given = f" (given: {first['input']!r})" if first["type"] != "value_error" else ""
        raise UserError(f"{where}: {what}{given}" if where else what) from None


def validated(values: dict[str, Any]) -> Config:
    """Config(**values). Raises UserError, one sentence, for the first value that does not fit."""
    return validated_as(Config, values)
