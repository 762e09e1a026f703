"""Training: `fit`, one visible loop that yields what happens as events.

Who reads the events (the console, the run folder) decides what to do with them; the loop knows neither. All of its
randomness is a function of (seed, step), so a state at step n is the same whichever sessions led there.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch

from undiffuse.diffusion.objective import Problem

if TYPE_CHECKING:
    from torch import Tensor, nn

    from undiffuse.training.step import BatchLoss

MISCOMPILED = 0.3  # relative difference of a weight's compiled gradient; rounding to bfloat16 makes 0.03


def fault_of(
    quick: BatchLoss,
    plain: BatchLoss,
    network: nn.Module,
    problem: Problem,
    label: Tensor | None,
    *,
    gradients: bool = True,
) -> str | None:
    """Why the compiled loss `quick` can't be used in place of `plain`, None where it can: it fails, or it has another gradient. Compilers
    err without a word: torch 2.13 dropped the gradient of all that comes before an upsampling.

    Compared at weights moved at random, since many gradients are zero at the start. gradients: whether they can be compared;
    not with dropout, which differs."""
    # diffusers caches a few constant functions; the warning is for its authors, not for the user of this package.
    warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
    generator = torch.Generator().manual_seed(0)
    kept = {name: p.detach().clone() for name, p in network.named_parameters()}

    def gradient(batch_loss: BatchLoss) -> dict[str, Tensor]:
        batch_loss(problem, label).backward()
        found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        network.zero_grad()
        return found

    try:
        with torch.no_grad():
            for p in network.parameters():
                p.add_(0.02 * torch.randn(p.shape, generator=generator))
        ours = gradient(quick)
        theirs = gradient(plain) if gradients else {}
    except Exception as error:  # whatever a compiler may raise
        return next(filter(None, str(error).splitlines()), type(error).__name__)
    finally:
        network.zero_grad()
        with torch.no_grad():
            for name, p in network.named_parameters():
                p.copy_(kept[name])
    for name, expected in theirs.items():
        found = ours.get(name, torch.zeros_like(expected))
        alike = bool((found - expected).norm() <= MISCOMPILED * expected.norm())  # False for one that is not a number
        if expected.ndim > 1 and expected.isfinite().all() and not alike:
            return f"its gradient of {name} is wrong"
    return None
