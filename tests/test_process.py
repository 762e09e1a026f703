"""Equations (1) to (5) against the handout's own notation and diffusers.

test_properties.py tests Bayes' rule for any schedule and times, and that two steps are one.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers import PRESERVING, close
from undiffuse.diffusion import process
from undiffuse.diffusion.schedule import SCHEDULES, NoiseLevel, chain, noise_level

PAIRS = [(0.001, 0.002), (0.0, 0.3), (0.2, 0.21), (0.3, 0.8), (0.05, 1.0), (0.999, 1.0)]  # s < t
X_0, EPS, OTHER = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 2, 1, 3, 3)))
each_schedule = pytest.mark.parametrize("name", list(SCHEDULES))
each_preserving = pytest.mark.parametrize("name", PRESERVING)


def level(name: str, t: float) -> NoiseLevel:
    return noise_level(SCHEDULES[name], torch.tensor(t, dtype=torch.float64))


def levels(name: str, s: float, t: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """alpha_s, sigma_s, alpha_t, sigma_t"""
    return *level(name, s)[:2], *level(name, t)[:2]


# Forward: (1), (2), (3)


@each_schedule
def test_noise_of_all_steps_together(name: str) -> None:
    """(2) T times. The response to x_0 and to the noise of each step is measured one by one."""
    for steps in (1, 7, 50):
        sources = torch.eye(steps + 1, dtype=torch.float64)  # sample k: only source k is 1
        x = sources.reshape(steps + 1, 1, 1, steps + 1)
        x_t, noises = x[..., :1], x[..., 1:].unbind(-1)
        for i, noise in enumerate(noises):
            x_t = process.step(x_t, noise[..., None], *levels(name, i / steps, (i + 1) / steps))
        on_x_0, *on_noise = x_t.flatten()
        end, case = level(name, 1.0), f"{steps} steps"
        close(on_x_0, end.alpha, 1e-12, case)
        close(torch.stack(on_noise).square().sum(), end.sigma**2, 1e-12, case)


@each_preserving
def test_step_is_the_handouts(name: str) -> None:
    """(2) with the square root that the handout lacks.

    x_i = sqrt(alpha_i) x_(i-1) + sqrt(1 - alpha_i) eps."""
    tables = chain(SCHEDULES[name], 50)
    for i in (1, 2, 25, 49):
        x = process.step(X_0, EPS, *levels(name, i / 50, (i + 1) / 50))
        alpha = tables.alpha[i]
        close(x, alpha.sqrt() * X_0 + (1 - alpha).sqrt() * EPS, 1e-9, f"i = {i}")


@each_preserving
def test_jump_is_the_handouts(name: str) -> None:
    """(3) with x_0 and the square root that the handout lacks.

    Each image of a batch has its own time."""
    t = torch.tensor([0.02, 0.5], dtype=torch.float64)
    x_t = process.jump(X_0, EPS, *noise_level(SCHEDULES[name], t)[:2])
    alpha_bar = chain(SCHEDULES[name], 50).alpha_bar[[0, 24]].view(2, 1, 1, 1)
    close(x_t, alpha_bar.sqrt() * X_0 + (1 - alpha_bar).sqrt() * EPS, 1e-12)


@each_schedule
def test_eps_is_what_the_jump_added(name: str) -> None:
    for t in (0.01, 0.5, 1.0):
        alpha, sigma, _ = level(name, t)
        x_t = process.jump(X_0, EPS, alpha, sigma)
        close(process.eps_from(x_t, X_0, alpha, sigma), EPS, 1e-9, f"t = {t}")


# Backward: (4), (5)


@each_preserving
def test_posterior_is_the_handouts(name: str) -> None:
    for steps in (2, 7, 50, 1000):
        tables = chain(SCHEDULES[name], steps)
        alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), tables.alpha_bar])
        for i in {1, 2, steps // 2 + 1, steps}:
            alpha_i, bar, before = tables.alpha[i - 1], alpha_bar[i], alpha_bar[i - 1]
            posterior = process.posterior(*levels(name, (i - 1) / steps, i / steps))
            mu = alpha_i.sqrt() * (1 - before) * EPS + before.sqrt() * (1 - alpha_i) * X_0
            case = f"step {i} of {steps}"
            close(posterior.mean(EPS, X_0), mu / (1 - bar), 1e-9, case)
            close(posterior.variance, (1 - alpha_i) * (1 - before) / (1 - bar), 1e-9, case)


@each_schedule
def test_the_last_step_is_exactly_x_0(name: str) -> None:
    """Trap 5."""
    for t in (1e-6, 0.001, 0.5, 1.0):
        posterior = process.posterior(*levels(name, 0.0, t))
        assert torch.equal(posterior.mean(EPS, X_0), X_0), f"t = {t}"
        assert posterior.variance == 0, f"t = {t}"


@each_schedule
def test_eps_form_of_the_mean_is_its_x_0_form(name: str) -> None:
    """Trap 10. The eps-form is (12) of Song et al. 2021 (arXiv:2010.02502).

    Its variance is the posterior's own."""
    for s, t in PAIRS:
        alpha_s, sigma_s, alpha_t, sigma_t = levels(name, s, t)
        posterior = process.posterior(alpha_s, sigma_s, alpha_t, sigma_t)
        x_t = process.jump(X_0, EPS, alpha_t, sigma_t)
        remaining = (sigma_s**2 - posterior.variance).clamp(min=0)
        close(posterior.mean(x_t, X_0), alpha_s * X_0 + remaining.sqrt() * EPS, 1e-9, (s, t))


@each_schedule
def test_the_posterior_undoes_a_step(name: str) -> None:
    """Sample x_t from x_0, then x_s from the posterior: x_s has the mean and variance of time s."""
    for s, t in PAIRS:
        alpha_s, sigma_s, alpha_t, sigma_t = levels(name, s, t)
        posterior = process.posterior(alpha_s, sigma_s, alpha_t, sigma_t)
        close(posterior.on_x_0 + posterior.on_x_t * alpha_t, alpha_s, 1e-9, (s, t))
        variance = posterior.variance + (posterior.on_x_t * sigma_t) ** 2
        close(variance, sigma_s**2, 1e-9, (s, t))


# diffusers, whose step k is our time (k + 1) / 1000


def test_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(
        prediction_type="sample", clip_sample=False, variance_type="fixed_small"
    )
    # In float32, 1 - 0.9999 has three digits.
    theirs.alphas_cumprod = (1 - theirs.betas.double()).cumprod(0)
    for k in (0, 1, 2, 100, 500, 998, 999):
        alpha_s, sigma_s, alpha_t, sigma_t = levels("linear", k / 1000, (k + 1) / 1000)
        posterior = process.posterior(alpha_s, sigma_s, alpha_t, sigma_t)
        x_t = process.jump(X_0, EPS, alpha_t, sigma_t)
        close(x_t, theirs.add_noise(X_0, EPS, torch.tensor([k])), 1e-5, f"k = {k}")
        close(posterior.variance, theirs._get_variance(k), 1e-5, f"k = {k}")

        def generator(k: int = k) -> torch.Generator:
            return torch.Generator().manual_seed(k)

        noise = torch.randn(x_t.shape, generator=generator(), dtype=torch.float64)
        x_s = theirs.step(OTHER, k, x_t, generator=generator()).prev_sample
        ours = posterior.mean(x_t, OTHER) + posterior.variance.sqrt() * noise
        close(ours, x_s, 1e-5, f"k = {k}")
