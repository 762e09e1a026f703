"""Predictions: with the perfect answer of the network, the denoiser returns exactly the image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers import close, ends_in_pure_noise, possible, predictions_for
from undiffuse.base.errors import UserError
from undiffuse.diffusion import process
from undiffuse.diffusion.conditioning import Conditioning
from undiffuse.diffusion.denoiser import Denoiser
from undiffuse.diffusion.schedule import LOG_SNR_BOUND, SCHEDULES

SHAPE = (1, 3, 3)
TIMES = torch.tensor([1e-4, 0.002, 0.3, 0.5, 0.9, 0.999, 1.0], dtype=torch.float64)
X_0, EPS = torch.from_numpy(np.random.default_rng(0).standard_normal((2, len(TIMES), *SHAPE)))


def edm_answer(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    """(8) of Karras et al. 2022 (arXiv:2206.00364), solved for F without a division by alpha."""
    norm = (sigma**2 + sigma_data**2 * alpha**2).sqrt()
    return (sigma * X_0 - sigma_data**2 * alpha * EPS) / (sigma_data * norm)


ANSWERS = {
    "x0": lambda alpha, sigma: X_0,
    "eps": lambda alpha, sigma: EPS,
    "v": lambda alpha, sigma: (alpha * EPS - sigma * X_0) / (alpha**2 + sigma**2).sqrt(),
    "flow": lambda alpha, sigma: EPS - X_0,
    "edm": lambda alpha, sigma: edm_answer(alpha, sigma, 0.5),
    "edm:sigma_data=0.3": lambda alpha, sigma: edm_answer(alpha, sigma, 0.3),
}


def denoiser_of(
    network: Callable[..., Tensor], schedule: str, prediction: str, classes: tuple[str, ...] = ()
) -> Denoiser:
    return Denoiser(network, schedule, prediction, SHAPE, Conditioning(classes))


def always(answer: Tensor) -> Callable[..., Tensor]:
    """A network that gives this answer to everything."""
    return lambda *_: answer


def noisy(schedule: str) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, alpha and sigma. All have the shape of images."""
    alpha, sigma = (process.expand(c, X_0) for c in SCHEDULES[schedule](TIMES))
    return alpha * X_0 + sigma * EPS, alpha, sigma


each_schedule = pytest.mark.parametrize("schedule", list(SCHEDULES))


@each_schedule
def test_the_perfect_answer_gives_the_image(schedule: str) -> None:
    x_t, alpha, sigma = noisy(schedule)
    for prediction, answer in ANSWERS.items():
        if possible(schedule, prediction):
            denoiser = denoiser_of(always(answer(alpha, sigma)), schedule, prediction)
            close(denoiser(x_t, TIMES), X_0, 0, prediction, absolute=1e-11)


@each_schedule
def test_what_the_network_sees(schedule: str) -> None:
    """It sees x_t / sqrt(alpha^2 s^2 + sigma^2), the log-SNR and the condition.

    The first has unit size for data of size s, which is 1, or EDM's sigma_data."""
    x_t, alpha, sigma = noisy(schedule)
    condition = torch.arange(len(TIMES)) % 3
    expected_level = 2 * (alpha / sigma).flatten().log()
    expected_level = expected_level.clamp(-LOG_SNR_BOUND, LOG_SNR_BOUND)
    for prediction in predictions_for(schedule):
        seen = []

        def network(*args: Tensor, seen: list = seen) -> Tensor:
            seen.append(args)
            return EPS

        denoiser = denoiser_of(network, schedule, prediction, ("a", "b"))
        denoiser(x_t, TIMES, condition=condition)
        denoiser(x_t.float(), TIMES)
        denoiser_of(network, schedule, prediction)(x_t, TIMES)
        (x, log_snr, shown), of_float32, without_classes = seen
        size = 0.5 if prediction == "edm" else 1
        close(x, x_t / (alpha**2 * size**2 + sigma**2).sqrt(), 1e-7, prediction)
        close(log_snr, expected_level, 1e-7, prediction)
        assert shown is condition, prediction
        assert [arg.dtype for arg in of_float32[:2]] == [torch.float32, torch.float32], prediction
        assert of_float32[2].tolist() == [2] * len(TIMES), prediction  # "unconditional"
        assert without_classes[2] is None, prediction


@each_schedule
def test_no_eps_where_no_signal_is_left(schedule: str) -> None:
    """Trap 9. Only such a pair is refused, in one sentence that names a way out."""
    if not ends_in_pure_noise(schedule):
        assert denoiser_of(always(EPS), schedule, "eps")(X_0, TIMES).isfinite().all()
        return
    said = f"'eps' with schedule '{schedule}' divides by zero at t = 1.*x0, v, flow"
    with pytest.raises(UserError, match=said):
        denoiser_of(always(EPS), schedule, "eps")


def test_names_are_checked_at_once() -> None:
    with pytest.raises(UserError, match="no schedule called 'cosin'"):
        denoiser_of(always(EPS), "cosin", "v")
    with pytest.raises(UserError, match="no prediction called 'w'"):
        denoiser_of(always(EPS), "cosine", "w")
