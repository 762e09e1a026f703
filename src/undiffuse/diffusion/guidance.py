"""Wrappers of a denoise function: guidance, clipping, and a count of its calls.

A denoise function is (x_t (B, C, H, W), t ()) -> x_0_hat. A wrapper takes such functions and
returns another one.

To add a kind of guidance: a function (conditional, unconditional, scale) -> denoise function, with
`@GUIDANCES.add`. A scale of 1 is no guidance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from undiffuse.base.lazy import lazy
from undiffuse.base.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor

    Denoise: TypeAlias = Callable[[Tensor, Tensor], Tensor]
else:
    torch = lazy("torch")

GUIDANCES = Table("guidance method")


@GUIDANCES.named("cfg")
def classifier_free(conditional: Denoise, unconditional: Denoise, scale: float) -> Denoise:
    """Classifier-free guidance: unconditional + scale (conditional - unconditional).

    Ho & Salimans 2022 (arXiv:2207.12598), (6), where the scale is 1 + w. It takes two network calls
    a step. With a weaker model in place of the unconditional prediction it is autoguidance: Karras
    et al. 2024 (arXiv:2406.02507), (4)."""

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        x_0 = conditional(x_t, t)
        without = unconditional(x_t, t)
        return without + scale * (x_0 - without)

    return guided


@GUIDANCES.named("cfg++")
def classifier_free_plus(conditional: Denoise, unconditional: Denoise, scale: float) -> Denoise:
    """CFG++: as `cfg`, but x_t is given the noise of the unconditional prediction again.

    Chung et al. 2024 (arXiv:2406.08070), algorithm 2. `Step.renoise` gives the sampler that noise.
    The scale is the paper's lambda, from 0 to 1; 1 is the conditional prediction."""
    return classifier_free(conditional, unconditional, scale)


@GUIDANCES.named("apg")
def adaptive_projected(
    conditional: Denoise,
    unconditional: Denoise,
    scale: float,
    *,
    eta: float = 0.0,
    most: float = 0.0,
) -> Denoise:
    """Adaptive projected guidance: only what is orthogonal to the conditional prediction.

    Sadat et al. 2024 (arXiv:2410.02416), algorithm 1, without its momentum. eta: the share of the
    parallel part, which makes images too bright. most: the largest norm of the difference of the
    two predictions of an image; 0 for no limit."""

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        x_0 = conditional(x_t, t)
        difference = x_0 - unconditional(x_t, t)
        axes = tuple(range(1, x_t.ndim))
        if most > 0:
            norm = difference.square().sum(dim=axes, keepdim=True).sqrt()
            difference = difference * (most / norm.clamp(min=1e-12)).clamp(max=1)
        size = x_0.square().sum(dim=axes, keepdim=True).clamp(min=1e-12)
        parallel = (difference * x_0).sum(dim=axes, keepdim=True) / size * x_0
        return x_0 + (scale - 1) * (difference - (1 - eta) * parallel)

    return guided


def once(denoise: Denoise) -> Denoise:
    """The denoise function, which is not computed again for the same x_t and t."""
    last: list[tuple[Tensor, Tensor, Tensor]] = []

    def remembered(x_t: Tensor, t: Tensor) -> Tensor:
        if not (last and last[0][0] is x_t and torch.equal(last[0][1], t)):
            last[:] = [(x_t, t, denoise(x_t, t))]
        return last[0][2]

    return remembered


def in_interval(inside: Denoise, outside: Denoise, contains: Callable[[Tensor], bool]) -> Denoise:
    """`inside` at the times t () that an interval contains, and `outside` at all others.

    Kynkäänniemi et al. 2024 (arXiv:2404.07724) guide at middle noise levels only. With much noise,
    guidance takes variety away; with little noise, it changes nothing."""
    return lambda x_t, t: (inside if contains(t) else outside)(x_t, t)


def clipped(denoise: Denoise) -> Denoise:
    """The denoise function with x_0_hat clipped to [-1, 1], the range of images."""
    return lambda x_t, t: denoise(x_t, t).clamp(-1, 1)


class Counted:
    """A denoise function that counts its calls in `calls`."""

    def __init__(self, denoise: Denoise) -> None:
        self.denoise = denoise
        self.calls = 0

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return self.denoise(x_t, t)
