"""What the network learns: the loss (6), its weighting over noise levels, and which noise levels are drawn.

    loss = w(log-SNR) |x_0_hat - x_0|^2,     averaged over an image's values

for every prediction. As x_0_hat is linear in the network's output F, F's own squared error carries w c_out^2:
with uniform weight that is the handout's (6) under every prediction, with `snr` it is plain eps-MSE, with
`snr-plus-1` plain v-MSE.

To add a weighting: a function log-SNR -> weight with `@WEIGHTINGS.add`. To add a distribution of times: a function
from uniform numbers u in [0, 1) to times in (0, 1], its inverse distribution function of 1 - u, with `@TIMES.add`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from undiffuse.base.lazy import lazy
from undiffuse.base.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import torch
    from torch import Tensor
else:
    np = lazy("numpy")
    torch = lazy("torch")

TIMES = Table("time distribution")


@TIMES.named("uniform")
def uniform_times(u: Tensor) -> Tensor:
    """t uniform on (0, 1]."""
    return 1 - u


@TIMES.add
def logit_normal(u: Tensor, *, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """logit(t) normal: Esser et al. 2024 (arXiv:2403.03206), section 3.1."""
    return (mean + std * torch.special.ndtri((1 - u).clamp(1e-12, 1 - 1e-12))).sigmoid()


def sample_times(
    distribution: Callable[[Tensor], Tensor],
    count: int,
    stream: np.random.Generator,
    *,
    stratified: bool,
    steps: int | None,
) -> Tensor:
    """Times (count,) for a batch, float64, in (0, 1]; i/steps for i in {2..steps} where a chain has `steps` steps.

    stratified: one uniform number in each of `count` equal parts, so that every batch covers all noise levels
    (Kingma et al. 2021, arXiv:2107.00630, appendix I.1); else independent. Step 1 is left out, as in the handout."""
    u = stream.random(count)
    if stratified:
        u = (stream.permutation(count) + u) / count
    t = distribution(torch.from_numpy(np.minimum(u, 1 - 2**-53)))
    return t if steps is None else ((t * (steps - 1)).ceil().clamp(min=1) + 1) / steps
