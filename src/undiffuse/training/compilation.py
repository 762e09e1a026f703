"""Compiles the loss with torch.compile and checks the result.

Compilers can be wrong without an error. torch 2.13 drops the gradient of all layers before an
upsampling. Therefore compiled gradients are compared with plain ones before the first step.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

    from undiffuse.training.step import BatchLoss

MISCOMPILED = 0.3
"""The relative difference of a weight's gradient that counts as wrong. bfloat16 makes 0.03."""


def compiled_loss(plain: BatchLoss, network: nn.Module, batch: Any) -> tuple[BatchLoss, str | None]:
    """(the compiled loss; None), or (the plain loss; the fault of the compiled one).

    batch: a batch to compare the two with."""
    quick = torch.compile(plain, dynamic=False)
    fault = fault_of(quick, plain, network, batch, gradients=not has_dropout(network))
    return (quick, None) if fault is None else (plain, fault)


def has_dropout(network: nn.Module) -> bool:
    """Whether the network has dropout, so that two calls differ."""
    return any(isinstance(module, nn.Dropout) and module.p > 0 for module in network.modules())


@contextmanager
def without_warning() -> Iterator[None]:
    """A context, and a decorator, without a warning that diffusers causes.

    It caches constant functions. The caller's filters of warnings stay as they are."""
    with warnings.catch_warnings():
        of_cache = "Dynamo detected a call to a `functools.lru_cache`"
        warnings.filterwarnings("ignore", message=of_cache)
        yield


@without_warning()
def fault_of(
    quick: BatchLoss, plain: BatchLoss, network: nn.Module, batch: Any, *, gradients: bool = True
) -> str | None:
    """Why the compiled loss `quick` cannot replace `plain`; None where it can.

    It fails, or its gradients are wrong. The weights are moved at random for the comparison,
    because many gradients are zero at the start. They are restored afterwards. gradients: whether
    gradients are compared; with dropout they differ anyway."""
    generator = torch.Generator().manual_seed(0)
    kept = {name: p.detach().clone() for name, p in network.named_parameters()}

    def gradient(batch_loss: BatchLoss) -> dict[str, Tensor]:
        batch_loss(batch).mean().backward()
        found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        network.zero_grad()
        return found

    try:
        with torch.no_grad():
            for p in network.parameters():
                p.add_(0.02 * torch.randn(p.shape, generator=generator))
        ours = gradient(quick)
        theirs = gradient(plain) if gradients else {}
    except Exception as error:  # a compiler may raise anything
        return reason_of(error)
    finally:
        network.zero_grad()
        with torch.no_grad():
            for name, p in network.named_parameters():
                p.copy_(kept[name])
    for name, expected in theirs.items():
        found = ours.get(name, torch.zeros_like(expected))
        # False where one of them is NaN.
        alike = bool((found - expected).norm() <= MISCOMPILED * expected.norm())
        if expected.ndim > 1 and expected.isfinite().all() and not alike:
            return f"its gradient of {name} is wrong"
    return None


def reason_of(error: Exception) -> str:
    """The first line of an error, and the first line in which a C++ compiler says what is wrong."""
    first, *rest = [*filter(None, str(error).splitlines()), type(error).__name__]
    of_compiler = next((line.strip() for line in rest if "error:" in line), None)
    return f"{first}: {of_compiler}" if of_compiler else first
