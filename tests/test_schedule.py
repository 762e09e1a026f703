"""Noise schedules against their papers' formulas, numpy and diffusers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers import close
from undiffuse.base.errors import UserError
from undiffuse.diffusion.schedule import (
    LOG_SNR_BOUND,
    SCHEDULES,
    chain,
    log_snr,
    noise_level,
    time_of,
)

PRESERVING = ["linear", "cosine", "sigmoid", "log-linear"]  # alpha^2 + sigma^2 = 1
T = [1, 2, 7, 50, 1000]


def times(*t: float) -> Tensor:
    return torch.tensor(t, dtype=torch.float64)


def alpha_bar_of(name: str, t: np.ndarray) -> np.ndarray:
    return SCHEDULES[name](torch.from_numpy(t))[0].numpy() ** 2


INSIDE = torch.linspace(0, 1, 2001, dtype=torch.float64)[1:-1]
PAGE, NEW = Path(__file__).parent.parent / "docs" / "extend.md", "quadratic"
each_schedule = pytest.mark.parametrize("name", [*SCHEDULES, NEW])


# Every schedule, with the one that the documentation adds


@pytest.fixture(autouse=True, scope="module")
def documented() -> Iterator[None]:
    (block,) = re.findall(r"\n(@SCHEDULES\.add\n.*?\n)\n\n", PAGE.read_text(), re.DOTALL)
    exec(block, {"SCHEDULES": SCHEDULES})  # noqa: S102 - the page asks the reader to type it in
    yield
    del SCHEDULES._functions[NEW]


@each_schedule
def test_from_data_to_noise(name: str) -> None:
    """x_0 is exactly the data. x_1 holds nearly none of it, or none."""
    alpha, sigma = SCHEDULES[name](times(0, 1))
    assert alpha[0] == 1
    assert sigma[0] == 0
    assert 0 <= alpha[1] < 0.01
    assert sigma[1] == pytest.approx(1, abs=1e-4)


@each_schedule
def test_log_snr_falls(name: str) -> None:
    level = log_snr(*SCHEDULES[name](torch.cat([times(0, 1e-9, 1e-6), INSIDE, times(1 - 1e-6, 1)])))
    assert level.dtype == torch.float64
    assert level[0] == torch.inf
    assert (level[1:] < level[:-1]).all()


@each_schedule
def test_time_of_is_the_inverse(name: str) -> None:
    schedule, t = SCHEDULES[name], torch.cat([times(0, 1e-6), INSIDE, times(1 - 1e-6, 1)])
    torch.testing.assert_close(time_of(schedule, log_snr(*schedule(t))), t, rtol=1e-9, atol=1e-12)
    assert time_of(schedule, times(200, -200)).tolist() == pytest.approx([0, 1], abs=1e-15)


@each_schedule
def test_noise_level_is_clamped_only_where_networks_see_it(name: str) -> None:
    """Trap 8. At t = 0 and 1 only the log-SNR is bounded, at 14 or more, not alpha and sigma."""
    t = torch.linspace(0, 1, 501)
    level = noise_level(SCHEDULES[name], t)
    alpha, sigma = SCHEDULES[name](t.double())
    assert torch.equal(level.alpha, alpha)
    assert torch.equal(level.sigma, sigma)
    assert torch.equal(level.log_snr, log_snr(alpha, sigma).clamp(-LOG_SNR_BOUND, LOG_SNR_BOUND))
    assert LOG_SNR_BOUND >= 14
    assert level.log_snr.isfinite().all()


@pytest.mark.parametrize("name", PRESERVING)
def test_variance_is_preserved(name: str) -> None:
    alpha, sigma = SCHEDULES[name](torch.cat([times(0), INSIDE, times(1)]))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha), rtol=0, atol=1e-14)


# Each by its formula


@pytest.mark.parametrize(("beta_min", "beta_max"), [(1e-4, 0.02), (1e-3, 0.01)])
def test_linear_is_the_cumulative_product(beta_min: float, beta_max: float) -> None:
    expected = np.cumprod(1 - np.linspace(beta_min, beta_max, 1000))
    schedule = SCHEDULES[f"linear:beta_min={beta_min},beta_max={beta_max}"]
    alpha, sigma = schedule(torch.arange(1, 1001) / times(1000))
    np.testing.assert_allclose(alpha**2, expected, rtol=1e-12)
    np.testing.assert_allclose(sigma**2, 1 - expected, rtol=1e-11)
    between = schedule(times(0.4565))[0] ** 2
    assert between.item() == pytest.approx(np.sqrt(expected[455] * expected[456]), rel=1e-12)


def test_linear_is_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    expected = diffusers.DDPMScheduler(beta_schedule="linear").alphas_cumprod.numpy()
    np.testing.assert_allclose(chain(SCHEDULES["linear"], 1000).alpha_bar, expected, rtol=1e-5)


@pytest.mark.parametrize("s", [0.008, 0.1])
def test_cosine_is_nichol_and_dhariwal(s: float) -> None:
    t = np.linspace(0, 1, 501)
    f = np.cos((t + s) / (1 + s) * np.pi / 2) ** 2
    np.testing.assert_allclose(alpha_bar_of(f"cosine:s={s}", t), f / f[0], rtol=1e-12, atol=1e-30)


@pytest.mark.parametrize(("start", "end", "tau"), [(-3, 3, 1), (0, 3, 0.3), (-3, 3, 1.1)])
def test_sigmoid_is_jabri_et_al(start: float, end: float, tau: float) -> None:
    t = np.linspace(0, 1, 501)
    v = 1 / (1 + np.exp(-(start + t * (end - start)) / tau))
    expected = (v[-1] - v) / (v[-1] - v[0])
    found = alpha_bar_of(f"sigmoid:start={start},end={end},tau={tau}", t)
    np.testing.assert_allclose(found, expected, atol=1e-13)


def test_flow_is_a_straight_line() -> None:
    alpha, sigma = SCHEDULES["flow"](INSIDE)
    assert torch.equal(alpha, 1 - INSIDE)
    assert torch.equal(sigma, INSIDE)


def test_log_linear_is_a_line_in_log_snr() -> None:
    level = log_snr(*SCHEDULES["log-linear:snr_max=9,snr_min=-5"](INSIDE))
    torch.testing.assert_close(level, 9 - 14 * INSIDE, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("linear:beta_min=0", "0 < beta_min <= beta_max < 1"),
        ("linear:beta_max=1", "0 < beta_min <= beta_max < 1"),
        ("linear:beta_min=0.03", "0 < beta_min <= beta_max < 1"),
        ("sigmoid:start=3", r"start \(3.0\) and end \(3.0\) must differ"),
    ],
)
def test_impossible_parameters(spec: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        SCHEDULES[spec](times(0.5))


# The handout's chain


@each_schedule
def test_chain_tables(name: str) -> None:
    for steps in T:
        tables, case = chain(SCHEDULES[name], steps), f"{steps} steps"
        expected = np.arange(1, steps + 1) / steps
        np.testing.assert_allclose(tables.t, expected, rtol=1e-15, err_msg=case)
        alpha, sigma = SCHEDULES[name](tables.t)
        snr = tables.alpha_bar / (1 - tables.alpha_bar)
        close(snr, (alpha / sigma) ** 2, 1e-9, case, absolute=0)
        close(tables.alpha.cumprod(0), tables.alpha_bar, 1e-10, case, absolute=1e-40)
        close(tables.beta, 1 - tables.alpha, 0, case, absolute=1e-16)
        assert ((tables.beta > 0) & (tables.beta <= 1)).all(), case


def test_chain_of_ho_et_al() -> None:
    tables = chain(SCHEDULES["linear"], 1000)
    np.testing.assert_allclose(tables.beta, np.linspace(1e-4, 0.02, 1000), rtol=0, atol=1e-14)


@each_schedule
def test_every_chain_ends_in_the_same_noise(name: str) -> None:
    """Trap 7. A chain of fewer steps neither keeps the betas nor scales them beyond 1."""
    assert len({chain(SCHEDULES[name], steps).alpha_bar[-1].item() for steps in T}) == 1


def test_cosine_ends_in_pure_noise() -> None:
    """Trap 8. Its last beta is 1, and t is not cut short to avoid that."""
    tables = chain(SCHEDULES["cosine"], 1000)
    assert tables.beta[-1] == 1
    assert tables.beta[-2] < 1
    assert tables.alpha_bar[-1] < 1e-30


@pytest.mark.parametrize("steps", [0, -3])
def test_no_chain_without_steps(steps: int) -> None:
    with pytest.raises(UserError, match=f"steps must be at least 1, not {steps}"):
        chain(SCHEDULES["linear"], steps)
