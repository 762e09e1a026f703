"""A model without its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import ConfigDict, Field

from undiffuse.base.schema import Side
from undiffuse.diffusion.conditioning import Conditioning
from undiffuse.diffusion.sampling import Sampling
from undiffuse.nets import build_network

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Description:
    """A model without its weights.

    net, schedule, predict: specs such as "unet:heads=4", "cosine" and "v". shape: (C, H, W) of an
    image. sampling: the default options of sampling. chain: T of the chain that the model was
    trained on, None for continuous time. step: the number of training steps."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    net: str
    schedule: str
    predict: str
    shape: tuple[Side, Side, Side]
    conditioning: Conditioning = Conditioning()
    sampling: Sampling = Sampling()
    chain: Annotated[int, Field(ge=2)] | None = None
    step: Annotated[int, Field(ge=0)] = 0

    def build(self, *, seed: int = 0, device: str = "cpu") -> nn.Module:
        """The network with random weights. On the device "meta" it takes no memory.

        Raises UserError where the network and the prediction do not fit."""
        count, predict = self.conditioning.count, self.predict
        return build_network(self.net, self.shape, count, predict=predict, seed=seed, device=device)
