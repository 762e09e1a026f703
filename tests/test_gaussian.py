"""Sampling against data whose perfect denoiser is known: Gaussian pixels, and a mixture.

For Gaussian pixels E[x_0 | x_t] is linear, so every sampler is an affine map of its noises. The
tests measure that map exactly, without a random number. They compare it with the papers' formulas,
which are written here once more in the handout's alpha_bar. The map's offset is the samples' mean,
and the length of its responses is their standard deviation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers import PRESERVING, USABLE_GRIDS, at, close, covering, possible, toy
from textbook import M, S, Way
from undiffuse.base import rng
from undiffuse.base.errors import UserError
from undiffuse.diffusion import process
from undiffuse.diffusion.conditioning import Conditioning
from undiffuse.diffusion.denoiser import PREDICTIONS, Denoiser
from undiffuse.diffusion.grids import GRIDS, fitted_times, time_grid
from undiffuse.diffusion.multistep import moments as moments_of
from undiffuse.diffusion.sampling import Sampling, network_calls, sample, steps_within, trajectory
from undiffuse.diffusion.schedule import LOG_SNR_BOUND, SCHEDULES, chain, log_snr
from undiffuse.diffusion.step import REMEMBERED, SAMPLERS, Past, Step
from undiffuse.diffusion.walk import Frame

TEXTBOOK = [*SAMPLERS, "ddim:eta=0.5", "ddim:eta=1", "unipc:order=2", "deis:order=2"]
# Trap 11: (7), and (8) as printed. A denoiser is no consistency model.
TOO_NARROW = ["posterior-mean", "ddpm-printed", "consistency"]
# Of the others, what holds for them beyond their formula is tested with fewer schedules.
BASIC = [
    sampler
    for sampler in TEXTBOOK
    if SAMPLERS.function(sampler.partition(":")[0]).__module__ == "undiffuse.diffusion.samplers"
]
FURTHER = [sampler for sampler in TEXTBOOK if sampler not in BASIC]
FAITHFUL = [sampler for sampler in BASIC if sampler not in TOO_NARROW]
GROWING = "growing"  # a schedule that the package lacks: alpha stays 1, and sigma grows to 80
EVERY_SCHEDULE = [*SCHEDULES, GROWING]
EVEN = ("uniform", "fitted:times=1/0.6/0")  # the steps of t are nearly equal

Perfect = Callable[[Tensor, Tensor, Tensor], Tensor]
Measure = Callable[..., np.ndarray]


# Cases: every sampler with every schedule, and every other pair, but not every combination


def allowed(sampler: str, schedule: str, prediction: str, grid: str) -> bool:
    """The handout prints its (8) for alpha^2 + sigma^2 = 1 only."""
    printed_for = sampler != "ddpm-printed" or schedule in PRESERVING
    return printed_for and (schedule == GROWING or possible(schedule, prediction))


def converging(sampler: str, schedule: str, prediction: str, grid: str) -> bool:
    """Equal steps of t are too coarse at the end of a sigma that grows to 80."""
    coarse = schedule == GROWING and grid in EVEN
    return allowed(sampler, schedule, prediction, grid) and not coarse


OTHERS = EVERY_SCHEDULE, list(PREDICTIONS), USABLE_GRIDS
CASES = covering(TEXTBOOK, *OTHERS, allowed=allowed)
FAITHFUL_CASES = covering(FAITHFUL, *OTHERS, allowed=converging)
MIXTURE_CASES = covering(BASIC, *OTHERS, allowed=converging)
PARAMETERS = ("sampler", "schedule", "prediction", "grid")


def test_the_cases_hold_every_pair_that_is_coupled() -> None:
    """A sampler sees the noise levels, which schedule and grid decide together."""
    for cases, samplers in (
        (CASES, TEXTBOOK),
        (FAITHFUL_CASES, FAITHFUL),
        (MIXTURE_CASES, BASIC),
    ):
        met = {(sampler, schedule) for sampler, schedule, _, _ in cases}
        assert met == {
            (sampler, schedule)
            for sampler in samplers
            for schedule in EVERY_SCHEDULE
            if sampler != "ddpm-printed" or schedule in PRESERVING
        }
        met = {(schedule, grid) for _, schedule, _, grid in cases}
        assert met >= {(s, g) for s in EVERY_SCHEDULE for g in USABLE_GRIDS} - {
            (GROWING, grid) for grid in EVEN
        }
        met = {(sampler, prediction) for sampler, _, prediction, _ in cases}
        assert met == {(sampler, p) for sampler in samplers for p in PREDICTIONS}
        assert len(cases) < len(samplers) * len(EVERY_SCHEDULE) * 1.2  # and no product of all


# What is called


def sample_images(
    denoiser: Denoiser, samples: Sequence[int], *, classes: Tensor | None = None, **options: Any
) -> Tensor:
    return sample(denoiser, samples, Sampling(**options), classes=classes)


def frames_of(
    denoiser: Denoiser, samples: Sequence[int], *, classes: Tensor | None = None, **options: Any
) -> list[Frame]:
    return list(trajectory(denoiser, samples, Sampling(**options), classes=classes))


@pytest.fixture(autouse=True)
def growing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCHEDULES._functions, GROWING, lambda t: (torch.ones_like(t), 80 * t))


def gaussian(x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """E[x_0 | x_t] where x_0 ~ N(M, S^2)."""
    m, s = torch.from_numpy(M), torch.from_numpy(S)
    return m + alpha * s**2 / (alpha**2 * s**2 + sigma**2) * (x_t - alpha * m)


def perfect(
    denoised: Perfect, schedule: str, prediction: str = "v", shape: tuple[int, int, int] = (1, 1, 2)
) -> Denoiser:
    """A denoiser that returns exactly denoised(x_t, alpha, sigma).

    Its network sees only c_in x_t and the log-SNR. So it works in units in which
    alpha^2 + sigma^2 = 1."""

    def network(x: Tensor, level: Tensor, condition: Tensor | None) -> Tensor:
        level = level.masked_fill(level <= -LOG_SNR_BOUND, -torch.inf)  # the clamp hides pure noise
        alpha, sigma = level.sigmoid().sqrt(), level.neg().sigmoid().sqrt()
        c_skip, c_out, c_in = (process.expand(c, x) for c in PREDICTIONS[prediction](alpha, sigma))
        x_t = x / c_in
        x_0 = denoised(x_t, process.expand(alpha, x), process.expand(sigma, x))
        return (x_0 - c_skip * x_t) / c_out

    return Denoiser(network, schedule, prediction, shape)


def impulses(
    samples: Sequence[int], shape: Sequence[int], seed: int, purpose: str, step: int
) -> Tensor:
    """A replacement for normal noise.

    Sample 0 gets none. Sample 1 gets a unit at the start, and sample k + 2 a unit at step k."""
    hit = torch.tensor(samples) == {"start": 1, "sampling": step + 2}[purpose]
    return hit.double()[:, None, None, None].expand(-1, *shape)


@pytest.fixture
def affine(monkeypatch: pytest.MonkeyPatch) -> Measure:
    """(denoiser, steps, options) -> (steps + 2, 2).

    The rows are the offset, the response to the start, and to the noise of step 0, 1, ..."""
    monkeypatch.setattr(rng, "normal_each", impulses)

    def measure(denoiser: Denoiser, steps: int, **options: str) -> np.ndarray:
        sources = range(steps + 2)
        x = sample_images(denoiser, sources, steps=steps, clip=False, **options)
        x = x.reshape(steps + 2, 2).numpy()
        return np.concatenate([x[:1], x[1:] - x[0]])

    return measure


def moments(affine_map: np.ndarray) -> np.ndarray:
    """(2, 2): mean and standard deviation of each pixel."""
    return np.stack([affine_map[0], np.sqrt((affine_map[1:] ** 2).sum(0))])


# The samplers do what their papers say


def alpha_bars(schedule: str, grid: str, steps: int) -> np.ndarray:
    alpha, sigma = SCHEDULES[schedule](time_grid(grid, schedule, steps))
    return (alpha**2 / (alpha**2 + sigma**2)).numpy()


def textbook(sampler: str, schedule: str, grid: str, steps: int) -> np.ndarray:
    """The affine map by the papers' formulas.

    The units are those in which x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps."""

    def bar_at(t: float) -> float:
        alpha, sigma = at(schedule, t)
        return alpha**2 / (alpha**2 + sigma**2)

    times = time_grid(grid, schedule, steps).tolist()
    way = Way(alpha_bars(schedule, grid, steps), bar_at, times)
    return way.run(sampler.partition(":")[0], **SAMPLERS.options(sampler))


@pytest.mark.parametrize(PARAMETERS, CASES)
def test_samplers_do_what_their_papers_say(
    affine: Measure, sampler: str, schedule: str, prediction: str, grid: str
) -> None:
    denoiser = perfect(gaussian, schedule, prediction)
    for steps in (1, 2, 15):
        ours = affine(denoiser, steps, sampler=sampler, grid=grid)
        theirs = textbook(sampler, schedule, grid, steps)
        for found, expected in ((ours, theirs), (moments(ours), moments(theirs))):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9, err_msg=f"{steps} steps")


@pytest.mark.parametrize("z", [-20.0, -1.0, -0.99, -1e-3, 1e-9, 0.5, 1.0, 8.0])
def test_the_integrals_of_the_exponential_integrators(z: float) -> None:
    """Against numerical quadrature, on both sides of where the formula changes."""
    points, by = np.polynomial.legendre.leggauss(80)
    v = (points + 1) / 2
    expected = [(by / 2 * np.exp(z * (1 - v)) * v**k).sum() for k in range(4)]
    found = moments_of(torch.tensor(z, dtype=torch.float64), 4)
    np.testing.assert_allclose(found, expected, rtol=1e-11)


@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        ("euler", 1), ("heun", 2), ("dpmpp-2m", 2), ("exp-ab:order=2", 2), ("exp-ab", 3),
        ("deis:order=2", 2), ("deis", 3), ("lms:order=2", 2), ("lms:order=3", 3), ("lms", 4),
        ("unipc:order=2", 3), ("unipc", 4), ("dpmpp-3m", 2), ("pndm", 4),
    ],
)  # fmt: skip
def test_the_order_of_each_solver(sampler: str, order: int) -> None:
    """The slope of log error against log steps, between two times, from exact starting values.

    The data are Gaussian, so the ODE's solution is known: each pixel keeps its place in units of
    the standard deviation. The steps are equal in what the method's polynomial is a function of."""
    schedule, denoiser = SCHEDULES["flow"], perfect(gaussian, "flow", "x0")
    in_rho = sampler.startswith(("lms", "pndm"))

    def position(t: float) -> float:
        """rho = sigma / alpha, or lambda = -log rho."""
        return t / (1 - t) if in_rho else -math.log(t / (1 - t))

    def time(position: Tensor) -> Tensor:
        rho = position if in_rho else (-position).exp()
        return rho / (1 + rho)

    def exact(t: Tensor) -> Tensor:
        """The solution (1, 1, 1, 2) that is one standard deviation above the mean."""
        alpha, sigma = schedule(t)
        m, s = torch.from_numpy(M), torch.from_numpy(S)
        return (alpha * m + (alpha**2 * s**2 + sigma**2).sqrt())[None, None, None]

    def denoised(x_t: Tensor, t: Tensor) -> Tensor:
        return denoiser(x_t, t[None])

    def error(steps: int) -> float:
        begin, end = position(0.75), position(0.25)
        each = (end - begin) / steps
        way = time(begin + each * torch.arange(-REMEMBERED, steps + 1, dtype=torch.float64))
        *before, first = way[: REMEMBERED + 1]
        history = tuple(
            Past(exact(t), denoised(exact(t), t), denoiser.noise_level(t)) for t in before[::-1]
        )
        x = exact(first)
        for t, s in pairwise(way[REMEMBERED:]):
            step = Step(
                denoised, lambda number=0: torch.zeros(()), x, t, s,
                denoiser.noise_level(t), denoiser.noise_level(s), schedule, steps, history,
            )  # fmt: skip
            x = SAMPLERS[sampler](step)
            history = (step.present, *history)[:REMEMBERED]
        return (x - exact(way[-1])).abs().max().item()

    counts = np.array([32, 48, 72, 108])
    errors = np.array([error(int(count)) for count in counts])
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope > order - (0.3 if order > 2 else 0.2), (slope, errors)
    if order < 4:
        assert slope < order + 0.8, (slope, errors)


# Whose samples are the data's


@pytest.mark.parametrize(PARAMETERS, FAITHFUL_CASES)
def test_more_steps_lead_to_the_data(
    affine: Measure, sampler: str, schedule: str, prediction: str, grid: str
) -> None:
    """An error of 0.0025 may remain: the schedule's signal at t = 1 and the grid's last step."""
    denoiser = perfect(gaussian, schedule, prediction)
    maps = [affine(denoiser, steps, sampler=sampler, grid=grid) for steps in (25, 100, 400)]
    errors = [np.abs(moments(found) - [M, S]).max() for found in maps]
    assert errors[1] < max(errors[0] / 2, 0.0025)
    assert errors[2] < max(errors[1] / 2, 0.0025)
    assert errors[2] < 0.02


@pytest.mark.parametrize("sampler", [name for name in FURTHER if name not in TOO_NARROW])
def test_more_steps_of_further_samplers_lead_to_the_data(affine: Measure, sampler: str) -> None:
    test_more_steps_lead_to_the_data(affine, sampler, "cosine", "v", "uniform")


@pytest.mark.parametrize("sampler", [name for name in FURTHER if name not in TOO_NARROW])
def test_the_mixture_of_further_samplers(sampler: str) -> None:
    test_mixture(sampler, "cosine", "v", "uniform")


def consistent(x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The end of the ODE's path through x_t: the perfect consistency model of the Gaussian data."""
    m, s = torch.from_numpy(M), torch.from_numpy(S)
    return m + s * (x_t - alpha * m) / (alpha**2 * s**2 + sigma**2).sqrt()


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_consistency_model_needs_few_steps(affine: Measure, steps: int) -> None:
    found = moments(affine(perfect(consistent, "flow"), steps, sampler="consistency"))
    np.testing.assert_allclose(found, [M, S], atol=1e-9)


def test_each_restart_has_noise_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, normal_each = [], rng.normal_each

    def spy(samples: Sequence[int], shape: Sequence[int], *key: object) -> Tensor:
        asked.append(key)
        return normal_each(samples, shape, *key)

    monkeypatch.setattr(rng, "normal_each", spy)
    sample_images(TOY, [0], sampler="restart:times=3", steps=10, seed=3)
    noises = ("sampling", "sampling, noise 1", "sampling, noise 2")
    assert asked == [(3, "start", 0), *((3, purpose, 6) for purpose in noises)]


@pytest.mark.parametrize(
    ("sampler", "sentence"),
    [
        ("exp-ab:order=4", "order must be from 1 to 3, not 4"),
        ("lms:order=5", "order must be from 1 to 4, not 5"),
        ("unipc:order=1", "order must be 2 or 3, not 1"),
        ("heun-churn:churn=-1", "churn must be at least 0, not -1"),
        ("restart:low=0.5,high=0.4", "0 < low < high <= 1 does not hold"),
        ("restart:inner=0", "inner at least 1"),
    ],
)
def test_options_out_of_range(sampler: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        sample_images(TOY, [0], sampler=sampler, steps=5)


@pytest.mark.parametrize("schedule", ["flow", "log-linear"])
def test_order_of_convergence(affine: Measure, schedule: str) -> None:
    """With four times the steps, a first-order method's error falls fourfold.

    That of a second-order method falls up to sixteenfold."""

    def errors(sampler: str) -> np.ndarray:
        maps = [affine(perfect(gaussian, schedule), steps, sampler=sampler) for steps in (25, 100)]
        return np.abs([moments(found)[1] - S for found in maps])

    coarse, fine = errors("euler")
    assert np.all((coarse / fine > 3) & (coarse / fine < 5))
    for sampler in ("heun", "dpmpp-2m", "unipc", "deis", "lms", "exp-ab", "pndm"):
        coarse, finer = errors(sampler)
        assert np.all(coarse / finer > 6)
        assert np.all(finer < fine / 5)


@pytest.mark.parametrize("schedule", PRESERVING)
def test_the_handouts_samplers_are_too_narrow(affine: Measure, schedule: str) -> None:
    denoiser = perfect(gaussian, schedule)
    for steps in (10, 25, 100):
        for sampler, most in (("posterior-mean", 0.01), ("ddpm-printed", 0.5)):
            spread = moments(affine(denoiser, steps, sampler=sampler))[1]
            assert np.all(spread < most * S), f"{sampler}, {steps} steps"


WEIGHTS, MEANS, STDS = torch.tensor([[0.3, 0.7], [-0.6, 0.4], [0.1, 0.15]], dtype=torch.float64)


def mixture(x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """E[x_0 | x_t] where x_0 is N(MEANS[k], STDS[k]^2) with probability WEIGHTS[k]."""
    x_t, alpha, sigma = (
        x_t.double()[..., None],
        alpha.double()[..., None],
        sigma.double()[..., None],
    )
    variance = alpha**2 * STDS**2 + sigma**2
    share = (
        WEIGHTS.log() - variance.log() / 2 - (x_t - alpha * MEANS) ** 2 / (2 * variance)
    ).softmax(-1)
    return (share * (MEANS + alpha * STDS**2 / variance * (x_t - alpha * MEANS))).sum(-1)


@pytest.mark.parametrize(PARAMETERS, MIXTURE_CASES)
def test_mixture(sampler: str, schedule: str, prediction: str, grid: str) -> None:
    denoiser = perfect(mixture, schedule, prediction, shape=(1, 80, 100))
    options = {"sampler": sampler, "grid": grid, "steps": 200, "seed": 1, "clip": False}
    x = sample_images(denoiser, [0], **options)
    if sampler in TOO_NARROW:
        assert x.std() < 0.1  # 0.48 in the data: one mode is gone, and the other has shrunk
        return
    left, right = x[x < -0.15], x[x >= -0.15]
    assert len(left) / x.numel() == pytest.approx(0.3, abs=0.02)  # a standard deviation is 0.005
    for mode, mean, std in zip((left, right), MEANS, STDS, strict=True):
        assert mode.mean().item() == pytest.approx(mean.item(), abs=0.012)
        assert mode.std().item() == pytest.approx(std.item(), abs=0.012)


# The loop


TOY = Denoiser(toy, "cosine", "x0", (1, 3, 3))


def expected_calls(sampler: str, steps: int) -> int:
    """Network calls of `steps` equal steps of the schedule cosine."""
    crosses = any((k + 1) / steps > 0.3 >= k / steps > 0 for k in range(steps))
    extra = {
        "heun": steps - 1,
        "heun-churn": steps - 1,
        "pndm": int(steps > 2),  # its first step after pure noise, if that is not the last
        "restart": steps - 1 + 2 * 3 * crosses,
    }
    return steps + extra.get(sampler, 0)


@pytest.mark.parametrize("sampler", TEXTBOOK)
def test_every_number_of_steps(sampler: str) -> None:
    """Traps 2, 3 and 6. K steps take K network calls (heun 2K - 1), from t = 1 to t = 0.

    They end in x_0."""
    calls = []
    denoiser = Denoiser(lambda *args: calls.append(1) or toy(*args), "cosine", "x0", (1, 1, 1))
    for steps in range(1, 41):
        calls.clear()
        frames = frames_of(denoiser, [0, 1], sampler=sampler, steps=steps)
        assert len(frames) == steps
        counted = network_calls(TOY, Sampling(sampler), steps)
        assert counted == len(calls) == expected_calls(sampler, steps)
        assert [frame.index for frame in frames] == list(range(steps))
        assert all(one.s == two.t for one, two in pairwise(frames)), f"{steps} steps"
        assert all(one.x_s is two.x_t for one, two in pairwise(frames)), f"{steps} steps"
        assert (frames[0].t, frames[-1].s) == (1, 0)
        assert torch.equal(frames[-1].x_s, frames[-1].x_0), f"{steps} steps"


@pytest.mark.parametrize("schedule", EVERY_SCHEDULE)
def test_the_start_has_the_size_of_x_1(schedule: str) -> None:
    """Trap 13. For data of unit size: sqrt(alpha^2 + sigma^2)."""
    start = frames_of(Denoiser(toy, schedule, "x0", (1, 64, 64)), [0], steps=1)[0].x_t
    assert start.mean().item() / start.std().item() == pytest.approx(0, abs=0.07)
    assert start.std().item() == pytest.approx(np.hypot(*at(schedule, 1)), rel=0.05)


@pytest.mark.parametrize("sampler", TEXTBOOK)
def test_noise_is_fresh_at_every_step_but_the_last(
    sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 14. Each noise is the stream of its own step.

    test_samplers_do_what_their_papers_say shows where it goes."""
    asked, normal_each = [], rng.normal_each

    def spy(samples: Sequence[int], shape: Sequence[int], *key: object) -> Tensor:
        asked.append((list(samples), *key))
        return normal_each(samples, shape, *key)

    monkeypatch.setattr(rng, "normal_each", spy)
    sample_images(TOY, [4, 2], sampler=sampler, steps=6, seed=3)
    start, *fresh = asked
    assert start == ([4, 2], 3, "start", 0)
    every = [([4, 2], 3, "sampling", step) for step in range(5)]
    if sampler in ("heun-churn", "restart"):  # in some steps only
        assert fresh
        assert all(each in [*every, ([4, 2], 3, "sampling", 5)] for each in fresh)
    else:
        assert fresh in ([], every)


@pytest.mark.parametrize("sampler", TEXTBOOK)
def test_the_batch_does_not_change_an_image(sampler: str) -> None:
    """Trap 15."""

    def images(samples: Sequence[int], seed: int = 0) -> Tensor:
        return sample_images(TOY, samples, sampler=sampler, steps=6, seed=seed)

    together = images(range(5))
    assert torch.equal(images([3]), together[[3]])
    assert torch.equal(images([4, 0, 2]), together[[4, 0, 2]])
    assert len(together.unique(dim=0)) == 5
    assert not torch.equal(images(range(5), seed=1), together)


@pytest.mark.parametrize("eta", [-0.1, 1.01, 2])
def test_eta_out_of_range(eta: float) -> None:
    """Trap 12. The noise may not be larger than the noise that x_s holds."""
    with pytest.raises(UserError, match=rf"eta must be between 0 and 1, not {float(eta)}"):
        sample_images(TOY, [0], sampler=f"ddim:eta={eta}")


@pytest.mark.parametrize(("clip", "bound"), [(True, 1), (False, 2)])
def test_eps_follows_the_clipped_x_0(clip: bool, bound: float) -> None:
    """Trap 10. The toy stays within 1.5, so a bound of 2 changes nothing."""
    for frame in frames_of(TOY, range(50), sampler="ddim", steps=10, clip=clip):
        raw = TOY(frame.x_t, torch.full((50,), frame.t, dtype=torch.float64))
        assert (raw.abs() > 1).any()
        assert torch.equal(frame.x_0, raw.clamp(-bound, bound))
        (alpha_t, sigma_t), (alpha_s, sigma_s) = at("cosine", frame.t), at("cosine", frame.s)
        eps = (frame.x_t - alpha_t * frame.x_0) / sigma_t
        torch.testing.assert_close(frame.x_s, alpha_s * frame.x_0 + sigma_s * eps)


# Guidance: a network whose x_0 depends on the class and on nothing else

OF_CLASS = torch.tensor([0.1, 0.2, -0.4])  # class 0, class 1, unconditional


def constant(x: Tensor, log_snr: Tensor, condition: Tensor) -> Tensor:
    return process.expand(OF_CLASS[condition], x).expand_as(x)


CONDITIONAL = Denoiser(constant, "flow", "x0", (1, 2, 2), Conditioning(("a", "b")))


@pytest.mark.parametrize(("guidance", "calls"), [(0, 8), (0.5, 8), (1, 4), (1.5, 8), (4, 8)])
def test_guidance(guidance: float, calls: int) -> None:
    classes = torch.tensor([0, 1, 1])
    for clip in (False, True):
        options = {"classes": classes, "guidance": guidance, "clip": clip}
        last = frames_of(CONDITIONAL, range(3), steps=4, **options)[-1]
        guided = -0.4 + guidance * (OF_CLASS[classes] + 0.4)
        expected = guided.clamp(-1, 1) if clip else guided
        torch.testing.assert_close(last.x_s, expected[:, None, None, None].expand(3, 1, 2, 2))
        sampling = Sampling("ddpm", guidance=guidance, clip=clip)
        assert network_calls(CONDITIONAL, sampling, 4) == calls


def test_guidance_in_an_interval_of_noise_levels() -> None:
    """Kynkäänniemi et al. 2024: guided where the log-SNR is inside, and one network call outside.

    The network predicts a constant, so Euler's x_s is a line between x_t and what is predicted."""
    low, high, steps = -1.5, 1.0, 10
    classes = torch.tensor([1])
    options = {"classes": classes, "guidance": 3.0, "guidance_interval": (low, high)}
    frames = frames_of(CONDITIONAL, [0], sampler="euler", steps=steps, clip=False, **options)
    inside = 0
    for frame in frames:
        log_snr = 2 * math.log((1 - frame.t) / frame.t) if frame.t < 1 else -math.inf
        guided = low <= log_snr <= high
        inside += guided
        expected = -0.4 + (3.0 if guided else 1.0) * (0.2 + 0.4)
        torch.testing.assert_close(frame.x_0, torch.full_like(frame.x_0, expected))
    assert 0 < inside < steps
    sampling = Sampling("euler", guidance=3.0, guidance_interval=(low, high))
    assert network_calls(CONDITIONAL, sampling, steps) == steps + inside
    for calls in range(1, 40):
        found = steps_within(calls, CONDITIONAL, sampling)
        assert network_calls(CONDITIONAL, sampling, found) <= max(calls, 2)
        assert network_calls(CONDITIONAL, sampling, found + 1) > calls


def test_guidance_is_the_same_for_every_sampler() -> None:
    """A sampler that asks for x_0 twice gets a guided one both times."""
    classes = torch.tensor([0, 1, 1])
    guided = -0.4 + 1.5 * (OF_CLASS[classes] + 0.4)
    without = Denoiser(
        lambda x, *_: process.expand(guided, x).expand_as(x), "flow", "x0", (1, 2, 2)
    )
    for sampler in TEXTBOOK:
        options = {"sampler": sampler, "steps": 4}
        ours = frames_of(CONDITIONAL, range(3), classes=classes, guidance=1.5, **options)
        counted = network_calls(CONDITIONAL, Sampling(sampler, guidance=1.5), 4)
        assert counted == 2 * network_calls(without, Sampling(sampler), 4), sampler
        for found, expected in zip(ours, frames_of(without, range(3), **options), strict=True):
            close(found.x_s, expected.x_s, 1e-5, f"{sampler}, step {found.index}")


def test_classes_where_there_are_some() -> None:
    with pytest.raises(ValueError, match="a model with classes takes classes"):
        sample_images(CONDITIONAL, [0])
    with pytest.raises(ValueError, match="a model without takes none"):
        sample_images(TOY, [0], classes=torch.tensor([0]))
    for number in (-1, 2):
        with pytest.raises(ValueError, match="the 2 classes are 0 to 1"):
            sample_images(CONDITIONAL, [0], classes=torch.tensor([number]))


# Time grids


@pytest.mark.parametrize("grid", USABLE_GRIDS)
def test_grids_fall_from_1_to_0(grid: str) -> None:
    for schedule in EVERY_SCHEDULE:
        for steps in [*range(1, 41), 1000]:
            times = time_grid(grid, schedule, steps)
            assert len(times) == steps + 1, schedule
            assert (times[0], times[-1]) == (1, 0), f"{schedule}, {steps} steps"
            assert (times.diff() < 0).all(), f"{schedule}, {steps} steps"


def test_the_fitted_grid_spreads_the_error_evenly() -> None:
    """Where x_0_hat changes evenly with the log-SNR, the steps of the log-SNR are equal.

    Where it changes sixteen times as fast, they are four times as dense."""
    schedule = SCHEDULES["log-linear"]
    times = torch.linspace(1, 0, 2401, dtype=torch.float64)
    half = (log_snr(*schedule(times)).clamp(-12, 12) / 2).diff().clamp(min=0)
    even = torch.tensor(fitted_times(schedule, times, half, 12))
    levels = log_snr(*schedule(even.double()))[:-1]
    np.testing.assert_allclose(levels.diff()[1:-1], levels.diff()[1], rtol=0.01)
    fast = half * torch.where(times[1:] < 0.5, 16.0, 1.0)
    found = torch.tensor(fitted_times(schedule, times, fast, 200))
    late, early = (found < 0.5).sum().item(), (found >= 0.5).sum().item()
    assert late / early == pytest.approx(4 * 10 / 12, rel=0.05)  # log-SNRs 2 to 12, and -10 to 2


def test_a_grid_that_was_not_fitted_is_refused() -> None:
    with pytest.raises(UserError, match="needs the times that were found for a model"):
        time_grid("fitted", "cosine", 5)


def test_the_uniform_grid_is_the_chains_own() -> None:
    for steps in (1, 7, 100, 1000):
        expected = chain(SCHEDULES["linear"], steps).t.flip(0)
        assert torch.equal(time_grid("uniform", "linear", steps)[:-1], expected), f"{steps} steps"


@pytest.mark.parametrize("schedule", EVERY_SCHEDULE)
def test_spacing_of_the_other_grids(schedule: str) -> None:
    """Grid log-snr has equal steps of the log-SNR, and karras of (sigma / alpha)^(1/rho).

    They begin at the noisiest level that both schedule and bounds allow."""
    ends_at = log_snr(*torch.tensor(at(schedule, 1), dtype=torch.float64)).item()
    for grid, scale, lowest, highest in [
        ("log-snr", lambda level: level, -8, 8),
        ("log-snr:low=-12,high=6", lambda level: level, -12, 6),
        ("karras", lambda level: np.exp(-level / 14), -2 * np.log(80), -2 * np.log(0.02)),
        (
            "karras:rho=3,sigma_max=500,sigma_min=1",
            lambda level: np.exp(-level / 6),
            -2 * np.log(500),
            0,
        ),
    ]:
        times = time_grid(grid, schedule, 9)[1:-1]  # without t = 1, whose level may be lower
        levels = log_snr(*SCHEDULES[schedule](times)).numpy()
        expected = np.linspace(scale(max(lowest, ends_at)), scale(highest), 9)[1:]
        np.testing.assert_allclose(scale(levels), expected, rtol=1e-7, atol=1e-7, err_msg=grid)


BAD_GRIDS = {
    "a time twice": [1, 0.5, 0.5, 0],
    "a rise": [1, 0.2, 0.7, 0],
    "does not begin at 1": [0.9, 0.5, 0.2, 0],
    "does not end at 0": [1, 0.5, 0.2, 0.1],
    "too few": [1, 0],
    "not a number": [1, np.nan, 0.5, 0],
}


@pytest.mark.parametrize("case", BAD_GRIDS)
def test_bad_grids_are_refused(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    times = torch.tensor(BAD_GRIDS[case])
    monkeypatch.setitem(GRIDS._functions, "bad", lambda schedule, steps: times)
    with pytest.raises(UserError, match="time grid 'bad' has no 3 distinct steps"):
        sample_images(TOY, [0], grid="bad", steps=3)


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ("karras:sigma_min=0", "0 < sigma_min < sigma_max and 0 < rho do not hold for 0.0, 80.0"),
        ("karras:sigma_min=80", "0 < sigma_min < sigma_max and 0 < rho do not hold for 80.0, 80.0"),
        ("karras:rho=0", "do not hold for 0.02, 80.0, 0.0"),
        ("karras:rho=0.001", "can't be computed .*; give its parameters other values"),
    ],
)
def test_impossible_parameters_of_a_grid(grid: str, said: str) -> None:
    with pytest.raises(UserError, match=f"time grid '?karras.* {said}"):
        time_grid(grid, "linear", 5)


@pytest.mark.parametrize("steps", [0, -1, 100_001])
def test_an_impossible_number_of_steps(steps: int) -> None:
    with pytest.raises(
        UserError, match=f"steps must be at least 1 and at most 100,000, not {steps}"
    ):
        sample_images(TOY, [0], steps=steps)
