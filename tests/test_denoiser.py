"""Predictions: whatever the network is asked for, the perfect answer makes the denoiser return exactly the image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from undiffuse.base.errors import UserError
from undiffuse.diffusion import process
from undiffuse.diffusion.denoiser import PREDICTIONS, Denoiser
from undiffuse.diffusion.schedule import LOG_SNR_BOUND, SCHEDULES

SHAPE = (1, 3, 3)
TIMES = torch.tensor([1e-4, 0.002, 0.3, 0.5, 0.9, 0.999, 1.0], dtype=torch.float64)
X_0, EPS = torch.from_numpy(np.random.default_rng(0).standard_normal((2, len(TIMES), *SHAPE)))


def edm_answer(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    """(8) of Karras et al. 2022 (arXiv:2206.00364), solved for F and freed of divisions by alpha."""
    return (sigma * X_0 - sigma_data**2 * alpha * EPS) / (
        sigma_data * (sigma**2 + sigma_data**2 * alpha**2).sqrt()
    )


ANSWERS = {
    "x0": lambda alpha, sigma: X_0,
    "eps": lambda alpha, sigma: EPS,
    "v": lambda alpha, sigma: (alpha * EPS - sigma * X_0) / (alpha**2 + sigma**2).sqrt(),
    "flow": lambda alpha, sigma: EPS - X_0,
    "edm": lambda alpha, sigma: edm_answer(alpha, sigma, 0.5),
    "edm:sigma_data=0.3": lambda alpha, sigma: edm_answer(alpha, sigma, 0.3),
}


def ends_in_pure_noise(schedule: str) -> bool:
    return SCHEDULES[schedule](torch.ones(1, dtype=torch.float64))[0].item() < 1e-6


def noisy(schedule: str) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, and alpha and sigma shaped like it."""
    alpha, sigma = (process.expand(c, X_0) for c in SCHEDULES[schedule](TIMES))
    return alpha * X_0 + sigma * EPS, alpha, sigma


def possible(predictions: list[str]) -> list[tuple[str, str]]:
    return [
        (s, p) for s in SCHEDULES for p in predictions if p != "eps" or not ends_in_pure_noise(s)
    ]


@pytest.mark.parametrize(("schedule", "prediction"), possible(list(ANSWERS)))
def test_the_perfect_answer_gives_the_image(schedule: str, prediction: str) -> None:
    x_t, alpha, sigma = noisy(schedule)
    answer = ANSWERS[prediction](alpha, sigma)
    x_0 = Denoiser(lambda x, log_snr, label: answer, schedule, prediction, SHAPE)(x_t, TIMES)
    torch.testing.assert_close(x_0, X_0, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("schedule", "prediction"), possible(list(PREDICTIONS)))
def test_what_the_network_is_shown(schedule: str, prediction: str) -> None:
    """x_t / sqrt(alpha^2 s^2 + sigma^2), of unit size for data of size s (1, or sigma_data), the log-SNR, the label."""
    seen = []
    denoiser = Denoiser(
        lambda *args: seen.append(args) or EPS, schedule, prediction, SHAPE, ("a", "b")
    )
    x_t, alpha, sigma = noisy(schedule)
    label = torch.arange(len(TIMES)) % 3
    denoiser(x_t, TIMES, label)
    [(x, log_snr, shown)] = seen
    size = 0.5 if prediction == "edm" else 1
    torch.testing.assert_close(x, x_t / (alpha**2 * size**2 + sigma**2).sqrt())
    torch.testing.assert_close(
        log_snr, 2 * (alpha / sigma).flatten().log().clamp(-LOG_SNR_BOUND / 2, LOG_SNR_BOUND / 2)
    )
    assert shown is label
    denoiser(x_t.float(), TIMES)
    assert [arg.dtype for arg in seen[1][:2]] == [torch.float32, torch.float32]
    assert seen[1][2].tolist() == [2] * len(TIMES)  # "no label"
    replace(denoiser, classes=())(x_t, TIMES)
    assert seen[2][2] is None


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_no_eps_where_no_signal_is_left(schedule: str) -> None:
    """Trap 9: refused, in one sentence that names a way out, and only there."""
    if not ends_in_pure_noise(schedule):
        assert Denoiser(lambda *_: EPS, schedule, "eps", SHAPE)(X_0, TIMES).isfinite().all()
        return
    with pytest.raises(
        UserError, match=f"'eps' with schedule '{schedule}' divides by zero at t = 1.*x0, v, flow"
    ):
        Denoiser(lambda *_: EPS, schedule, "eps", SHAPE)


def test_names_are_checked_at_once() -> None:
    with pytest.raises(UserError, match="no schedule called 'cosin'"):
        Denoiser(lambda *_: EPS, "cosin", "v", SHAPE)
    with pytest.raises(UserError, match="no prediction called 'w'"):
        Denoiser(lambda *_: EPS, "cosine", "w", SHAPE)
