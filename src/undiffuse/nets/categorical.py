"""`categorical`: the network `unet` with a distribution over the 256 levels of each 8-bit value.

It is made for a good likelihood.

Each value x_i of an image x_0 is one of 256 levels v. By Bayes' rule, its distribution given the
noisy image x_t has two factors (~ leaves out what does not depend on v):

    p(x_i = v | x_t) ~ N(x_t,i; alpha v, sigma^2) p_theta(x_i = v | x_t),

The first factor is what the noisy value x_t,i says of x_i. It is known exactly. The second factor
is what the values around it say of x_i. The network learns it. x_0_hat is the mean of this
distribution.

Most bits of the likelihood are spent where little noise is left. There x_0_hat must be rounded to a
level. The first factor does that, and it is computed in float32. So the network need not learn to
round, which would be impossible in bfloat16.

The network's input needs the same precision. Beside x_t it sees the mean of a learnt embedding e(v)
of the levels, under what each noisy value says of itself:

    p(v | x_t,i) ~ N(x_t,i; alpha v, sigma^2) p(v)

with one learnt p(v) for all values.

Dieleman et al. 2022 (arXiv:2211.15089), section 3, describe both: x_0_hat as a mean over classes,
and the mean of their embeddings as the network's input.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from undiffuse.base.pixels import to_float
from undiffuse.nets import NETWORKS
from undiffuse.nets.unet import UNet, zero

EMBEDDING = 16
"""Channels of the embedding e(v)."""

PACE = 16.0
"""log p(v) is this factor times a parameter, so that it learns faster.

log p(v) of a rare level must fall by 10 or more. An optimiser moves a parameter by about the
learning rate in each step."""


def waves(levels: Tensor) -> Tensor:
    """Cosines and sines of levels (V,) in [-1, 1]: (V, EMBEDDING).

    The lowest frequency has half a wave over all 256 levels. The highest has a quarter of a wave
    between neighbouring levels."""
    phase = levels[:, None] * math.pi / 2 * 2 ** torch.arange(EMBEDDING // 2)
    return torch.cat([phase.cos(), phase.sin()], dim=1)


@NETWORKS.add
class Categorical(UNet):
    """The network. Its options are those of `unet`. It is made for the prediction x0 only."""

    predicts = "x0"
    worth_compiling = True
    levels: Tensor

    def extra_channels(self, colours: int) -> int:
        """Channels of the mean embeddings, which the network sees beside x_t."""
        return EMBEDDING * colours

    def output(self, channels: int, colours: int) -> nn.Module:
        """The last layer, which starts at zero: 256 numbers for each value of a 2x2 patch.

        It also makes the parameters of e(v) and p(v)."""
        self.register_buffer(
            "levels", to_float(torch.arange(256, dtype=torch.uint8)), persistent=False
        )
        self.embedding = nn.Parameter(waves(self.levels))
        self.log_marginal = nn.Parameter(torch.zeros(256))  # log p(v) / PACE, up to a constant
        return zero(nn.Linear(channels, 4 * colours * 256))

    def forward(self, x: Tensor, log_snr: Tensor, condition: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), log_snr (B,), condition (B,) or None -> x_0_hat (B, C, H, W)"""
        patches = self.patches(x)
        with torch.autocast("cpu", enabled=False):
            # (B, H / 2, W / 2, 4 C, 1), where alpha^2 + sigma^2 = 1, as c_in makes it.
            own = patches.permute(0, 2, 3, 1)[..., None]
            alpha, sigma = (
                level.sigmoid().sqrt()[:, None, None, None, None] for level in (log_snr, -log_snr)
            )
            log_likelihood = -(((own - alpha * self.levels) / sigma) ** 2) / 2
            # p(v) learns from x_0_hat below, and not from here: here only e(v) learns.
            posterior = (log_likelihood + PACE * self.log_marginal.detach()).softmax(dim=-1)
        # (B, 4 C EMBEDDING, H / 2, W / 2)
        embedded = (posterior @ self.embedding).flatten(3).permute(0, 3, 1, 2)
        features = self.features(torch.cat([patches, embedded], dim=1), log_snr, condition)
        log_prior = self.out(features.permute(0, 2, 3, 1)).view(*own.shape[:-1], 256).float()
        with torch.autocast("cpu", enabled=False):
            log_prior = log_prior + PACE * self.log_marginal
            x_0 = ((log_likelihood + log_prior).softmax(dim=-1) * self.levels).sum(dim=-1)
        return F.pixel_shuffle(x_0.permute(0, 3, 1, 2), 2)[..., : x.shape[-2], : x.shape[-1]]
