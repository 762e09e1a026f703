"""Wrappers of a denoise function: guidance, clipping, and a count of its calls.

A denoise function is (x_t (B, C, H, W), t ()) -> x_0_hat. A wrapper takes such functions and
returns another one.

To add a kind of guidance: write a function like `classifier_free`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Denoise: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def classifier_free(conditional: Denoise, unconditional: Denoise, scale: float) -> Denoise:
    """Classifier-free guidance: unconditional + scale (conditional - unconditional).

    Ho & Salimans 2022 (arXiv:2207.12598), (6), where the scale is 1 + w. It takes two network calls
    a step. A scale of 1 is no guidance and takes one."""
    if scale == 1:
        return conditional

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        x_0 = conditional(x_t, t)
        without = unconditional(x_t, t)
        return without + scale * (x_0 - without)

    return guided


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
