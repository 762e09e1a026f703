"""`dit`: a small transformer on patches, for two CPU cores.

The image is cut into patches, 7x7 = 49 of 4x4 pixels where it is 28x28, and each becomes a token.
Every block lets the tokens exchange what they know by attention, and then transforms each token by
itself: Peebles & Xie 2023 (arXiv:2212.09748). The noise level and the condition shift and scale
what a block reads, and gate what it adds. All blocks share the layer that computes these numbers,
and each block adds a table of its own to them: Chen et al. 2023 (arXiv:2310.00426), section 2.3.

A transformer has to learn that neighbours belong together. A convolution knows it from the start,
and a run of minutes is too short to learn it. So there are convolutions in three places:
- Patches are read from, and written to, features at half the image's resolution, which 3x3
  convolutions make. These features also skip the transformer, as in Bao et al. 2023
  (arXiv:2209.12152), so fine detail does not pass through the tokens.
- Each attention head also mixes the values of the 3x3 tokens around a token, with fixed weights:
  Dong et al. 2022 (arXiv:2107.00652), section 3.2, where every channel has weights of its own.

Where the network knows conditions, it sees the condition's prototype beside x_t: the mean training
image, which is the best prediction where all else is noise.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from undiffuse.base.errors import UserError
from undiffuse.nets import NETWORKS
from undiffuse.nets._layers import ConditionEmbedding
from undiffuse.nets.unet import FEATURES, ResidualBlock, fourier_features, zero

MOST = 4096
"""The largest of each count."""


def rms_norm(tokens: Tensor) -> Tensor:
    """Tokens (B, N, C), each scaled to a root mean square of 1."""
    exact = tokens.float()
    return (exact * torch.rsqrt(exact.square().mean(dim=-1, keepdim=True) + 1e-6)).to(tokens.dtype)


class Attention(nn.Module):
    """Self-attention between all tokens, and a 3x3 convolution of each head's values beside it.

    Written as two matrix products: the fused kernel's backward pass is slow on a CPU."""

    def __init__(self, width: int, heads: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.heads, self.grid = heads, grid
        self.qkv = nn.Linear(width, 3 * width)
        self.near = nn.Conv2d(width, width, 3, padding=1, groups=heads)
        self.out = zero(nn.Linear(width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        b, n, c = tokens.shape
        queries, keys, values = self.qkv(tokens).chunk(3, dim=-1)  # (B, N, C) each
        q, k, v = (z.view(b, n, self.heads, -1).transpose(1, 2) for z in (queries, keys, values))
        weights = (q @ k.transpose(-2, -1) * (c // self.heads) ** -0.5).softmax(dim=-1)
        mixed = (weights.to(v.dtype) @ v).transpose(1, 2).reshape(b, n, c)
        near = self.near(values.transpose(1, 2).view(b, c, *self.grid))
        return self.out(mixed + near.flatten(2).transpose(1, 2))


class Block(nn.Module):
    """Attention, then two layers for each token by itself; it starts as the identity.

    The last layer of each part starts at zero, and its gate at 1. With the gates at zero, as in
    the original, all layers inside would have to wait for the gates before they learn."""

    def __init__(
        self, width: int, heads: int, hidden: int, dropout: float, grid: tuple[int, int]
    ) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.zeros(6 * width))
        self.attention = Attention(width, heads, grid)
        self.up = nn.Linear(width, hidden)
        self.down = zero(nn.Linear(hidden, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """x: tokens (B, N, C). modulation: what the condition says to all blocks, (B, 6 C)."""
        numbers = (modulation + self.modulation)[:, None].chunk(6, dim=-1)  # (B, 1, C) each
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = numbers
        h = self.attention(rms_norm(x) * (1 + scale_1) + shift_1)
        x = x + (1 + gate_1) * self.dropout(h)
        h = self.up(rms_norm(x) * (1 + scale_2) + shift_2)
        # Squared ReLU: as good as GELU here, and cheaper. So et al. 2021 (arXiv:2109.08668).
        h = self.down(self.dropout(F.relu(h).square()))
        return x + (1 + gate_2) * h


REASONS = {
    "depth": "blocks of attention - three and the convolutions cost as much as `unet`",
    "width": "numbers in a token - not tuned",
    "heads": "heads of each attention - fewer are faster",
    "patch": "side of a patch in pixels - 7x7 tokens of a digit",
    "mlp": "widening of a token inside a block - 3 was worse at 200 steps",
    "stem": "channels of the convolutions - they run near the CPU's peak",
    "dropout": "dropout inside the blocks - a few epochs do not overfit",
}
"""What the options are, and after the dash the reason for the default."""


def check_sizes(
    depth: int, width: int, heads: int, patch: int, mlp: float, stem: int, dropout: float
) -> None:
    """Raises UserError for options that no network can have."""
    counts = {"depth": depth, "width": width, "heads": heads, "patch": patch, "stem": stem}
    for name, count in counts.items():
        if not 1 <= count <= MOST:
            raise UserError(f"{name} must be from 1 to {MOST}, not {count}")
    if width % heads:
        raise UserError(f"heads must divide width, and {heads} does not divide {width}")
    if not 0 < mlp <= 64:
        raise UserError(f"mlp must be above 0 and at most 64, not {mlp:g}")
    if not 0 <= dropout < 1:
        raise UserError(f"dropout must be at least 0 and below 1, not {dropout}")


@NETWORKS.add
class Dit(nn.Module):
    """depth: blocks of attention. width: numbers in a token. heads: of each attention.
    patch: an image's side is cut into patches of this many pixels; it is padded to a multiple.
    mlp: a token is widened by this factor inside a block. stem: channels of the convolutions.
    dropout: inside the blocks. Raises UserError where these do not fit together."""

    reasons = REASONS
    check_options = staticmethod(check_sizes)
    prototypes: Tensor

    def __init__(
        self,
        *,
        shape: tuple[int, int, int],
        conditions: int,
        depth: int = 3,
        width: int = 192,
        heads: int = 2,
        patch: int = 4,
        mlp: float = 4.0,
        stem: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.check_options(depth, width, heads, patch, mlp, stem, dropout)
        colours, *size = shape
        self.patch = patch
        self.fold = 2 if patch % 2 == 0 else 1  # convolutions see 2x2 pixels as one if they can
        cell = patch // self.fold  # the side of a token, in positions of the convolutions
        grid = (-(-size[0] // patch), -(-size[1] // patch))
        pixels = colours * self.fold**2

        self.embed = nn.Sequential(nn.Linear(FEATURES, width), nn.SiLU(), nn.Linear(width, width))
        self.condition = ConditionEmbedding(conditions + 1, width) if conditions else None
        self.register_buffer(
            "prototypes", torch.zeros(conditions + 1, *shape) if conditions else None
        )
        self.modulation = zero(nn.Linear(width, 6 * width))

        self.stem = nn.Conv2d((2 if conditions else 1) * pixels, stem, 3, padding=1)
        self.before = ResidualBlock(stem, width, dropout)
        self.into_tokens = nn.Conv2d(stem, width, cell, stride=cell)
        self.position = nn.Parameter(torch.randn(grid[0] * grid[1], width) * 0.02)
        hidden = round(mlp * width)
        self.blocks = nn.ModuleList(
            Block(width, heads, hidden, dropout, grid) for _ in range(depth)
        )
        self.from_tokens = nn.Conv2d(width, stem * cell**2, 1)
        self.after = ResidualBlock(stem, width, dropout)
        self.out = zero(nn.Conv2d(stem, pixels, 3, padding=1))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as in unet

    def forward(self, x: Tensor, log_snr: Tensor, condition: Tensor | None = None) -> Tensor:
        height, width = x.shape[-2:]
        embedding = self.embed(fourier_features(log_snr))
        if self.condition is not None:
            embedding = embedding + self.condition(condition)
            x = torch.cat([x, self.prototypes[condition]], dim=1)
        embedding = F.silu(embedding)  # (B, width)

        x = F.pad(x, (0, -width % self.patch, 0, -height % self.patch))
        x = F.pixel_unshuffle(x, self.fold).contiguous(memory_format=torch.channels_last)
        features = self.before(self.stem(x), embedding)
        features = features + self.transformed(features, embedding)
        out = self.out(self.after(features, embedding))
        return F.pixel_shuffle(out.float(), self.fold)[..., :height, :width]

    def transformed(self, features: Tensor, embedding: Tensor) -> Tensor:
        """What the transformer makes of the features: of their shape, (B, stem, H, W)."""
        patches = self.into_tokens(features)
        tokens = patches.flatten(2).transpose(1, 2) + self.position  # (B, N, width)
        modulation = self.modulation(embedding)
        for block in self.blocks:
            tokens = block(tokens, modulation)
        patches = rms_norm(tokens).transpose(1, 2).view_as(patches)
        return F.pixel_shuffle(self.from_tokens(patches), features.shape[-1] // patches.shape[-1])
