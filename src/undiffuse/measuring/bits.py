"""Evaluation: how good generated images are, how likely the model holds real ones, and whether it copies.

Every figure comes with its 95% interval, and beside it the same figure of real images that were not trained on, at the
same number of images: its control, or floor. What cannot be given for a data set is listed with the reason.
"""

from __future__ import annotations

import math
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
"""Training images on which the bound is taken, for the gap to the test set, and test images for the continuous-time one."""


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
    """The bounds on the test set, or n images of it, and on training images; the ODE's likelihood.

    A model that is conditioned on classes is given those of the images; any other is given none."""
    test = random_part(real.unseen, n or len(real.unseen), seed)
    training = random_part(real.seen, min(SOME_BITS, len(test)), seed)
    some = random_part(test, min(SOME_BITS, len(test)), seed)

    def bound_of(part: Dataset, stage: str, continuous: bool = False) -> likelihood.Bound:
        condition = known_condition(denoiser, part)

        def progress(done: float) -> None:
            watch(stage, done)

        return likelihood.variational_bound(
            denoiser,
            part.images,
            condition,
            steps=chain,
            continuous=continuous,
            seed=seed,
            watch=progress,
        )

    bound, of_training = (
        bound_of(test, "bound on test images"),
        bound_of(training, "bound on training images"),
    )
    of_some = bound_of(some, "continuous-time bound", continuous=True)
    total, train_total = (
        distances.mean_interval(bound.total),
        distances.mean_interval(of_training.total),
    )
    gap = total.value - train_total.value
    half_width = math.hypot(total.high - total.value, train_total.high - train_total.value)
    continuous = distances.mean_interval(of_some.total)
    kind = denoiser.conditioning.kind
    given = "; given each image's class" if kind == "class" else "; unconditional" if kind else ""
    found: dict[str, Any] = {
        "test": total.value,
        "low": total.low,
        "high": total.high,
        "training": {**plain(train_total), "n": len(training)},
        "gap": {"value": gap, "low": gap - half_width, "high": gap + half_width},
        "n": len(test),
        "chain": chain or likelihood.CHAIN,
        "log_snr": [bound.low, bound.high],
        "prior": plain(distances.mean_interval(bound.prior)),
        "diffusion": plain(distances.mean_interval(bound.diffusion)),
        "reconstruction": plain(distances.mean_interval(bound.reconstruction)),
        "network_calls": likelihood.LEVELS + 1,
        "given_classes": kind == "class",
        "assumes": "the chain of unguided posterior steps, x_0_hat clipped, and a normal decoder cut into 256 grey levels"
        + given,
        "interval_of": "the images: other ones of the same kind, the model being what it is",
        "seed": seed,
        "undiffuse": __version__,
        "continuous": {
            "test": continuous.value,
            "low": continuous.low,
            "high": continuous.high,
            "n": len(some),
            "diffusion": plain(distances.mean_interval(of_some.diffusion)),
        },
        "levels": likelihood.loss_by_level(bound),
    }
    if ode_images:
        part = random_part(test, ode_images, seed)
        condition = known_condition(denoiser, part)
        # Step 2 of a chain has the least noise that it was trained at. A schedule may begin with more noise than ODE_LEVEL has.
        earliest = torch.tensor(
            likelihood.EARLIEST if chain is None else 2 / chain, dtype=torch.float64
        )
        level = min(likelihood.ODE_LEVEL, denoiser.noise_level(earliest).log_snr.item())

        def by_ode(steps: int, first: float, last: float) -> Tensor:
            def progress(done: float) -> None:
                watch("probability-flow ODE", first + (last - first) * done)

            return likelihood.ode_bits(
                denoiser,
                part.images,
                condition,
                steps=steps,
                level=level,
                seed=seed,
                watch=progress,
            )

        exact, coarse = (
            by_ode(likelihood.ODE_STEPS, 0, 2 / 3),
            by_ode(likelihood.ODE_STEPS // 2, 2 / 3, 1),
        )
        figure = distances.mean_interval(exact)
        found["ode"] = {
            "test": figure.value,
            "low": figure.low,
            "high": figure.high,
            "n": len(part),
            "steps": likelihood.ODE_STEPS,
            "log_snr": level,
            "assumes": "the unguided probability flow, x_0_hat not clipped, and images with uniform noise over a grey level"
            + given,
            "change_from_half_the_steps": (exact.mean() - coarse.mean()).item(),
        }
    return found


def known_condition(denoiser: Denoiser, dataset: Dataset) -> Tensor | None:
    """The conditions of images whose likelihood is measured: their classes, or none."""
    return dataset.labels if denoiser.conditioning.kind == "class" else None
