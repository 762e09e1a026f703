"""`fine`: the network `unet` with an eye for single grey levels, for the likelihood.

Bits per dimension are spent where little noise is left, on telling neighbouring grey levels apart: 2/255 in [-1, 1], less than bfloat16
can hold. So the first layer, in float32, also sees the sines and cosines of each value at wavelengths of 1, 2, 4, ... grey levels
(Kingma et al. 2021, arXiv:2107.00630, appendix C).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from undiffuse.nets import NETWORKS
from undiffuse.nets.unet import UNet

WAVELENGTHS = (1, 2, 4, 8, 16, 32)  # in grey levels


@NETWORKS.add
class Fine(UNet):
    """`unet`, which see for the parameters, with Fourier features of the values."""

    views = 1 + 2 * len(WAVELENGTHS)

    def views_of(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            turns = torch.cat([127.5 / length * x.float() for length in WAVELENGTHS], dim=1)
            return torch.cat([x.float(), (2 * math.pi * turns).sin(), (2 * math.pi * turns).cos()], dim=1)

    def first(self, patches: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().first(patches)
