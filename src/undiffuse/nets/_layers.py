"""What several networks share: a layer, the check of their options, and the reasons for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from undiffuse.base.errors import UserError

MOST_LEVELS, MOST_CHANNELS, MOST_BLOCKS, MOST_HEADS = 8, 4096, 100, 4096
"""The most levels of a network, and the most channels, blocks and heads of a level."""

REASONS = {
    "channels": "channels of each level - convolutions of 64 and more run near the CPU's peak; "
    "more channels would mean fewer steps in the same minutes",
    "blocks": "residual blocks of each level - most depth where a block is cheapest, at 7x7",
    "attention": "attention at each level - only at 7x7, where it costs little",
    "heads": "attention heads - of 64 channels each; more are slower; not tuned",
    "dropout": "dropout inside the blocks - a few epochs do not overfit",
}
"""What each option of a UNet is; after the dash, the reason for its default."""


class ConditionEmbedding(nn.Embedding):
    """A learned vector for each condition, a class or a cluster."""

    def forward(self, condition: Tensor) -> Tensor:
        """int64 (B,) -> (B, E)"""
        # A matrix product: the compiled gradient of a look-up is summed in the order in which the
        # threads finish, so that a run could not be repeated to the bit.
        return F.one_hot(condition, self.num_embeddings).to(self.weight.dtype) @ self.weight


def check_levels(
    channels: Sequence[int],
    blocks: Sequence[int],
    attention: Sequence[bool],
    heads: int,
    dropout: float,
) -> None:
    """Raises UserError unless the options of a network with levels fit together.

    channels, blocks, attention: one entry for each level."""
    for name, counts, most in (
        ("channels", channels, MOST_CHANNELS),
        ("blocks", blocks, MOST_BLOCKS),
    ):
        if not (0 < len(counts) <= MOST_LEVELS and all(1 <= count <= most for count in counts)):
            raise UserError(
                f"{name} must be one number from 1 to {most} for each of 1 to {MOST_LEVELS} levels"
            )
    if not len(channels) == len(blocks) == len(attention):
        raise UserError(
            f"channels, blocks and attention have one entry a level, so "
            f"{len(channels)}, {len(blocks)} and {len(attention)} entries do not fit together"
        )
    if not 1 <= heads <= MOST_HEADS:
        raise UserError(f"heads must be from 1 to {MOST_HEADS}, not {heads}")
    if not 0 <= dropout < 1:
        raise UserError(f"dropout must be at least 0 and below 1, not {dropout}")
