"""The loss (6), which is the same under every prediction, its weightings, and the times sampled."""

from __future__ import annotations

from itertools import product
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers import close, possible, predictions_for
from undiffuse.base.rng import stream
from undiffuse.diffusion import process
from undiffuse.diffusion.denoiser import PREDICTIONS, Denoiser
from undiffuse.diffusion.objectives.denoising import (
    DenoisingBatch,
    denoising_batch,
    denoising_loss,
)
from undiffuse.diffusion.schedule import LOG_SNR_BOUND, SCHEDULES
from undiffuse.diffusion.times import TIMES, sample_times
from undiffuse.diffusion.weightings import WEIGHTINGS

SHAPE = (1, 3, 3)
T = torch.tensor([1e-3, 0.01, 0.3, 0.5, 0.9, 0.99, 1.0], dtype=torch.float64)
X_0, EPS, DENOISED = torch.from_numpy(np.random.default_rng(0).standard_normal((3, len(T), *SHAPE)))
EVERY_PAIR = [(schedule, p) for schedule in SCHEDULES for p in predictions_for(schedule)]


def level(schedule: str) -> tuple[Tensor, Tensor, Tensor]:
    """alpha, sigma and SNR at times T. The SNR is clamped as it is for weightings."""
    alpha, sigma = SCHEDULES[schedule](T)
    snr = ((alpha / sigma) ** 2).clamp(np.exp(-LOG_SNR_BOUND), np.exp(LOG_SNR_BOUND))
    return alpha, sigma, snr


def batch_of(schedule: str, prediction: str, weighting: str = "uniform") -> DenoisingBatch:
    denoiser = Denoiser(lambda *_: DENOISED, schedule, prediction, SHAPE)
    return denoising_batch(denoiser, WEIGHTINGS[weighting], X_0, EPS, T)


def loss_of(answer: Tensor, batch: DenoisingBatch) -> Tensor:
    """The loss of a network that gives this answer."""
    return denoising_loss(lambda *_: answer, batch)


def times(count: int, stream: object, stratified: bool, steps: int | None = None) -> Tensor:
    return sample_times(TIMES["uniform"], count, stream, stratified=stratified, steps=steps)


# The loss


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_the_target_is_the_perfect_answer(schedule: str) -> None:
    """Training asks the network what the denoiser asks it. Who hits the target gives the image."""
    for prediction in predictions_for(schedule):
        batch, seen = batch_of(schedule, prediction), []

        def network(*args: Tensor, target: Tensor = batch.target, seen: list = seen) -> Tensor:
            seen[:] = args
            return target

        alpha, sigma, _ = level(schedule)
        x_t = process.jump(X_0, EPS, alpha, sigma)
        close(Denoiser(network, schedule, prediction, SHAPE)(x_t, T), X_0, 1e-9, prediction)
        close(seen[0], batch.x, 1e-9, prediction)
        close(seen[1], batch.log_snr, 1e-9, prediction)
        assert not denoising_loss(network, batch).any(), prediction


@pytest.mark.parametrize("weighting", list(WEIGHTINGS))
def test_one_loss_for_all_predictions(weighting: str) -> None:
    """Trap 16. For the same x_0_hat the loss is w(log-SNR) times its mean squared error.

    That holds for every prediction and schedule."""
    for schedule, prediction in EVERY_PAIR:
        alpha, sigma, snr = level(schedule)
        c_skip, c_out, _ = (process.expand(c, X_0) for c in PREDICTIONS[prediction](alpha, sigma))
        answer = (DENOISED - c_skip * process.jump(X_0, EPS, alpha, sigma)) / c_out
        found = loss_of(answer, batch_of(schedule, prediction, weighting))
        expected = WEIGHTINGS[weighting](snr.log()) * ((DENOISED - X_0) ** 2).mean(dim=(1, 2, 3))
        close(found, expected, 1e-8, (schedule, prediction), absolute=1e-12)


NATURAL = {"x0": "uniform", "eps": "snr", "v": "snr-plus-1", "edm": "edm"}


@pytest.mark.parametrize("prediction", NATURAL)
def test_plain_squared_errors(prediction: str) -> None:
    """Some weights make the loss the plain squared error of the network's output.

    They are 1 for x_0, SNR for eps, SNR + 1 for v, and EDM's weight for its F."""
    for schedule in SCHEDULES:
        if not possible(schedule, prediction):
            continue
        alpha, sigma, _ = (process.expand(c, X_0) for c in level(schedule))
        v = (alpha * EPS - sigma * X_0) / (alpha**2 + sigma**2).sqrt()
        batch = batch_of(schedule, prediction, NATURAL[prediction])
        target = {"x0": X_0, "eps": EPS, "v": v, "edm": batch.target}[prediction]
        expected = ((DENOISED - target) ** 2).mean(dim=(1, 2, 3))
        close(loss_of(DENOISED, batch), expected, 1e-6, schedule)  # the clamp: e^-15


def test_edm_weight_of_other_data() -> None:
    weight = batch_of("linear", "edm:sigma_data=0.3", "edm:sigma_data=0.3").weight
    close(weight, torch.ones_like(weight), 1e-9)


def test_min_snr_on_v() -> None:
    """Trap 17. The weight of F's squared error is min(SNR, gamma) / (SNR + 1), and finite."""
    for schedule in SCHEDULES:
        *_, snr = level(schedule)
        weight = batch_of(schedule, "v", "min-snr:gamma=3").weight
        close(weight, snr.clamp(max=3) / (snr + 1), 1e-6, schedule)
        assert weight.isfinite().all(), schedule


WEIGHTS = {
    "uniform": lambda snr: 1,
    "snr": lambda snr: snr,
    "snr-plus-1": lambda snr: snr + 1,
    "max-snr-1": lambda snr: np.maximum(snr, 1),
    "min-snr": lambda snr: np.minimum(snr, 5),
    "min-snr:gamma=2": lambda snr: np.minimum(snr, 2),
    "edm": lambda snr: snr + 4,
    "edm:sigma_data=0.25": lambda snr: snr + 16,
    "sigmoid": lambda snr: snr / (1 + np.exp(1 + np.log(snr))),  # SNR sigmoid(-1 - log-SNR)
    "sigmoid:bias=2": lambda snr: snr / (1 + np.exp(-2 + np.log(snr))),
}


@pytest.mark.parametrize("weighting", WEIGHTS)
def test_weightings(weighting: str) -> None:
    log_snr = np.linspace(-LOG_SNR_BOUND, LOG_SNR_BOUND, 61)
    expected = WEIGHTS[weighting](np.exp(log_snr)) * np.ones(61)
    np.testing.assert_allclose(
        WEIGHTINGS[weighting](torch.from_numpy(log_snr)), expected, rtol=1e-12
    )


# Times


@pytest.mark.parametrize("stratified", [False, True])
def test_chain_times(stratified: bool) -> None:
    """Trap 4 and (6). Times are uniform on {2..T}/T, with T itself."""
    n = 20_000
    for steps in (2, 3, 5, 12):
        values, counts = times(n, stream(0, "times"), stratified, steps).unique(return_counts=True)
        expected = torch.arange(2, steps + 1) / torch.tensor(steps, dtype=torch.float64)
        assert torch.equal(values, expected), f"{steps} steps"
        most = 2 if stratified else 5 * np.sqrt(n / (steps - 1))
        assert (counts - n / (steps - 1)).abs().max() < most, f"{steps} steps"


def test_stratified_chain_times_are_all_of_them() -> None:
    t = times(999, stream(1, "times"), stratified=True, steps=1000)
    assert torch.equal(t.sort().values * 1000, torch.arange(2.0, 1001).double())
    assert not torch.equal(t, t.sort().values)


def test_stratified_times_are_random_within_their_parts() -> None:
    """test_properties.py tests that each part has one time."""
    for count in (1, 2, 7, 128):
        found = [times(count, stream(i, "t"), stratified=True) for i in range(50)]
        assert all(len((t * count % 1).unique()) == count for t in found), count
        assert len({tuple(t.tolist()) for t in found}) == 50, count
        # No image has a part of its own.
        assert torch.stack(found).std(0).min() > 0.1, count


class Extremes:
    """A generator of the smallest and largest numbers that one can give."""

    def random(self, count: int) -> np.ndarray:
        return np.where(np.arange(count) % 2, 1 - 2.0**-53, 0.0)

    def permutation(self, count: int) -> np.ndarray:
        return np.arange(count)


@pytest.mark.parametrize("name", list(TIMES))
def test_times_are_never_0(name: str) -> None:
    for stratified, steps in product((False, True), (None, 2, 1000)):
        t = sample_times(TIMES[name], 6, Extremes(), stratified=stratified, steps=steps)
        case = f"stratified: {stratified}, {steps} steps"
        assert t.dtype == torch.float64, case
        assert ((t > 0) & (t <= 1)).all(), case
        assert steps is None or (t >= 2 / steps).all(), case


@pytest.mark.parametrize("name", list(TIMES))
def test_times_fall_as_u_rises(name: str) -> None:
    t = TIMES[name](torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1])
    assert (t.diff() < 0).all()


@pytest.mark.parametrize(("mean", "std"), [(0, 1), (-0.5, 1.5)])
def test_logit_normal_quantiles(mean: float, std: float) -> None:
    u = np.linspace(0.001, 0.999, 99)
    t = TIMES[f"logit-normal:mean={mean},std={std}"](torch.from_numpy(u))
    expected = [NormalDist(mean, std).inv_cdf(1 - x) for x in u]
    np.testing.assert_allclose(t.logit(), expected, rtol=1e-9, atol=1e-9)
