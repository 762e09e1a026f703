"""Times: which noise levels training samples.

To add a distribution of times: a function from uniform numbers u in [0, 1) to times in (0, 1], with
`@TIMES.add`. It is the inverse of the distribution function, applied to 1 - u.
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
    """t is uniform on (0, 1]."""
    return 1 - u


@TIMES.add
def logit_normal(u: Tensor, *, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """logit(t) is normal: Esser et al. 2024 (arXiv:2403.03206), section 3.1."""
    return (mean + std * torch.special.ndtri((1 - u).clamp(1e-12, 1 - 1e-12))).sigmoid()


def sample_times(
    distribution: Callable[[Tensor], Tensor],
    count: int,
    stream: np.random.Generator,
    *,
    stratified: bool,
    steps: int | None,
) -> Tensor:
    """Sample the times of a batch: float64 (count,) in (0, 1].

    stratified: take one uniform number in each of `count` equal parts of [0, 1), so that every
    batch covers all noise levels (Kingma et al. 2021, arXiv:2107.00630, appendix I.1). Otherwise
    the times are independent. steps: T of a chain; the times are then i/T with i in {2..T}. Step 1
    is left out, as in the handout. None for continuous time."""
    u = stream.random(count)
    if stratified:
        u = (stream.permutation(count) + u) / count
    t = distribution(torch.from_numpy(np.minimum(u, 1 - 2**-53)))
    return t if steps is None else ((t * (steps - 1)).ceil().clamp(min=1) + 1) / steps
