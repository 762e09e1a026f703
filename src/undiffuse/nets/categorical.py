"""`categorical`: the network `unet` with a distribution over the 256 grey levels of each value, for the likelihood.

Images have 8 bits: each value x_i of x_0 is one of 256 levels. Given all of x_t, Bayes' rule parts what x_t says of x_i itself, which is
known exactly, from what its surroundings say, which the network learns:

    p(x_i = v | x_t) ~ N(x_t,i; alpha v, sigma^2) p_theta(x_i = v | x_t),

and the guess is its mean. So where little noise is left, and most of the bits are spent, rounding to a grey level need not be learnt, nor
be possible in bfloat16: the factor that does it is computed in float32. Guesses as means over classes: Dieleman et al. 2022
(arXiv:2211.15089), section 3.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from undiffuse.data import to_float
from undiffuse.nets import NETWORKS
from undiffuse.nets.unet import UNet, zero


@NETWORKS.add
class Categorical(UNet):
    """`unet`, which see for the parameters; it guesses the image itself, so it goes with the prediction x0 only."""

    predicts = "x0"
    levels: Tensor

    def __init__(self, *, shape: tuple[int, int, int], channels: tuple[int, ...], **options: Any) -> None:
        super().__init__(shape=shape, channels=channels, **options)
        self.out = zero(nn.Linear(channels[0], 4 * shape[0] * 256))
        self.register_buffer("levels", to_float(torch.arange(256, dtype=torch.uint8)), persistent=False)

    def forward(self, x: Tensor, log_snr: Tensor, label: Tensor | None = None) -> Tensor:
        features = self.features(x, log_snr, label)
        with torch.autocast("cpu", enabled=False):
            own = self.patches(x).permute(0, 2, 3, 1)[
                ..., None
            ]  # (B, H / 2, W / 2, 4 C, 1), of variance alpha^2 + sigma^2 = 1
            alpha, sigma = (level.sigmoid().sqrt()[:, None, None, None, None] for level in (log_snr, -log_snr))
            log_likelihood = -(((own - alpha * self.levels) / sigma) ** 2) / 2
        logits = self.out(features.permute(0, 2, 3, 1))
        log_prior = logits.view(*own.shape[:-1], 256).float()
        x_0 = ((log_likelihood + log_prior).softmax(dim=-1) * self.levels).sum(dim=-1)
        return F.pixel_shuffle(x_0.permute(0, 3, 1, 2), 2)[..., : x.shape[-2], : x.shape[-1]]
