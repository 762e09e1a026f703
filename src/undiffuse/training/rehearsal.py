"""Training: `fit`, one visible loop that yields what happens as events.

Who reads the events (the console, the run folder) decides what to do with them; the loop knows neither. All of its
randomness is a function of (seed, step), so a state at step n is the same whichever sessions led there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from undiffuse.base import rng
from undiffuse.base.errors import UserError
from undiffuse.diffusion.denoiser import Denoiser
from undiffuse.diffusion.objective import regression
from undiffuse.diffusion.sampling import draw, steps_within
from undiffuse.diffusion.schedule import SCHEDULES, log_snr
from undiffuse.diffusion.times import TIMES, draw_times
from undiffuse.diffusion.weightings import WEIGHTINGS

if TYPE_CHECKING:
    from undiffuse.training.config import Config


def rehearse(config: Config) -> None:
    """Call every chosen function once, on one pixel: UserError for parameters that make no diffusion model.

    So that they are refused before anything is written, and not at the first snapshot."""
    specs = (
        f"schedule {config.schedule}, prediction {config.predict}, weighting {config.weighting}, times {config.times}"
    )
    try:
        t = torch.linspace(0, 1, 1001, dtype=torch.float64)
        alpha, sigma = SCHEDULES[config.schedule](t)
        if not ((alpha[0], sigma[0]) == (1, 0) and (log_snr(alpha, sigma).diff() < 0).all()):
            raise UserError(
                f"schedule '{config.schedule}' does not fall from the data to noise; give its parameters other values"
            )
        denoiser = Denoiser(lambda x, log_snr, label: 0 * x, config.schedule, config.predict, (1, 1, 1))
        times = draw_times(TIMES[config.times], 100, rng.stream(0, "rehearsal"), stratified=True, steps=config.chain)
        x_0 = torch.ones(len(times), 1, 1, 1)
        problem = regression(denoiser, WEIGHTINGS[config.weighting], x_0, x_0, times)
        possible = all(part.isfinite().all() for part in problem) and bool((problem.weight >= 0).all())
    except (ArithmeticError, RuntimeError) as error:
        raise UserError(f"{specs}: these can't be computed together ({error}); give other parameters") from error
    if not possible:
        raise UserError(f"{specs}: the loss would not be finite and positive; give other parameters")
    sampler = {"sampler": config.sampler, "grid": config.grid}
    draw(denoiser, [0], steps=steps_within(config.sample_calls, denoiser, **sampler), **sampler)
