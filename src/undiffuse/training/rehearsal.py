"""A rehearsal: parameters that give no diffusion model are refused before anything is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from undiffuse.base import rng
from undiffuse.base.errors import UserError
from undiffuse.diffusion.conditioning import Conditioning
from undiffuse.diffusion.denoiser import Denoiser
from undiffuse.diffusion.objectives.denoising import denoising_batch
from undiffuse.diffusion.sampling import sample
from undiffuse.diffusion.schedule import SCHEDULES, log_snr
from undiffuse.diffusion.times import TIMES, sample_times
from undiffuse.diffusion.weightings import WEIGHTINGS
from undiffuse.training.fields import AUTO

if TYPE_CHECKING:
    from undiffuse.training.config import Config


def rehearse(config: Config) -> None:
    """Call every chosen function once, with images of one pixel.

    Raises UserError for parameters that do not give a diffusion model."""
    chosen = "uniform" if config.times == AUTO else config.times
    specs = (
        f"schedule {config.schedule}, prediction {config.predict}, weighting {config.weighting}, "
        f"times {chosen}"
    )
    try:
        t = torch.linspace(0, 1, 1001, dtype=torch.float64)
        alpha, sigma = SCHEDULES[config.schedule](t)
        if not ((alpha[0], sigma[0]) == (1, 0) and (log_snr(alpha, sigma).diff() < 0).all()):
            raise UserError(
                f"schedule '{config.schedule}' does not fall from the data to noise; give its "
                "parameters other values"
            )
        denoiser = Denoiser(
            lambda x, log_snr, condition: 0 * x, config.schedule, config.predict, (1, 1, 1)
        )
        stream = rng.stream(0, "rehearsal")
        times = sample_times(TIMES[chosen], 100, stream, stratified=True, steps=config.chain)
        x_0 = torch.ones(len(times), 1, 1, 1)
        batch = denoising_batch(denoiser, WEIGHTINGS[config.weighting], x_0, x_0, times)
        tensors = [part for part in batch if part is not None]
        possible = all(part.isfinite().all() for part in tensors) and bool(
            (batch.weight >= 0).all()
        )
    except (ArithmeticError, RuntimeError) as error:
        raise UserError(
            f"{specs}: these can't be computed together ({error}); give other parameters"
        ) from error
    if not possible:
        raise UserError(
            f"{specs}: the loss would not be finite and positive; give other parameters"
        )
    sample(denoiser, [0], config.sampling(0, Conditioning()))
