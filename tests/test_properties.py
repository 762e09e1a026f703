"""What holds for any schedule, times, shape and order. Hypothesis looks for counterexamples.

`make test` tries the same examples each time. `make properties` tries new ones, many times more.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from helpers import USABLE_GRIDS, close, possible
from undiffuse.base import rng
from undiffuse.base.errors import UserError
from undiffuse.base.tensors import load_tensors, save_tensors
from undiffuse.data.batches import batch_indices
from undiffuse.diffusion import process
from undiffuse.diffusion.denoiser import PREDICTIONS, Denoiser
from undiffuse.diffusion.grids import time_grid
from undiffuse.diffusion.objectives.denoising import denoising_batch
from undiffuse.diffusion.sampling import Sampling, sample
from undiffuse.diffusion.schedule import SCHEDULES, chain, log_snr, time_of
from undiffuse.diffusion.step import SAMPLERS
from undiffuse.diffusion.times import TIMES, sample_times
from undiffuse.diffusion.weightings import WEIGHTINGS
from undiffuse.measuring import distances
from undiffuse.training.clock import lr_factor, snapshot_steps
from undiffuse.training.records import Cooldown, Rollback


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False).map(lambda x: round(x, 6))


schedules = st.one_of(
    st.sampled_from(list(SCHEDULES)),
    st.builds("cosine:s={}".format, numbers(0, 0.2)),
    st.builds("linear:beta_min={},beta_max={}".format, numbers(1e-5, 1e-3), numbers(2e-3, 0.1)),
    st.builds(
        "sigmoid:start={},end={},tau={}".format,
        numbers(-4, -0.5),
        numbers(0.5, 4),
        numbers(0.5, 2),
    ),
    st.builds("log-linear:snr_max={},snr_min={}".format, numbers(2, 20), numbers(-20, -2)),
)
"""Specs of schedules that make a diffusion model."""

predictions = st.sampled_from([*PREDICTIONS, "edm:sigma_data=0.2", "edm:sigma_data=2"])
steps = st.integers(1, 40)
seeds = st.integers(0, 2**63 - 1)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))
dtypes = st.sampled_from([torch.float32, torch.float64])


def times_of(
    count: int, stream: np.random.Generator, *, stratified: bool, steps: int | None = None
) -> Tensor:
    return sample_times(TIMES["uniform"], count, stream, stratified=stratified, steps=steps)


def at(schedule: str, t: float) -> tuple[Tensor, Tensor]:
    """alpha(t) and sigma(t), as tensors."""
    alpha, sigma = SCHEDULES[schedule](torch.tensor(t, dtype=torch.float64))
    return alpha, sigma


# The mathematics


@given(schedules, st.lists(st.floats(0, 1), min_size=2, max_size=50, unique=True))
def test_a_schedule_falls_from_the_data_to_noise(schedule: str, times: list[float]) -> None:
    t = torch.tensor(sorted(times), dtype=torch.float64)
    alpha, sigma = SCHEDULES[schedule](t)
    assert ((alpha >= 0) & (alpha <= 1) & (sigma >= 0) & (sigma <= 1)).all()
    apart = t.diff() > 1e-6
    assert (log_snr(alpha, sigma).diff()[apart] < 0).all()
    assert at(schedule, 0) == (1, 0)


@given(schedules, st.floats(1e-3, 0.999))
def test_the_time_of_a_log_snr_is_the_inverse(schedule: str, t: float) -> None:
    found = time_of(SCHEDULES[schedule], log_snr(*at(schedule, t)))
    assert found.item() == pytest.approx(t, abs=1e-9)


@given(schedules, st.integers(1, 300))
def test_the_chains_tables_belong_together(schedule: str, length: int) -> None:
    """alpha_bar_i is the product of the alphas, and beta_i lies in (0, 1]."""
    tables = chain(SCHEDULES[schedule], length)
    assert torch.allclose(tables.alpha.cumprod(0), tables.alpha_bar, atol=1e-12)
    assert ((tables.beta > 0) & (tables.beta <= 1)).all()


ordered = (
    st.lists(st.floats(0.001, 1), min_size=3, max_size=3)
    .map(sorted)
    .filter(lambda t: min(b - a for a, b in pairwise(t)) > 9e-4)
)
"""Three times that rise. x_0 has no noise, so time 0 is not among them."""


def also_at_the_ends(test: Callable[..., None]) -> Callable[..., None]:
    """Every schedule is always tried with times that are close, at the ends too."""
    for schedule in SCHEDULES:
        for times in (
            [0.001, 0.002, 0.3],
            [0.2, 0.21, 0.3],
            [0.3, 0.8, 0.9],
            [0.05, 0.999, 1.0],
        ):
            test = example(schedule, times)(test)
    return test


@also_at_the_ends
@given(schedules, ordered)
def test_two_steps_of_noise_are_one(schedule: str, times: list[float]) -> None:
    """The steps (1) from r to s and from s to t are one step from r to t.

    The step from the data to s, then to t, is the jump (3)."""
    r, s, t = (at(schedule, time) for time in times)
    factor_1, variance_1 = process.step_kernel(*r, *s)
    factor_2, variance_2 = process.step_kernel(*s, *t)
    factor, variance = process.step_kernel(*r, *t)
    close(factor_1 * factor_2, factor, 1e-12)
    close(factor_2**2 * variance_1 + variance_2, variance, 1e-12)
    one = torch.ones((), dtype=torch.float64)
    for alpha, sigma in (r, s, t):
        factor, variance = process.step_kernel(one, one * 0, alpha, sigma)
        close(factor, alpha, 1e-12)
        close(variance, sigma**2, 1e-12)


@also_at_the_ends
@given(schedules, ordered)
def test_the_posterior_is_by_bayes_rule(schedule: str, times: list[float]) -> None:
    """q(x_s | x_t, x_0) ~ q(x_t | x_s) q(x_s | x_0), a product of Gaussians.

    Their precisions add up, and weigh the means."""
    x_t, x_0 = torch.tensor([[1.7, -0.3], [0.6, -1.0]], dtype=torch.float64)
    for s, t in combinations(times, 2):
        (alpha_s, sigma_s), (alpha_t, sigma_t) = at(schedule, s), at(schedule, t)
        ratio = alpha_t / alpha_s
        var_ts = sigma_t**2 - ratio**2 * sigma_s**2
        precision = ratio**2 / var_ts + 1 / sigma_s**2
        mean = (ratio / var_ts * x_t + alpha_s / sigma_s**2 * x_0) / precision
        posterior = process.posterior(alpha_s, sigma_s, alpha_t, sigma_t)
        close(posterior.variance, 1 / precision, 1e-12, (s, t))
        close(posterior.mean(x_t, x_0), mean, 1e-12, (s, t))


@given(
    schedules,
    predictions,
    st.sampled_from(list(WEIGHTINGS)),
    shapes,
    dtypes,
    st.integers(1, 5),
    seeds,
)
def test_the_target_is_what_gives_the_image_back(
    schedule: str,
    prediction: str,
    weighting: str,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    n: int,
    seed: int,
) -> None:
    """A network whose output is the training target is a denoiser that returns x_0."""
    if not possible(schedule, prediction):
        return
    x_0 = rng.normal((n, *shape), seed, "x_0").to(dtype).clamp(-1, 1)
    noise = rng.normal((n, *shape), seed, "noise").to(dtype)
    t = times_of(n, rng.stream(seed, "t"), stratified=True).clamp(0.02, 0.98)
    denoiser = Denoiser(lambda *_: x_0, schedule, prediction, shape)
    batch = denoising_batch(denoiser, WEIGHTINGS[weighting], x_0, noise, t)
    assert batch.weight.isfinite().all()
    assert (batch.weight > 0).all()
    denoiser = Denoiser(lambda *_: batch.target, schedule, prediction, shape)
    level = denoiser.noise_level(t)
    x_t = process.jump(x_0, noise, level.alpha, level.sigma)
    c_skip, c_out, c_in = (process.expand(c, x_0) for c in denoiser.coefficients(level))
    scale = (c_skip.abs() * x_t.abs() + c_out.abs() * batch.target.abs()).amax().item()
    precision = 1e-6 if dtype == torch.float32 else 1e-13
    assert torch.allclose(denoiser(x_t, t), x_0, atol=precision * scale)
    assert torch.allclose(batch.x, c_in * x_t)


@given(schedules, st.sampled_from([*USABLE_GRIDS, "log-snr:high=6", "karras:rho=3"]), steps)
def test_a_grid_falls_from_one_to_zero_or_is_refused(schedule: str, grid: str, count: int) -> None:
    try:
        times = time_grid(grid, schedule, count)
    except UserError:
        assert grid != "uniform"
        return
    assert len(times) == count + 1
    assert (times[0], times[-1]) == (1, 0)
    assert (times.diff() < 0).all()


@given(schedules, st.sampled_from([*SAMPLERS, "ddim:eta=0.3", "ddim:eta=1"]), steps, shapes, seeds)
def test_every_sampler_ends_in_the_only_image_there_is(
    schedule: str, sampler: str, count: int, shape: tuple[int, int, int], seed: int
) -> None:
    """Where all data are one image, the perfect denoiser always returns it."""
    image = rng.normal(shape, seed, "image").clamp(-1, 1)
    denoiser = Denoiser(lambda x, *_: image.expand_as(x), schedule, "x0", shape)
    found = sample(denoiser, [0, 7], Sampling(sampler, count, seed=seed))
    assert torch.allclose(found, image.expand_as(found), atol=1e-5)


@given(
    st.integers(0, 400),
    st.lists(st.integers(0, 200), max_size=4).map(sorted),
    st.lists(st.integers(0, 400), max_size=4),
)
def test_the_learning_rate_never_rises_after_the_warm_up(
    warmup: int, decided: list[int], cuts: list[int]
) -> None:
    decisions = [
        Cooldown(step, 0.0, step, step + 50 + 30 * k)
        for k, step in enumerate(dict.fromkeys(decided))
    ]
    factors = [
        lr_factor(s, warmup, decisions, [Rollback(step, 0.0, step + 1, "") for step in cuts])
        for s in range(500)
    ]
    assert all(0 <= factor <= 1 for factor in factors)
    assert all(b <= a + 1e-12 for a, b in pairwise(factors[warmup:]))


@given(st.integers(1, 100_000), st.integers(2, 40))
def test_snapshots_rise_from_the_first_step_to_the_last(last: int, count: int) -> None:
    found = snapshot_steps(last, count)
    assert (found[0], found[-1]) == (0, last)
    assert all(a < b for a, b in pairwise(found))
    assert len(found) <= count


# Randomness is a function of where it is used


@given(
    seeds,
    st.lists(st.integers(0, 2**60), min_size=1, max_size=8, unique=True),
    shapes,
    st.randoms(use_true_random=False),
)
def test_noise_belongs_to_the_sample_and_not_to_the_batch(
    seed: int, samples: list[int], shape: tuple[int, int, int], chance: Any
) -> None:
    whole = rng.normal_each(samples, shape, seed, "start", 0)
    order = list(range(len(samples)))
    chance.shuffle(order)
    shuffled = rng.normal_each([samples[i] for i in order], shape, seed, "start", 0)
    assert torch.equal(shuffled, whole[order])
    for own, noise in zip(samples, whole, strict=True):
        assert torch.equal(noise, rng.normal(shape, seed, "start", 0, own))


@given(st.integers(1, 70), st.integers(1, 100), seeds)
def test_every_epoch_is_a_permutation(n: int, batch: int, seed: int) -> None:
    epochs = 3
    count = -(-epochs * n // batch)
    batches = [batch_indices(n, batch, step, seed) for step in range(count)]
    assert all(found.shape == (batch,) and found.dtype == torch.int64 for found in batches)
    rows = torch.cat(batches)
    for epoch in rows[: epochs * n].split(n):
        assert epoch.sort().values.tolist() == list(range(n))


@given(st.integers(1, 5), st.integers(1, 300), st.integers(0, 300), seeds)
def test_a_stratified_batch_has_one_time_in_each_part(
    one: int, count: int, chain_steps: int, seed: int
) -> None:
    t = times_of(count, rng.stream(seed, "t", one), stratified=True)
    assert sorted((t * count).ceil().int().tolist()) == list(range(1, count + 1))
    if chain_steps >= 2:
        t = times_of(count, rng.stream(seed, "t"), stratified=False, steps=chain_steps)
        i = t * chain_steps
        assert torch.allclose(i, i.round())
        assert ((i > 1.5) & (i < chain_steps + 0.5)).all()


# Metrics


@given(st.integers(2, 6), st.integers(8, 40), seeds, st.floats(-3, 3))
def test_the_frechet_distance_is_a_distance_of_gaussians(
    width: int, n: int, seed: int, shift: float
) -> None:
    """It is 0 to itself, symmetric, and the same after a rotation of both.

    To a shifted sample it is |shift|^2."""
    x, y = (rng.normal((n, width), seed, name).double() for name in "xy")
    rotation, _ = np.linalg.qr(rng.normal((width, width), seed, "rotation").double().numpy())
    rotation = torch.from_numpy(rotation)
    of = [distances.moments(z) for z in (x, y, x @ rotation, y @ rotation, x + shift)]
    distance = distances.frechet(of[0], of[1])
    assert distance >= -1e-9
    assert distances.frechet(of[0], of[0]) == pytest.approx(0, abs=1e-6)
    assert distances.frechet(of[1], of[0]) == pytest.approx(distance, rel=1e-6, abs=1e-6)
    assert distances.frechet(of[2], of[3]) == pytest.approx(distance, rel=1e-6, abs=1e-6)
    assert distances.frechet(of[0], of[4]) == pytest.approx(width * shift**2, rel=1e-6, abs=1e-6)


# Files


names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=12)
tensors = st.dictionaries(
    names,
    st.builds(
        lambda shape, dtype, seed: (100 * rng.normal(shape, seed, "tensor")).to(dtype),
        st.lists(st.integers(0, 4), max_size=4),
        st.sampled_from(
            [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8, torch.int64]
        ),
        seeds,
    ),
    max_size=5,
)


@given(tensors, st.dictionaries(names.filter(lambda name: name != "sha256"), names, max_size=3))
def test_any_tensors_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Tensor], metadata: dict[str, str]
) -> None:
    path = tmp_path_factory.mktemp("files") / "x"
    save_tensors(path, content, metadata)
    found, beside = load_tensors(path)
    assert found.keys() == content.keys()
    for name, tensor in content.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
    assert metadata.items() <= beside.items()
