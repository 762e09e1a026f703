"""Training: `fit`, one visible loop that yields what happens as events.

Who reads the events (the console, the run folder) decides what to do with them; the loop knows neither. All of its
randomness is a function of (seed, step), so a state at step n is the same whichever sessions led there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from undiffuse.training.clock import Cut, Decision, Outlook

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Decided:
    """The clock decided; it acts after this was read."""

    step: int
    decision: Decision | Outlook


@dataclass(frozen=True)
class Stepped:
    """One optimiser step, which was number `step` (from 1). end: the last step, as far as that is known."""

    step: int
    loss: float
    lr: float
    seconds: float
    end: int | None


@dataclass(frozen=True)
class SetBack:
    """Step number `of` (from 1) went wrong, for the reason given: training is as it was after `step` steps, and goes on from there with
    half of the learning rate."""

    step: int
    of: int
    cut: Cut
    reason: str


@dataclass(frozen=True)
class Uncompiled:
    """torch.compile failed, for the reason given; the same arithmetic goes on without it, slower."""

    step: int
    reason: str


@dataclass(frozen=True)
class Validated:
    """Held-out loss of the averaged weights, at the same noise each time; by noise level: (log-SNR, loss) pairs."""

    step: int
    loss: float
    levels: list[tuple[float, float]]


@dataclass(frozen=True)
class Snapshot:
    """Samples from the same noise each time, uint8 (N, C, H, W). seconds: that they and the validation took."""

    step: int
    images: Tensor
    seconds: float


@dataclass(frozen=True)
class Scored:
    """The Frechet distance of n quick samples of the averaged weights to the training images, and its floor: that of n
    real images that were not trained on. seconds: that it took."""

    step: int
    frechet: float
    floor: float
    n: int
    seconds: float


@dataclass(frozen=True)
class Ended:
    """The last event. finished: the budget is used up, rather than training was asked to stop."""

    step: int
    finished: bool


Event = Decided | Stepped | SetBack | Uncompiled | Validated | Snapshot | Scored | Ended
