"""Layers that more than one network uses."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class LabelEmbedding(nn.Embedding):
    """An embedding as a matrix product: the gradient of the usual look-up is summed, once compiled, in whatever order the
    threads come, and a run could not be repeated to the bit."""

    def forward(self, label: Tensor) -> Tensor:
        return F.one_hot(label, self.num_embeddings).to(self.weight.dtype) @ self.weight
