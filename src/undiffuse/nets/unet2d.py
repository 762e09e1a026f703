"""`unet2d`: UNet2DModel of the diffusers library, the network that the handout suggests.

It sees x_t / sqrt(alpha^2 + sigma^2) and a step of the linear 1000-step schedule, counted from 0.
It is the step that has the same SNR, whatever the schedule in use. So the weights work in the
pipelines of diffusers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from undiffuse.base.errors import UserError
from undiffuse.diffusion.schedule import linear_table
from undiffuse.nets import NETWORKS
from undiffuse.nets._layers import REASONS, ConditionEmbedding, check_levels

try:
    from diffusers import UNet2DModel
    from diffusers.models.upsampling import Upsample2D
except ImportError as error:
    raise UserError(
        "network 'unet2d' needs the diffusers library; "
        "install it with: pip install 'undiffuse[diffusers]'"
    ) from error


def linear_step(log_snr: Tensor, table: Tensor) -> Tensor:
    """The step of Ho et al.'s linear schedule, counted from 0, that has this log-SNR; any shape.

    Between two steps it is a fraction. Step k is time (k + 1)/1000, so times below 1/1000 give
    numbers in (-1, 0). table: log alpha_bar_i for i = 0..1000."""
    log_alpha_bar = F.logsigmoid(log_snr.double())
    right = torch.searchsorted(-table, -log_alpha_bar).clamp(1, len(table) - 1)
    fraction = (table[right - 1] - log_alpha_bar) / (table[right - 1] - table[right])
    return (right - 1 + fraction.clamp(0, 1) - 1).to(log_snr.dtype)


UNET2D_REASONS = {
    **REASONS,
    "channels": "channels of each level - few at 28x28, where UNet2DModel spends most of its time",
    "blocks": "blocks of each level - so that there are more steps in the time",
    "attention": "attention at each level - on a CPU it costs two thirds of the speed",
    "heads": "attention heads of the lowest level - unused without attention",
}
"""What each option is; after the dash, the reason for its default."""


@NETWORKS.add
class UNet2D(nn.Module):
    """The network. Images are padded to a multiple of 2^(levels - 1) pixels a side.

    channels: UNet2DModel's block_out_channels. blocks: its layers_per_block, the same at every
    level. attention: which levels have attention. heads: attention heads of the lowest level. A
    head has as many channels at every level, so the other levels have fewer heads. dropout: inside
    the blocks. Raises UserError where these do not fit together."""

    reasons = UNET2D_REASONS
    check_options = staticmethod(check_levels)

    def __init__(
        self,
        *,
        shape: tuple[int, int, int],
        conditions: int,
        channels: tuple[int, ...] = (32, 64, 128),
        blocks: tuple[int, ...] = (1, 1, 1),
        attention: tuple[bool, ...] = (False, False, False),
        heads: int = 8,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.check_options(channels, blocks, attention, heads, dropout)
        if len(set(blocks)) != 1:
            raise UserError(
                "network 'unet2d' has the same number of blocks at every level, so blocks "
                f"{'/'.join(map(str, blocks))} do not fit; write for example blocks=2/2"
            )
        head = max(channels[-1] // heads, 1)  # the channels of a head
        if too_narrow := [
            c for c, attends in zip(channels, attention, strict=True) if attends and c < head
        ]:
            raise UserError(
                f"network 'unet2d': with heads={heads} a head has {head} channels, and a level "
                f"with attention has only {too_narrow[0]}; give "
                f"heads={-(-channels[-1] // min(too_narrow))} or more"
            )
        # Fewer groups than UNet2DModel's 32: with one channel in a group, the norm would remove
        # what the noise level adds to it.
        groups = next(g for g in (8, 4, 2, 1) if all(c % g == 0 for c in channels))
        self.multiple = 2 ** (len(channels) - 1)
        self.table: Tensor
        self.register_buffer("table", linear_table(1e-4, 0.02), persistent=False)
        _, height, width = shape
        self.model = UNet2DModel(
            sample_size=(padded(height, self.multiple), padded(width, self.multiple)),
            in_channels=shape[0],
            out_channels=shape[0],
            layers_per_block=blocks[0],
            block_out_channels=tuple(channels),
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
            up_block_types=tuple(
                "AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)
            ),
            add_attention=any(attention),
            attention_head_dim=head,
            norm_num_groups=groups,
            dropout=dropout,
            num_class_embeds=conditions + 1 if conditions else None,
        )
        upsample_by_views(self.model)
        if conditions:
            self.model.class_embedding = ConditionEmbedding(conditions + 1, 4 * channels[0])

    def forward(self, x: Tensor, log_snr: Tensor, condition: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), log_snr (B,), condition (B,) or None -> (B, C, H, W)"""
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % self.multiple, 0, -height % self.multiple))
        out: Tensor = self.model(x, linear_step(log_snr, self.table), class_labels=condition).sample
        return out[..., :height, :width].float()


def upsample_by_views(model: UNet2DModel) -> None:
    """Let the model repeat pixels by a view, in place of F.interpolate, which Upsample2D calls.

    The result is the same. But torch 2.13 compiles the backward pass of F.interpolate wrongly for
    CPUs: the layers before it get no gradient."""
    for module in model.modules():
        if isinstance(module, Upsample2D):
            module.interpolate = False
            module.register_forward_pre_hook(doubled)


def doubled(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Images (B, C, H, W), the first input, with each pixel doubled in both directions."""
    x, *others = inputs
    b, c, h, w = x.shape
    return (x[:, :, :, None, :, None].expand(b, c, h, 2, w, 2).reshape(b, c, 2 * h, 2 * w), *others)


def padded(size: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `size`."""
    return size + -size % multiple
