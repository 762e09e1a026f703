"""`categorical`: the network `unet` with a distribution over the 256 levels of each 8-bit value.

It is made for the likelihood.

Images have 8 bits: each value x_i of x_0 is one of 256 levels. Given all of x_t, Bayes' rule parts what x_t says of x_i itself, which is
known exactly, from what its surroundings say, which the network learns:

    p(x_i = v | x_t) ~ N(x_t,i; alpha v, sigma^2) p_theta(x_i = v | x_t),

and the guess is its mean. So where little noise is left, and most of the bits are spent, rounding to a grey level need not be learnt, nor
be possible in bfloat16: the factor that does it is computed in float32.

To see as sharply, the network is given, beside x_t, what each value says of itself: the mean of a learnt embedding e(v) of the levels under
p(v | x_t,i) ~ N(x_t,i; alpha v, sigma^2) p(v), with one learnt p(v) for all values.

Guesses as means over classes, and the mean of their embeddings as the network's input: Dieleman et al. 2022 (arXiv:2211.15089), section 3.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from undiffuse.base.pixels import to_float
from undiffuse.nets import NETWORKS
from undiffuse.nets.unet import UNet, zero

EMBEDDING = 16  # channels for each value of the image


PACE = 16.0  # of log p(v): one number a level, which must fall by ten or more, where an optimiser's step is of the learning rate's size


def waves(levels: Tensor) -> Tensor:
    """Cosines and sines of levels (V,) in [-1, 1], from half a wave over all of them to a quarter of one between neighbours: (V, EMBEDDING)."""
    phase = levels[:, None] * math.pi / 2 * 2 ** torch.arange(EMBEDDING // 2)
    return torch.cat([phase.cos(), phase.sin()], dim=1)


@NETWORKS.add
class Categorical(UNet):
    """`unet`, which see for the options. It goes with the prediction x0 only."""

    predicts = "x0"
    levels: Tensor

    def extra_channels(self, colours: int) -> int:
        return EMBEDDING * colours

    def output(self, channels: int, colours: int) -> nn.Module:
        self.register_buffer(
            "levels", to_float(torch.arange(256, dtype=torch.uint8)), persistent=False
        )
        self.embedding = nn.Parameter(waves(self.levels))
        self.log_marginal = nn.Parameter(torch.zeros(256))  # log p(v) / PACE, up to a constant
        return zero(nn.Linear(channels, 4 * colours * 256))

    def forward(self, x: Tensor, log_snr: Tensor, condition: Tensor | None = None) -> Tensor:
        patches = self.patches(x)
        with torch.autocast("cpu", enabled=False):
            own = patches.permute(0, 2, 3, 1)[
                ..., None
            ]  # (B, H / 2, W / 2, 4 C, 1), of variance alpha^2 + sigma^2 = 1
            alpha, sigma = (
                level.sigmoid().sqrt()[:, None, None, None, None] for level in (log_snr, -log_snr)
            )
            log_likelihood = -(((own - alpha * self.levels) / sigma) ** 2) / 2
            # Of what is given, the embedding is learnt, and the marginal by the guess below only.
            said = (log_likelihood + PACE * self.log_marginal.detach()).softmax(dim=-1)
        embedded = (
            (said @ self.embedding).flatten(3).permute(0, 3, 1, 2)
        )  # (B, 4 C EMBEDDING, H / 2, W / 2)
        features = self.features(torch.cat([patches, embedded], dim=1), log_snr, condition)
        log_prior = self.out(features.permute(0, 2, 3, 1)).view(*own.shape[:-1], 256).float()
        with torch.autocast("cpu", enabled=False):
            log_prior = log_prior + PACE * self.log_marginal
            x_0 = ((log_likelihood + log_prior).softmax(dim=-1) * self.levels).sum(dim=-1)
        return F.pixel_shuffle(x_0.permute(0, 3, 1, 2), 2)[..., : x.shape[-2], : x.shape[-1]]
