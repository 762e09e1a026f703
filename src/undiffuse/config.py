"""The configuration of a run: every hyperparameter, its default, and the reason for it; and the presets.

A preset is one screen: what it sets, and why. Whatever neither a preset nor a flag sets has the field's own default
and reason. The names that a field accepts are read from the tables, so a new schedule needs no edit here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from undiffuse.denoiser import PREDICTIONS
from undiffuse.errors import UserError
from undiffuse.nets import NETWORKS
from undiffuse.objective import TIMES, WEIGHTINGS
from undiffuse.registry import Table
from undiffuse.sampling import GRIDS, SAMPLERS
from undiffuse.schedule import SCHEDULES


def named(table: Table) -> AfterValidator:
    """A string that `table` understands."""

    def check(spec: str) -> str:
        table.check(spec)
        return spec

    return AfterValidator(check)


def choices(table: Table) -> str:
    return " | ".join(table)


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Config(BaseModel):
    """One run's hyperparameters. Each description says what the field is, and after the dash why it is what it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: str = Field("fast", description="the preset that the other values start from")

    # How long: one of the three.
    minutes: Positive | None = Field(
        None, description="wall-clock budget, from start to exit - the preset's, unless epochs or steps are set"
    )
    epochs: Positive | None = Field(None, description="passes over the training images, in place of minutes")
    steps: Count | None = Field(None, description="optimiser steps, in place of minutes")

    # On what.
    data: str = Field(
        "mnist", description="mnist, or a folder of IDX files or of PNG/JPEG images - the handout's data set"
    )
    size: int | None = Field(None, description="resize images to SIZE x SIZE - the images' own size")
    subset: Count | None = Field(None, description="train on a random subset of this many images - all of them")
    conditional: bool = Field(False, description="train with class labels - the handout's model has none")
    label_dropout: float = Field(
        0.1,
        ge=0,
        le=1,
        description="share of labels hidden in training - guidance needs both guesses; 10% as in Ho & Salimans 2022",
    )

    # The network.
    net: Annotated[str, named(NETWORKS)] = Field("unet", description=f"{choices(NETWORKS)} - our own is the fast one")
    channels: tuple[Count, ...] = Field(
        (64, 128), description="channels of each level - convolutions of 64 and more run near the CPU's peak"
    )
    blocks: tuple[Count, ...] = Field(
        (1, 3), description="residual blocks of each level - most depth where a block is cheapest, at 7x7"
    )
    attention: tuple[bool, ...] = Field(
        (False, True), description="attention at each level - only at 7x7, where it costs little"
    )
    heads: Count = Field(2, description="attention heads - fewer are faster, more were not better")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout inside the blocks - a few epochs do not overfit")

    # What it learns.
    schedule: Annotated[str, named(SCHEDULES)] = Field(
        "cosine", description=f"{choices(SCHEDULES)} - cosine spends less time at pure noise than linear"
    )
    chain: int | None = Field(
        None,
        ge=2,
        description="steps T of the chain trained on, t uniform on {2..T} - continuous time serves any number of sampling steps",
    )
    predict: Annotated[str, named(PREDICTIONS)] = Field(
        "v", description=f"{choices(PREDICTIONS)} - v is well scaled at every noise level"
    )
    weighting: Annotated[str, named(WEIGHTINGS)] = Field(
        "snr-plus-1", description=f"{choices(WEIGHTINGS)} - gives the v-prediction unit weight"
    )
    times: Annotated[str, named(TIMES)] = Field(
        "uniform", description=f"how training draws t: {choices(TIMES)} - every level of the schedule alike"
    )
    stratified: bool = Field(
        True, description="spread a batch's times evenly over all levels - lowers the gradient's variance for free"
    )

    # How it learns.
    batch_size: Count = Field(128, description="images a step - the smallest that keeps both cores busy")
    lr: Positive = Field(2e-3, description="AdamW's peak learning rate")
    beta_1: float = Field(0.9, ge=0, lt=1, description="AdamW's momentum - its usual value")
    beta_2: float = Field(0.99, ge=0, lt=1, description="AdamW's decay of squared gradients - short, for short runs")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's decoupled weight decay - its usual value")
    grad_clip: Positive = Field(
        1.0, description="gradients are scaled down to this norm - one odd batch cannot derail a short run"
    )
    warmup: int = Field(
        100, ge=0, description="steps in which the learning rate rises from 0 - AdamW's moments need to settle"
    )
    decay: float = Field(
        0.4,
        ge=0,
        le=1,
        description="last part of the run in which the learning rate falls linearly to 0 - so that it ends on the budget",
    )
    ema: float = Field(
        0.05,
        gt=0,
        le=0.25,
        description="width of the weights' average, as a share of the run so far - follows the run's length (Karras et al. 2024)",
    )
    seed: int = Field(0, ge=0, description="all of the run's randomness follows from it")

    # On which machine, and what is kept.
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="of the network's arithmetic - auto: bf16 where the processor has it"
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="torch.compile - auto: where there is a C++ compiler, and the run is long enough to win back the wait",
    )
    checkpoint_every: Count | None = Field(None, description="steps between checkpoints - about one a minute")
    snapshots: int = Field(
        12, ge=2, description="how often a grid is drawn and the validation loss taken, first and last step included"
    )
    snapshot_images: Count = Field(40, description="images in each of these grids - cheap, and enough to see")

    # How its samples are drawn where nothing else is asked for.
    sampler: Annotated[str, named(SAMPLERS)] = Field(
        "ddpm", description=f"{choices(SAMPLERS)} - fresh noise corrects an undertrained network's errors"
    )
    sample_steps: Count = Field(25, description="sampling steps - the point of diminishing returns")
    grid: Annotated[str, named(GRIDS)] = Field(
        "uniform", description=f"times visited by sampling: {choices(GRIDS)} - as training drew them"
    )
    guidance: float = Field(
        1.0,
        ge=0,
        description="classifier-free guidance of conditional samples - 1 is none: faithful to the data, and half the cost",
    )

    @model_validator(mode="after")
    def fits_together(self) -> Config:
        if sum(budget is not None for budget in (self.minutes, self.epochs, self.steps)) != 1:
            raise UserError("give one of --minutes, --epochs and --steps")
        if not len(self.channels) == len(self.blocks) == len(self.attention):
            raise UserError(
                f"--channels, --blocks and --attention have one entry a level, so {len(self.channels)}, {len(self.blocks)} "
                f"and {len(self.attention)} entries do not fit together"
            )
        return self


PRESETS: dict[str, dict[str, tuple[Any, str]]] = {
    "fast": {
        "minutes": (10.0, "time for a coffee"),
    },
    "handout": {
        "minutes": (45.0, "about ten passes over MNIST on two cores"),
        "net": ("unet2d", "the handout suggests diffusers' UNet2DModel"),
        "channels": ((32, 64, 64), "about 1.5 million parameters, which a laptop trains in an hour"),
        "blocks": ((2, 2, 2), "UNet2DModel's default"),
        "attention": ((False, False, False), "on a CPU its attention costs two thirds of the speed"),
        "heads": (8, "unused without attention"),
        "schedule": ("linear", "Ho et al. 2020, the handout's baseline"),
        "chain": (1000, "T of Ho et al. 2020; t uniform on {2..T}, the handout's (6)"),
        "predict": ("x0", "the handout's network guesses the image"),
        "weighting": ("uniform", "the handout's (6) is plain squared error"),
        "stratified": (False, "the handout draws t independently"),
        "lr": (1e-3, "higher is unstable for UNet2DModel's group norms"),
        "beta_2": (0.999, "AdamW's usual value"),
        "sampler": ("ddpm", "(8), corrected"),
    },
}
"""Each preset: field -> (value, reason)."""


def make_config(preset: str = "fast", **chosen: Any) -> Config:
    """The configuration of `preset` with the fields in `chosen` replaced.

    A budget in `chosen` replaces the preset's. Raises UserError, one sentence, for anything that does not fit."""
    if preset not in PRESETS:
        raise UserError(f"there is no preset called '{preset}'; there are: {', '.join(PRESETS)}")
    values = {name: value for name, (value, _) in PRESETS[preset].items()}
    if any(chosen.get(budget) is not None for budget in ("minutes", "epochs", "steps")):
        values.pop("minutes")
    return validated({"preset": preset, **values, **chosen})


def validated(values: dict[str, Any]) -> Config:
    """Config(**values), with pydantic's complaint as one sentence of a UserError."""
    try:
        return Config(**values)
    except ValidationError as error:
        raise UserError(complaint(error)) from None


def complaint(error: ValidationError) -> str:
    """Pydantic's first complaint as a sentence: which field, what is wrong, what was given."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    what = first["msg"].removeprefix("Value error, ")
    given = f" (given: {first['input']!r})" if first["type"] != "value_error" else ""
    return f"{where}: {what}{given}" if where else what


def reasons(config: Config) -> dict[str, str]:
    """Why each field has the value that it has: by the preset, by the user, or by the field's default."""
    found = {}
    preset = PRESETS.get(config.preset, {})
    for name, field in Config.model_fields.items():
        value = getattr(config, name)
        what, _, why = (field.description or "").partition(" - ")
        if name in preset and preset[name][0] == value:
            found[name] = preset[name][1]
        elif value == field.default:
            found[name] = why or what
        else:
            found[name] = "chosen for this run"
    return found


def differences(there: Config, asked: Config) -> list[str]:
    """`field: value there, value asked` for each field in which two configurations differ."""
    return [
        f"{name}: {getattr(there, name)} there, {getattr(asked, name)} asked"
        for name in Config.model_fields
        if getattr(there, name) != getattr(asked, name)
    ]
