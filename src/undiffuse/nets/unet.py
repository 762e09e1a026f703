"""`unet`: a small UNet for two CPU cores.

A UNet (Ronneberger et al. 2015) goes down to coarser levels, where each pixel stands for a large
part of the image, and up again. What each level found on the way down is added on the way up, so
fine detail is not lost. The image is cut into 2x2 patches (pixel-unshuffle), so most of the
arithmetic happens at a half and a quarter of its resolution. There a 3x3 convolution has enough
channels to run near the CPU's peak. Every level is a stack of residual blocks. By default only the
lowest level has global attention. It sees digits of 28x28 pixels as 7x7 = 49 tokens. The
activations are channels-last and the norm is over channels, so that each norm reads contiguous
memory.

A conditional network sees the prototype of its condition beside x_t: the mean of the training
images that have it. That is the best x_0_hat where all else is noise, so a short run need not spend
its first steps on learning it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from undiffuse.base.errors import UserError
from undiffuse.nets import NETWORKS
from undiffuse.nets._layers import REASONS, ConditionEmbedding, check_levels

FEATURES = 64
"""Fourier features of the log-SNR."""


def fourier_features(log_snr: Tensor) -> Tensor:
    """Cosines and sines of the log-SNR: (B,) -> (B, FEATURES).

    Their wavelengths are from 60, twice the range of the log-SNR, to 1."""
    low, count, where = -math.log10(60), FEATURES // 2, log_snr.device
    frequencies = 2 * math.pi * torch.logspace(low, 0, count, dtype=torch.float32, device=where)
    phase = log_snr.float()[:, None] * frequencies
    return torch.cat([phase.cos(), phase.sin()], dim=1)


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each pixel, with a gain and without a bias.

    It gives the values of each pixel mean 0 and variance 1 (Ba et al. 2016, arXiv:1607.06450)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # One kernel computes it. An RMS norm takes several, and made an uncompiled step a quarter
        # slower at the same loss.
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape and dtype; means and variances are computed in float32"""
        pixels = x.permute(0, 2, 3, 1)  # a view: channels-last memory is contiguous so
        return F.layer_norm(pixels, self.weight.shape, self.weight, eps=1e-6).permute(0, 3, 1, 2)


def zero(module: nn.Module) -> nn.Module:
    """The module with its parameters set to zero.

    A residual block whose last layer is zero starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class ResidualBlock(nn.Module):
    """Twice: norm, the activation SiLU, 3x3 convolution. The result is added to the input.

    So the block learns only what must change (He et al. 2016). It starts as the identity, because
    its last convolution starts at zero. The noise level and the condition come in as an embedding,
    a vector: it scales and shifts the second norm."""

    def __init__(self, channels: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm_1 = ChannelNorm(channels)
        self.conv_1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.condition = nn.Linear(embedding, 2 * channels)
        self.norm_2 = ChannelNorm(channels)
        self.dropout = nn.Dropout(dropout)
        self.conv_2 = zero(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (B, C, H, W), embedding (B, E) -> (B, C, H, W)"""
        h = self.conv_1(F.silu(self.norm_1(x)))
        scale, shift = self.condition(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.norm_2(h) * (1 + scale) + shift
        return x + self.conv_2(self.dropout(F.silu(h)))


class Attention(nn.Module):
    """Self-attention over all pixels (Vaswani et al. 2017), with learned positions.

    Each pixel asks a question (query) and is compared with all others (keys). It gets the mean of
    their answers (values), weighted by how well they match. So far parts of an image can agree with
    one another. It is written as two matrix products. With 49 tokens on a CPU, the backward pass of
    torch's fused attention is many times slower. Raises UserError unless `heads` divides
    `channels`."""

    def __init__(self, channels: int, heads: int, pixels: int) -> None:
        super().__init__()
        if channels % heads:
            raise UserError(
                f"network 'unet': a level with attention has {channels} channels, which {heads} "
                "heads do not divide; give other heads or channels"
            )
        self.heads = heads
        self.norm = ChannelNorm(channels)
        self.position = nn.Parameter(torch.randn(pixels, channels) * 0.02)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zero(nn.Linear(channels, channels))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (B, C, H, W), embedding (B, E), which is not used -> (B, C, H, W)"""
        b, c, h, w = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2) + self.position  # (B, HW, C)
        q, k, v = (
            self.qkv(tokens).view(b, h * w, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        )
        scores = q @ k.transpose(-2, -1) * (c // self.heads) ** -0.5
        weights = scores.softmax(dim=-1)  # (B, heads, HW, HW)
        mixed = weights.to(v.dtype) @ v
        mixed = self.out(mixed.transpose(1, 2).reshape(b, h * w, c))
        return x + mixed.transpose(1, 2).reshape(b, c, h, w)


class Stage(nn.ModuleList):
    """Blocks and attention layers one after the other, each of which sees the embedding."""

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """h (B, C, H, W), embedding (B, E) -> (B, C, H, W)"""
        for layer in self:
            h = layer(h, embedding)
        return h


@NETWORKS.add
class UNet(nn.Module):
    """The network. Images are padded to a multiple of 2^levels pixels a side.

    channels: of each level. The first level works at half the image's resolution, and each further
    level at half the resolution of the level above. blocks: residual blocks of each level, on the
    way down and again on the way up; the lowest level has them once. attention: whether attention
    follows each block of a level. heads: attention heads. dropout: inside the blocks.
    Raises UserError where these do not fit together."""

    reasons = REASONS
    check_options = staticmethod(check_levels)
    prototypes: Tensor

    def __init__(
        self,
        *,
        shape: tuple[int, int, int],
        conditions: int,
        channels: tuple[int, ...] = (64, 128),
        blocks: tuple[int, ...] = (1, 3),
        attention: tuple[bool, ...] = (False, True),
        heads: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.check_options(channels, blocks, attention, heads, dropout)
        colours, *size = shape
        self.multiple = 2 ** len(channels)
        height, width = (s + -s % self.multiple for s in size)
        embedding = 4 * channels[0]
        self.embed = nn.Sequential(
            nn.Linear(FEATURES, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.condition = ConditionEmbedding(conditions + 1, embedding) if conditions else None
        self.register_buffer(
            "prototypes", torch.zeros(conditions + 1, *shape) if conditions else None
        )

        def stage(level: int, count: int) -> Stage:
            pixels = (height * width) >> 2 * (level + 1)
            layers = Stage()
            for _ in range(count):
                layers.append(ResidualBlock(channels[level], embedding, dropout))
                if attention[level]:
                    layers.append(Attention(channels[level], heads, pixels))
            return layers

        upper = range(len(channels) - 1)
        seen = colours * (2 if conditions else 1) + self.extra_channels(colours)
        self.stem = nn.Conv2d(4 * seen, channels[0], 3, padding=1)
        self.down = nn.ModuleList(stage(i, blocks[i]) for i in upper)
        self.downsample = nn.ModuleList(
            nn.Conv2d(channels[i], channels[i + 1], 2, stride=2) for i in upper
        )
        self.trunk = stage(len(upper), blocks[-1])
        self.upsample = nn.ModuleList(nn.Conv2d(channels[i + 1], 4 * channels[i], 1) for i in upper)
        self.up = nn.ModuleList(stage(i, blocks[i]) for i in upper)
        self.norm = ChannelNorm(channels[0])
        self.out = self.output(channels[0], colours)
        # torch's annotations lack this call.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def extra_channels(self, colours: int) -> int:
        """Channels that a subclass gives the network beside those of the image.

        They are counted at the image's resolution."""
        return 0

    def output(self, channels: int, colours: int) -> nn.Module:
        """The last layer, which starts at zero."""
        return zero(nn.Conv2d(channels, 4 * colours, 3, padding=1))

    def patches(self, x: Tensor) -> Tensor:
        """The padded image as 2x2 patches: (B, 4 C, H / 2, W / 2)."""
        height, width = x.shape[-2:]
        return F.pixel_unshuffle(
            F.pad(x, (0, -width % self.multiple, 0, -height % self.multiple)), 2
        )

    def features(self, patches: Tensor, log_snr: Tensor, condition: Tensor | None) -> Tensor:
        """What the last layer sees: (B, channels[0], H / 2, W / 2).

        patches: of x_t, with the extra channels (B, 4 (C + extra), H / 2, W / 2)."""
        embedding = self.embed(fourier_features(log_snr))
        if self.condition is not None:
            embedding = embedding + self.condition(condition)
            patches = torch.cat([patches, self.patches(self.prototypes[condition])], dim=1)
        embedding = F.silu(embedding)  # (B, E)

        h = self.stem(patches.contiguous(memory_format=torch.channels_last))
        skips = []
        for blocks, downsample in zip(self.down, self.downsample, strict=True):
            h = blocks(h, embedding)
            skips.append(h)
            h = downsample(h)
        h = self.trunk(h, embedding)
        for blocks, upsample in zip(reversed(self.up), reversed(self.upsample), strict=True):
            h = blocks(F.pixel_shuffle(upsample(h), 2) + skips.pop(), embedding)
        return F.silu(self.norm(h))

    def forward(self, x: Tensor, log_snr: Tensor, condition: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), log_snr (B,), condition (B,) or None -> (B, C, H, W)"""
        out = F.pixel_shuffle(
            self.out(self.features(self.patches(x), log_snr, condition)).float(), 2
        )
        return out[..., : x.shape[-2], : x.shape[-1]]
