"""The loss (6): the same number under every prediction, the papers' weightings, and the times that are drawn."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import Tensor

from undiffuse.base.rng import stream
from undiffuse.diffusion import process
from undiffuse.diffusion.denoiser import PREDICTIONS, Denoiser
from undiffuse.diffusion.objective import Problem, loss, regression
from undiffuse.diffusion.schedule import LOG_SNR_BOUND, SCHEDULES
from undiffuse.diffusion.times import TIMES, draw_times
from undiffuse.diffusion.weightings import WEIGHTINGS

SHAPE = (1, 3, 3)
T = torch.tensor([1e-3, 0.01, 0.3, 0.5, 0.9, 0.99, 1.0], dtype=torch.float64)
X_0, EPS, GUESS = torch.from_numpy(np.random.default_rng(0).standard_normal((3, len(T), *SHAPE)))
POSSIBLE = [
    (s, p)
    for s in SCHEDULES
    for p in PREDICTIONS
    if p != "eps" or SCHEDULES[s](torch.ones(1).double())[0].item() > 1e-6
]
each_pair = pytest.mark.parametrize(("schedule", "prediction"), POSSIBLE)


def level(schedule: str) -> tuple[Tensor, Tensor, Tensor]:
    """alpha, sigma, SNR at times T, the SNR clamped as it is for weightings."""
    alpha, sigma = SCHEDULES[schedule](T)
    return alpha, sigma, ((alpha / sigma) ** 2).clamp(np.exp(-LOG_SNR_BOUND), np.exp(LOG_SNR_BOUND))


def problem_of(schedule: str, prediction: str, weighting: str = "uniform") -> Problem:
    denoiser = Denoiser(lambda *_: GUESS, schedule, prediction, SHAPE)
    return regression(denoiser, WEIGHTINGS[weighting], X_0, EPS, T)


def close(one: Tensor, two: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance)


# The loss


@each_pair
def test_the_target_is_the_perfect_answer(schedule: str, prediction: str) -> None:
    """The network is asked, in training, what the denoiser asks it, and who hits the target guesses the image."""
    problem, shown = problem_of(schedule, prediction), []

    def network(*args: Tensor) -> Tensor:
        shown[:] = args
        return problem.target

    alpha, sigma, _ = level(schedule)
    x_0 = Denoiser(network, schedule, prediction, SHAPE)(process.jump(X_0, EPS, alpha, sigma), T)
    close(x_0, X_0)
    close(shown[0], problem.x)
    close(shown[1], problem.log_snr)
    assert not loss(network, problem).any()


@pytest.mark.parametrize("weighting", list(WEIGHTINGS))
@each_pair
def test_one_loss_for_all_predictions(schedule: str, prediction: str, weighting: str) -> None:
    """Trap 16: for the same guess at the image the loss is w(log-SNR) times its mean squared error, whatever F is."""
    alpha, sigma, snr = level(schedule)
    c_skip, c_out, _ = (process.expand(c, X_0) for c in PREDICTIONS[prediction](alpha, sigma))
    answer = (GUESS - c_skip * process.jump(X_0, EPS, alpha, sigma)) / c_out
    found = loss(lambda x, log_snr, label: answer, problem_of(schedule, prediction, weighting))
    expected = WEIGHTINGS[weighting](snr.log()) * ((GUESS - X_0) ** 2).mean(dim=(1, 2, 3))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)


NATURAL = {"x0": "uniform", "eps": "snr", "v": "snr-plus-1", "edm": "edm"}


@pytest.mark.parametrize(
    ("schedule", "prediction"), [pair for pair in POSSIBLE if pair[1] in NATURAL]
)
def test_plain_squared_errors(schedule: str, prediction: str) -> None:
    """Uniform weight is x_0-MSE, SNR is eps-MSE, SNR + 1 is v-MSE, and EDM's weight gives its F unit weight."""
    alpha, sigma, _ = (process.expand(c, X_0) for c in level(schedule))
    targets = {
        "x0": X_0,
        "eps": EPS,
        "v": (alpha * EPS - sigma * X_0) / (alpha**2 + sigma**2).sqrt(),
    }
    problem = problem_of(schedule, prediction, NATURAL[prediction])
    found = loss(lambda x, log_snr, label: GUESS, problem)
    close(
        found, ((GUESS - targets.get(prediction, problem.target)) ** 2).mean(dim=(1, 2, 3)), 1e-6
    )  # the clamp: e^-15


def test_edm_weight_of_other_data() -> None:
    weight = problem_of("linear", "edm:sigma_data=0.3", "edm:sigma_data=0.3").weight
    close(weight, torch.ones_like(weight))


def test_min_snr_on_v() -> None:
    """Trap 17: min(SNR, gamma) / (SNR + 1) on F's squared error, and finite at zero SNR."""
    for schedule in SCHEDULES:
        *_, snr = level(schedule)
        weight = problem_of(schedule, "v", "min-snr:gamma=3").weight
        close(weight, snr.clamp(max=3) / (snr + 1), 1e-6)
        assert weight.isfinite().all()


WEIGHTS = {
    "uniform": lambda snr: 1,
    "snr": lambda snr: snr,
    "snr-plus-1": lambda snr: snr + 1,
    "max-snr-1": lambda snr: np.maximum(snr, 1),
    "min-snr": lambda snr: np.minimum(snr, 5),
    "min-snr:gamma=2": lambda snr: np.minimum(snr, 2),
    "edm": lambda snr: snr + 4,
    "edm:sigma_data=0.25": lambda snr: snr + 16,
    "sigmoid": lambda snr: (
        snr / (1 + np.exp(1 + np.log(snr)))
    ),  # SNR sigmoid(bias - log-SNR), bias = -1
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

each_way = pytest.mark.parametrize("stratified", [False, True])


@each_way
@pytest.mark.parametrize("steps", [2, 3, 5, 12])
def test_chain_times(steps: int, stratified: bool) -> None:
    """Trap 4 and (6): t is uniform on {2..T}/T, T itself included."""
    n = 20_000
    t = draw_times(TIMES["uniform"], n, stream(0, "times"), stratified=stratified, steps=steps)
    values, counts = t.unique(return_counts=True)
    assert torch.equal(
        values, torch.arange(2, steps + 1) / torch.tensor(steps, dtype=torch.float64)
    )
    assert (counts - n / (steps - 1)).abs().max() < (
        2 if stratified else 5 * np.sqrt(n / (steps - 1))
    )


def test_stratified_chain_times_are_all_of_them() -> None:
    t = draw_times(TIMES["uniform"], 999, stream(1, "times"), stratified=True, steps=1000)
    assert torch.equal(t.sort().values * 1000, torch.arange(2.0, 1001).double())
    assert not torch.equal(t, t.sort().values)


@pytest.mark.parametrize("count", [1, 2, 7, 128])
def test_stratified_times_cover_every_part(count: int) -> None:
    draws = [
        draw_times(TIMES["uniform"], count, stream(i, "t"), stratified=True, steps=None)
        for i in range(50)
    ]
    assert all(
        ((t * count).ceil().sort().values == torch.arange(1, count + 1)).all() for t in draws
    )
    assert all(len((t * count % 1).unique()) == count for t in draws)
    assert len({tuple(t.tolist()) for t in draws}) == 50
    assert torch.stack(draws).std(0).min() > 0.1  # no image has a part of its own


class Extremes:
    """A generator of the smallest and largest numbers that one can give."""

    def random(self, count: int) -> np.ndarray:
        return np.where(np.arange(count) % 2, 1 - 2.0**-53, 0.0)

    def permutation(self, count: int) -> np.ndarray:
        return np.arange(count)


@each_way
@pytest.mark.parametrize("steps", [None, 2, 1000])
@pytest.mark.parametrize("times", list(TIMES))
def test_times_are_never_0(times: str, steps: int | None, stratified: bool) -> None:
    t = draw_times(TIMES[times], 6, Extremes(), stratified=stratified, steps=steps)
    assert t.dtype == torch.float64
    assert ((t > 0) & (t <= 1)).all()
    assert steps is None or (t >= 2 / steps).all()


@pytest.mark.parametrize("times", list(TIMES))
def test_times_fall_as_u_rises(times: str) -> None:
    t = TIMES[times](torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1])
    assert (t.diff() < 0).all()


@pytest.mark.parametrize(("mean", "std"), [(0, 1), (-0.5, 1.5)])
def test_logit_normal_quantiles(mean: float, std: float) -> None:
    u = np.linspace(0.001, 0.999, 99)
    t = TIMES[f"logit-normal:mean={mean},std={std}"](torch.from_numpy(u))
    np.testing.assert_allclose(
        t.logit(), [NormalDist(mean, std).inv_cdf(1 - x) for x in u], rtol=1e-9, atol=1e-9
    )
