"""The schema of metrics.json, the file of an evaluation's results.

The content is checked when it is written and when it is read.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from undiffuse.base.schema import Count, Number, Share, Strict
from undiffuse.measuring.quality import METRICS

FORMAT = 3


class Value(Strict):
    """A value with its 95% interval."""

    value: Number
    low: Number
    high: Number


class Figure(BaseModel):
    """A metric's value with its 95% interval, and the value of real images: control or floor."""

    model_config = ConfigDict(extra="allow")

    value: Number
    low: Number
    high: Number
    n: Count
    control: Number | None = None
    control_n: Count | None = None
    floor: Number | None = None
    ratio: Number | None = None


class Reference(Strict):
    """The real images: the data set's name, the number of images of each part, and the control."""

    name: str
    training: Count
    test: Count
    seen: Count
    unseen: Count
    control: str


class Sampled(Strict):
    """How the images were sampled. network_calls: for each image. seconds: for all images."""

    sampler: str
    steps: int
    grid: str
    guidance: Number
    guidance_interval: tuple[Number, Number]
    guidance_method: str = "cfg"
    clip: bool
    seed: int
    precision: str
    n: Count
    network_calls: int
    seconds: Number


class Unsure(Strict):
    """An image that the classifier is unsure of. taken_for: its most probable class."""

    image: Count
    confidence: Share
    taken_for: str


class CountedValue(Value):
    """A value of n images with its 95% interval."""

    n: Count


class Continuous(Strict):
    """The bound for infinitely many steps, in bits per dimension."""

    test: Number
    low: Number
    high: Number
    n: Count
    diffusion: Value


class Ode(Strict):
    """The likelihood by the probability-flow ODE, in bits per dimension."""

    test: Number
    low: Number
    high: Number
    n: Count
    steps: int
    log_snr: Number
    assumes: str
    change_from_half_the_steps: Number


class Bits(Strict):
    """Bits per dimension: the bound of the chain, its terms, and the likelihood by the ODE."""

    test: Number
    low: Number
    high: Number
    training: CountedValue
    gap: Value
    n: Count
    chain: int
    log_snr: tuple[Number, Number]
    prior: Value
    diffusion: Value
    reconstruction: Value
    network_calls: int
    given_classes: bool
    assumes: str
    interval_of: str
    seed: int
    undiffuse: str
    continuous: Continuous
    levels: list[tuple[Number, Number, Number]]
    ode: Ode | None = None


class Pair(Strict):
    """A value and its control; None where there are too few images."""

    value: Number | None
    control: Number | None


class Nearness(Strict):
    """C_T, and the share of images nearer to the training images than 99% of real images."""

    c_t: Pair
    nearer: Figure


class Quantiles(Strict):
    """The values at some quantiles, of generated images and of the control."""

    quantiles: list[Number]
    value: list[Number]
    control: list[Number]


class Audit(Strict):
    """The audit of one half of the control against the other half."""

    alarm: bool
    p_value: Share
    n: Count


class Copy(Strict):
    """A likely copy: the numbers of the image and of its nearest training image.

    d1, d2: the distances to the nearest and second-nearest training image, in 8-bit values."""

    image: Count
    training: Count
    d1: Number
    d2: Number


class Novelty(Strict):
    """The audit for copies of training images."""

    alarm: bool
    p_value: Share
    share: Share
    share_low: Share
    share_high: Share
    expected: Share
    threshold: Number
    detectable: Share
    n: Count
    control: Audit
    ratio: Quantiles
    distance: Quantiles
    pixels: Nearness
    features: Nearness | None = None
    closest: list[Copy]


class Results(Strict):
    """The content of metrics.json without the figures. Each figure has its metric's name."""

    format: Literal[3]
    undiffuse: str
    of: dict[str, Any]
    seed: int
    features: dict[str, str] | None
    reference: Reference
    machine: dict[str, Any]
    warnings: list[str]
    missing: dict[str, str]
    seconds: dict[str, Number] = Field(default_factory=dict)
    sampling: Sampled | None = None
    least_sure: list[Unsure] = Field(default_factory=list)
    bits_per_dim: Bits | None = None
    novelty: Novelty | None = None


def check_results(content: Any) -> dict[str, Any]:
    """The content of a metrics.json, checked.

    Raises ValueError; its first line names the place."""
    if not isinstance(content, dict):
        raise ValueError("it holds no results")
    Results.model_validate({k: v for k, v in content.items() if k not in METRICS})
    for name in filter(METRICS.__contains__, content):
        Figure.model_validate(content[name])
    return content
