"""Hyperparameters that are decided from the data, where the configuration says "auto".

A rule is a function of the configuration and the training images. Its result is a value of the
field, which the run keeps, and a sentence that says why. To add one: a function
(config, images) -> (value, why) in `RULES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from undiffuse.data.spectrum import variances
from undiffuse.diffusion.schedule import SCHEDULES, time_of
from undiffuse.training.config import AUTO

if TYPE_CHECKING:
    from torch import Tensor

    from undiffuse.training.config import Config

Rule = Callable[["Config", "Tensor"], tuple[Any, str]]

EMPHASIS = 0.85
"""The power of the variance with which a principal component counts for the times."""


def times(config: Config, images: Tensor) -> tuple[str, str]:
    """Times whose log-SNRs are those at which the image is decided.

    At a log-SNR of l, noise hides a principal component of variance v where l < -log v, and
    leaves it where l > -log v. So the component is decided about there. The times are
    logit-normal, and their log-SNRs have the mean and the spread of -log v over the components.
    Each counts with v^EMPHASIS: with v it would count as for the squared error, with 1 as for the
    likelihood."""
    found = variances(images)
    if not len(found):
        return "logit-normal", "the images do not differ"
    share = found**EMPHASIS / (found**EMPHASIS).sum()
    levels = -found.log()
    mean = float(share @ levels)
    spread = max(1.0, float(share @ (levels - mean).square()) ** 0.5)
    ends = torch.tensor([mean - spread, mean + spread], dtype=torch.float64)
    noisy, clean = time_of(SCHEDULES[config.schedule], ends).clamp(1e-6, 1 - 1e-6).logit().tolist()
    spec = f"logit-normal:mean={(noisy + clean) / 2:.1f},std={(noisy - clean) / 2:.1f}"
    why = (
        f"log-SNRs of {mean:.1f} with a spread of {spread:.1f}, at which the principal components "
        "of the training images are decided"
    )
    return spec, why


RULES: dict[str, Rule] = {"times": times}
"""The fields that may be "auto", with their rules."""


def decided(config: Config, images: Tensor) -> tuple[Config, dict[str, str]]:
    """(the configuration with a value in place of each "auto"; why, by field).

    images: the training images, uint8 (N, C, H, W)."""
    found = {
        name: rule(config, images) for name, rule in RULES.items() if getattr(config, name) == AUTO
    }
    values = {name: value for name, (value, _) in found.items()}
    return config.model_copy(update=values), {name: why for name, (_, why) in found.items()}
