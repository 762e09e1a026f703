"""How likely the model holds real images, in bits per dimension.

Two figures measure it: the bound of the chain (`likelihood.variational_bound`) and the likelihood
of the probability-flow ODE (`likelihood.ode_bits`). Each comes with its 95% interval. Fewer bits
are better.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from undiffuse import __version__
from undiffuse.data.dataset import Dataset
from undiffuse.data.splits import random_part
from undiffuse.diffusion import likelihood
from undiffuse.measuring import distances
from undiffuse.measuring.quality import plain
from undiffuse.measuring.reference import Reference
from undiffuse.measuring.watch import Watch, unwatched

if TYPE_CHECKING:
    from torch import Tensor

    from undiffuse.diffusion.denoiser import Denoiser

SOME_BITS = 2_000
"""Most training images for the bound, and most test images for the continuous-time bound."""


def bits_per_dim(
    denoiser: Denoiser,
    real: Reference,
    *,
    chain: int | None,
    n: int | None = None,
    ode_images: int = 500,
    seed: int = 0,
    watch: Watch = unwatched,
) -> dict[str, Any]:
    """The bounds and the ODE's likelihood of real images, in bits/dim, for metrics.json.

    A model that is conditioned on classes gets each image's class. Any other model is measured
    without conditions.

    chain: T of the chain that the model was trained on; None for continuous time, where the bound
    is that of `likelihood.CHAIN` steps. n: test images for the bound, None for all.
    ode_images: test images for the ODE; 0 leaves it out. watch: called with (stage, share done)."""
    measuring = Measuring(denoiser, chain, seed, watch)
    test = random_part(real.unseen, n or len(real.unseen), seed)
    training = random_part(real.seen, min(SOME_BITS, len(test)), seed)
    some = random_part(test, min(SOME_BITS, len(test)), seed)
    bound = measuring.bound(test, "bound on test images")
    of_training = measuring.bound(training, "bound on training images")
    of_some = measuring.bound(some, "continuous-time bound", continuous=True)
    found = measuring.bounds_entry(bound, of_training, len(test), len(training))
    found["continuous"] = continuous_entry(of_some, len(some))
    found["levels"] = likelihood.loss_by_level(bound)
    if ode_images:
        found["ode"] = measuring.ode_entry(random_part(test, ode_images, seed))
    return found


@dataclass(frozen=True)
class Measuring:
    """What every measurement of one model shares. See `bits_per_dim`."""

    denoiser: Denoiser
    chain: int | None
    seed: int
    watch: Watch

    @property
    def given(self) -> str:
        """What the model is conditioned on, as the end of a sentence."""
        kind = self.denoiser.conditioning.kind
        return (
            "; given each image's class" if kind == "class" else "; unconditional" if kind else ""
        )

    def bound(self, part: Dataset, stage: str, continuous: bool = False) -> likelihood.Bound:
        """The variational bound of each image of a data set."""

        def progress(done: float) -> None:
            self.watch(stage, done)

        return likelihood.variational_bound(
            self.denoiser,
            part.images,
            known_condition(self.denoiser, part),
            steps=self.chain,
            continuous=continuous,
            seed=self.seed,
            watch=progress,
        )

    def bounds_entry(
        self, bound: likelihood.Bound, of_training: likelihood.Bound, n: int, training_n: int
    ) -> dict[str, Any]:
        """The bounds on n test images and training_n training images, for metrics.json."""
        total = distances.mean_interval(bound.total)
        train_total = distances.mean_interval(of_training.total)
        gap = total.value - train_total.value
        half_width = math.hypot(total.high - total.value, train_total.high - train_total.value)
        return {
            "test": total.value,
            "low": total.low,
            "high": total.high,
            "training": {**plain(train_total), "n": training_n},
            "gap": {"value": gap, "low": gap - half_width, "high": gap + half_width},
            "n": n,
            "chain": self.chain or likelihood.CHAIN,
            "log_snr": [bound.low, bound.high],
            "prior": plain(distances.mean_interval(bound.prior)),
            "diffusion": plain(distances.mean_interval(bound.diffusion)),
            "reconstruction": plain(distances.mean_interval(bound.reconstruction)),
            "network_calls": likelihood.LEVELS + 1,
            "given_classes": self.denoiser.conditioning.kind == "class",
            "assumes": "the chain of unguided posterior steps, x_0_hat clipped, and a normal "
            f"decoder cut into 256 8-bit values{self.given}",
            "interval_of": "the images: other images of the same kind, with the same model",
            "seed": self.seed,
            "undiffuse": __version__,
        }

    def ode_entry(self, part: Dataset) -> dict[str, Any]:
        """The ODE's likelihood of the images, for metrics.json.

        The ODE is solved twice, the second time with half the steps. The difference estimates the
        error of the solver."""
        # Step 2 of a chain has the least noise that the model was trained at. A schedule may begin
        # with more noise than ODE_LEVEL has.
        first_time = likelihood.EARLIEST if self.chain is None else 2 / self.chain
        earliest = torch.tensor(first_time, dtype=torch.float64)
        level = min(likelihood.ODE_LEVEL, self.denoiser.noise_level(earliest).log_snr.item())
        exact = self.by_ode(part, likelihood.ODE_STEPS, level, 0, 2 / 3)
        coarse = self.by_ode(part, likelihood.ODE_STEPS // 2, level, 2 / 3, 1)
        figure = distances.mean_interval(exact)
        return {
            "test": figure.value,
            "low": figure.low,
            "high": figure.high,
            "n": len(part),
            "steps": likelihood.ODE_STEPS,
            "log_snr": level,
            "assumes": "the unguided probability flow, x_0_hat not clipped, and images with "
            f"uniform noise over one 8-bit value{self.given}",
            "change_from_half_the_steps": (exact.mean() - coarse.mean()).item(),
        }

    def by_ode(self, part: Dataset, steps: int, level: float, first: float, last: float) -> Tensor:
        """Bits per dimension (n,) by the ODE. first, last: the shares done before and after."""

        def progress(done: float) -> None:
            self.watch("probability-flow ODE", first + (last - first) * done)

        return likelihood.ode_bits(
            self.denoiser,
            part.images,
            known_condition(self.denoiser, part),
            steps=steps,
            level=level,
            seed=self.seed,
            watch=progress,
        )


def continuous_entry(bound: likelihood.Bound, n: int) -> dict[str, Any]:
    """The continuous-time bound on n images, for metrics.json."""
    total = distances.mean_interval(bound.total)
    return {
        "test": total.value,
        "low": total.low,
        "high": total.high,
        "n": n,
        "diffusion": plain(distances.mean_interval(bound.diffusion)),
    }


def known_condition(denoiser: Denoiser, dataset: Dataset) -> Tensor | None:
    """The classes (n,) of images whose likelihood is measured.

    None for a model that is not conditioned on classes."""
    return dataset.labels if denoiser.conditioning.kind == "class" else None
