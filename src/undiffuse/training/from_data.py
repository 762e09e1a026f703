"""Hyperparameters that are decided from the data, where the configuration leaves them open.

A rule is a function of the configuration and of what is measured of the training images. Its result
is a value of the field, which the run keeps, and a sentence that says why. To add one: a function
(config, measured) -> (value, why) in `RULES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from undiffuse.data.spectrum import variances
from undiffuse.diffusion.schedule import SCHEDULES, time_of
from undiffuse.training.fields import BY_RULE

if TYPE_CHECKING:
    from torch import Tensor

    from undiffuse.training.config import Config

EMPHASIS = 0.85
"""The power of the variance with which a principal component counts."""

DIGITS = (-0.66, 1.88)
"""(mean, spread) of the log-SNRs that the rule gives MNIST's digits, whose times were tuned."""

MOST = {True: 1.5, False: 2.0}
"""The largest default guidance for digits, by whether the run is conditional."""

NARROWEST = 0.2
"""The smallest range of logit(t) that times are drawn from by the rule."""

LESS = 1.1
"""The share by which the limit of guidance falls for each unit of log-SNR, compared with digits."""

LIMITS = (1.0, 2.0)
"""The smallest and the largest limit. At 1 there is no guidance."""


@dataclass
class Measured:
    """What the rules use of the training images, uint8 (N, C, H, W); measured when it is used."""

    images: Tensor

    @cached_property
    def decided_at(self) -> tuple[float, float]:
        """(mean, spread) of the log-SNRs at which the principal components are decided.

        At a log-SNR of l, noise hides a component of variance v where l < -log v, and leaves it
        where l > -log v. So the component is decided about there. Each counts with v^EMPHASIS: with
        v it would count as for the squared error, with 1 as for the likelihood. Images that do not
        differ count as digits."""
        found = variances(self.images)
        if not len(found):
            return DIGITS
        share = found**EMPHASIS / (found**EMPHASIS).sum()
        levels = -found.log()
        mean = float(share @ levels)
        return mean, float(share @ (levels - mean).square()) ** 0.5


Rule = Callable[["Config", Measured], tuple[Any, str]]


def times(config: Config, measured: Measured) -> tuple[str, str]:
    """Times whose log-SNRs are those at which the image is decided.

    They are logit-normal, and their log-SNRs have the mean and the spread that `decided_at` gives.
    They are not noisier than those of digits, and not closer together. Where a few large
    components have most of the variance, such as the colour of the ground, they are learnt soon.
    What is missing then is decided at less noise."""
    mean, spread = measured.decided_at
    spread = max(DIGITS[1], spread)
    like_digits = mean <= DIGITS[0]
    if like_digits:
        mean, spread = DIGITS
    ends = torch.tensor([mean - spread, mean + spread], dtype=torch.float64)
    noisy, clean = time_of(SCHEDULES[config.schedule], ends).clamp(1e-6, 1 - 1e-6).logit().tolist()
    if noisy - clean < NARROWEST:
        return "uniform", "the schedule has none of the log-SNRs at which the images are decided"
    spec = f"logit-normal:mean={(noisy + clean) / 2:.1f},std={(noisy - clean) / 2:.1f}"
    if like_digits:
        return spec, (
            "fitted to MNIST; what varies in these images is decided at as much noise as there"
        )
    why = (
        f"log-SNRs of {mean:.1f} with a spread of {spread:.1f}, at which the principal components "
        "of the training images are decided"
    )
    return spec, why


def guidance_limit(config: Config, measured: Measured) -> tuple[float, str]:
    """The largest default guidance: MOST for digits, and less for images of fine detail.

    Guidance moves images towards what is typical of their condition, and so narrows what varies
    within it. Where images are decided at little noise, many fine components vary, and more is
    lost. Fitted on four data sets: none is best for textures (decided at a log-SNR of 0.3), 1.2 to
    1.5 for letters (-0.3), 1.5 for digits (-0.7), and 2 or more for symbols (-1.9)."""
    mean, _ = measured.decided_at
    usual = MOST[config.conditional]
    limit = 1 + (usual - 1) * (1 - LESS * (mean - DIGITS[0]))
    limit = round(min(max(limit, LIMITS[0]), LIMITS[1]), 1)
    return limit, (
        "fitted on four data sets: the finer what varies in the images, the less guidance; what "
        f"varies in these is decided at a mean log-SNR of {mean:.1f}; for MNIST that is "
        f"{DIGITS[0]:.1f}, and {usual:g} was best"
    )


COARSEST = 10
"""The most pixels a side at the lowest level, except for images of up to 40 pixels a side."""


def net(config: Config, measured: Measured) -> tuple[str, str]:
    """A UNet with so many levels that the lowest has at most COARSEST pixels a side.

    The first level works at half of the image's resolution, and each level below at half of the
    level above. Two levels do for small images. Larger ones get more levels, of fewer channels
    where there are many pixels: attention over 32 x 32 pixels would take most of the time."""
    side = max(measured.images.shape[-2:])
    levels = max(2, math.ceil(math.log2(side / COARSEST)))
    if levels == 2:
        return config.net, ""
    channels = "/".join(str(min(32 * 2**level, 128)) for level in range(levels))
    blocks, attention = "1/" * (levels - 1) + "3", "0/" * (levels - 1) + "1"
    return f"unet:channels={channels},blocks={blocks},attention={attention}", (
        f"images of {side} pixels a side are read at {levels} levels, the lowest of "
        f"{math.ceil(side / 2**levels)} pixels a side"
    )


RULES: dict[str, Rule] = {"net": net, "times": times, "guidance_limit": guidance_limit}
"""The fields that may be decided, with their rules. A rule may leave the value as it is."""


def decided(config: Config, images: Tensor) -> tuple[Config, dict[str, str]]:
    """(the configuration with a value for each field that it leaves open; why, by field).

    images: the training images, uint8 (N, C, H, W)."""
    measured = Measured(images)
    found = {
        name: rule(config, measured)
        for name, rule in RULES.items()
        if getattr(config, name) == BY_RULE[name]
    }
    changed = {n: (value, why) for n, (value, why) in found.items() if value != BY_RULE[n]}
    values = {name: value for name, (value, _) in changed.items()}
    return config.model_copy(update=values), {name: why for name, (_, why) in changed.items()}
