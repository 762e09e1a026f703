"""Sampling against data whose perfect denoiser is known: pixels that are Gaussian, or a mixture of two Gaussians.

For Gaussian pixels E[x_0 | x_t] is linear, so every sampler is an affine map of its noises. That map is read off
exactly, without drawing a sample, and compared to the papers' formulas, written here once more in the handout's
alpha_bar; its offset and the length of its responses are the mean and the standard deviation of the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from undiffuse.base import rng
from undiffuse.base.errors import UserError
from undiffuse.diffusion import process
from undiffuse.diffusion.denoiser import PREDICTIONS, Denoiser
from undiffuse.diffusion.grids import GRIDS, time_grid
from undiffuse.diffusion.samplers import SAMPLERS
from undiffuse.diffusion.sampling import draw, trajectory
from undiffuse.diffusion.schedule import LOG_SNR_BOUND, SCHEDULES, chain, log_snr

M, S = (
    np.array([0.3, -0.2]),
    np.array([0.4, 0.8]),
)  # two independent pixels: mean and standard deviation of the data
TEXTBOOK = [*SAMPLERS, "ddim:eta=0.5", "ddim:eta=1"]
TOO_NARROW = ["mean", "ddpm-printed"]  # trap 11: (7), and (8) as printed
FAITHFUL = [sampler for sampler in TEXTBOOK if sampler not in TOO_NARROW]
GROWING = "growing"  # a schedule that the package lacks: alpha stays 1, and sigma grows to 80

Guess = Callable[[Tensor, Tensor, Tensor], Tensor]
Measure = Callable[..., np.ndarray]


def at(schedule: str, t: float) -> tuple[float, float]:
    alpha, sigma = SCHEDULES[schedule](torch.tensor([t], dtype=torch.float64))
    return alpha.item(), sigma.item()


POSSIBLE = [(s, p) for s in SCHEDULES for p in PREDICTIONS if p != "eps" or at(s, 1)[0] > 1e-6]
POSSIBLE += [(GROWING, p) for p in PREDICTIONS]
PRESERVING = [
    s for s in SCHEDULES if abs(np.hypot(*at(s, 0.5)) - 1) < 1e-12
]  # alpha^2 + sigma^2 = 1
CASES = [  # the handout prints its (8) for alpha^2 + sigma^2 = 1 only
    (*pair, sampler)
    for pair in POSSIBLE
    for sampler in TEXTBOOK
    if sampler != "ddpm-printed" or pair[0] in PRESERVING
]


@pytest.fixture(autouse=True)
def growing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCHEDULES._functions, GROWING, lambda t: (torch.ones_like(t), 80 * t))


def gaussian(x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """E[x_0 | x_t] where x_0 ~ N(M, S^2)."""
    m, s = torch.from_numpy(M), torch.from_numpy(S)
    return m + alpha * s**2 / (alpha**2 * s**2 + sigma**2) * (x_t - alpha * m)


def perfect(
    guess: Guess, schedule: str, prediction: str = "v", shape: tuple[int, int, int] = (1, 1, 2)
) -> Denoiser:
    """A denoiser that returns exactly guess(x_t, alpha, sigma).

    Its network is told c_in x_t and the log-SNR only, so it works in units in which alpha^2 + sigma^2 = 1."""

    def network(x: Tensor, level: Tensor, label: Tensor | None) -> Tensor:
        level = level.masked_fill(level <= -LOG_SNR_BOUND, -torch.inf)  # the clamp hides pure noise
        alpha, sigma = level.sigmoid().sqrt(), level.neg().sigmoid().sqrt()
        c_skip, c_out, c_in = (process.expand(c, x) for c in PREDICTIONS[prediction](alpha, sigma))
        x_t = x / c_in
        return (
            guess(x_t, process.expand(alpha, x), process.expand(sigma, x)) - c_skip * x_t
        ) / c_out

    return Denoiser(network, schedule, prediction, shape)


def impulses(
    samples: Sequence[int], shape: Sequence[int], seed: int, purpose: str, step: int
) -> Tensor:
    """In place of normal noise: none for sample 0, a unit at the start for sample 1, a unit at step k for k + 2."""
    hit = torch.tensor(samples) == {"start": 1, "sampling": step + 2}[purpose]
    return hit.double()[:, None, None, None].expand(-1, *shape)


@pytest.fixture
def affine(monkeypatch: pytest.MonkeyPatch) -> Measure:
    """(denoiser, steps, options) -> (steps + 2, 2): offset, response to the start, to the noise of step 0, 1, ..."""
    monkeypatch.setattr(rng, "normal_each", impulses)

    def measure(denoiser: Denoiser, steps: int, **options: str) -> np.ndarray:
        x = (
            draw(denoiser, range(steps + 2), steps=steps, clip=False, **options)
            .reshape(steps + 2, 2)
            .numpy()
        )
        return np.concatenate([x[:1], x[1:] - x[0]])

    return measure


def moments(affine_map: np.ndarray) -> np.ndarray:
    """(2, 2): mean and standard deviation of each pixel."""
    return np.stack([affine_map[0], np.sqrt((affine_map[1:] ** 2).sum(0))])


# The samplers do what their papers say


def alpha_bars(schedule: str, grid: str, steps: int) -> np.ndarray:
    alpha, sigma = SCHEDULES[schedule](time_grid(grid, schedule, steps))
    return (alpha**2 / (alpha**2 + sigma**2)).numpy()


def textbook(sampler: str, alpha_bar: np.ndarray) -> np.ndarray:
    """The affine map by the papers' formulas, in units in which x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps."""
    name, _, eta = sampler.partition(":eta=")
    one, x, *noises = np.repeat(np.eye(len(alpha_bar) + 1)[:, :, None], 2, axis=2)

    def guess(x: np.ndarray, bar: float) -> np.ndarray:
        return one * M + np.sqrt(bar) * S**2 / (bar * S**2 + 1 - bar) * (x - np.sqrt(bar) * one * M)

    def velocity(x: np.ndarray, bar: float) -> np.ndarray:
        """eps - x_0"""
        return (x - np.sqrt(bar) * guess(x, bar)) / np.sqrt(1 - bar) - guess(x, bar)

    def lambda_(bar: float) -> float:
        with np.errstate(divide="ignore"):
            return np.log(np.sqrt(bar)) - np.log(np.sqrt(1 - bar))

    before = None
    for (t, s), noise in zip(pairwise(alpha_bar), noises, strict=True):
        x_0 = guess(x, t)
        alpha = t / s
        mean = (np.sqrt(alpha) * (1 - s) * x + np.sqrt(s) * (1 - alpha) * x_0) / (1 - t)  # (4)
        variance = (1 - alpha) * (1 - s) / (1 - t)
        if name == "mean":  # (7)
            x = mean
        elif name == "ddpm":  # (8)
            x = mean + np.sqrt(variance) * noise
        elif name == "ddpm-printed":
            x = mean + variance * noise
        elif name == "ddim":  # (12) and (16) of Song et al. 2021
            std = float(eta or 0) * np.sqrt((1 - s) / (1 - t)) * np.sqrt(1 - t / s)
            eps = (x - np.sqrt(t) * x_0) / np.sqrt(1 - t)
            x = np.sqrt(s) * x_0 + np.sqrt(max(1 - s - std**2, 0)) * eps + std * noise
        elif name in ("euler", "heun"):  # on the line y = (1 - tau) x_0 + tau eps
            scale_t, scale_s = (np.sqrt(bar) + np.sqrt(1 - bar) for bar in (t, s))
            h = np.sqrt(1 - s) / scale_s - np.sqrt(1 - t) / scale_t
            euler = scale_s * (x / scale_t + h * velocity(x, t))
            correct = name == "heun" and s < 1
            x = (
                scale_s * (x / scale_t + h * (velocity(x, t) + velocity(euler, s)) / 2)
                if correct
                else euler
            )
        elif name in ("dpmpp-2m", "dpmpp-2m-sde"):  # algorithm 2 and appendix E of Lu et al. 2022
            h, guessed = lambda_(s) - lambda_(t), x_0
            if before is not None and s < 1:
                r = before[0] / h
                x_0 = (1 + 1 / (2 * r)) * x_0 - 1 / (2 * r) * before[1]
            if name == "dpmpp-2m":
                x = np.sqrt((1 - s) / (1 - t)) * x - np.sqrt(s) * (np.exp(-h) - 1) * x_0
            else:
                x = (
                    np.sqrt((1 - s) / (1 - t)) * np.exp(-h) * x
                    + np.sqrt(s) * (1 - np.exp(-2 * h)) * x_0
                )
                x = x + np.sqrt((1 - s) * (1 - np.exp(-2 * h))) * noise
            before = h, guessed
        else:
            pytest.skip(f"no formula for {name} here")
    return x


@pytest.mark.parametrize("grid", list(GRIDS))
@pytest.mark.parametrize(("schedule", "prediction", "sampler"), CASES)
def test_samplers_do_what_their_papers_say(
    affine: Measure, schedule: str, prediction: str, sampler: str, grid: str
) -> None:
    denoiser = perfect(gaussian, schedule, prediction)
    for steps in (1, 2, 15):
        ours = affine(denoiser, steps, sampler=sampler, grid=grid)
        theirs = textbook(sampler, alpha_bars(schedule, grid, steps))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
        np.testing.assert_allclose(moments(ours), moments(theirs), rtol=0, atol=1e-9)


# Whose samples are the data's


# Each schedule with each grid (but equal steps of t are not for a sigma that grows to 80), and the predictions in turn: given a perfect guess they are all the same (see above).
GRIDDED = [
    (*POSSIBLE[(7 * i) % len(POSSIBLE)], grid) for i, grid in enumerate([*GRIDS] * len(POSSIBLE))
]
GRIDDED = list(
    {(s, g): (s, p, g) for s, p, g in GRIDDED if (s, g) != (GROWING, "uniform")}.values()
)


def test_every_schedule_meets_every_grid() -> None:
    schedules = {s for s, _ in POSSIBLE}
    assert {(s, g) for s, _, g in GRIDDED} == {(s, g) for s in schedules for g in GRIDS} - {
        (GROWING, "uniform")
    }
    assert {p for _, p, _ in GRIDDED} == set(PREDICTIONS)


@pytest.mark.parametrize("sampler", FAITHFUL)
@pytest.mark.parametrize(("schedule", "prediction", "grid"), GRIDDED)
def test_more_steps_lead_to_the_data(
    affine: Measure, schedule: str, prediction: str, grid: str, sampler: str
) -> None:
    """Down to 0.0025, which the schedule's signal at t = 1 and the grid's last step leave."""
    denoiser = perfect(gaussian, schedule, prediction)
    maps = [affine(denoiser, steps, sampler=sampler, grid=grid) for steps in (25, 100, 400)]
    errors = [np.abs(moments(found) - [M, S]).max() for found in maps]
    assert errors[1] < max(errors[0] / 2, 0.0025)
    assert errors[2] < max(errors[1] / 2, 0.0025)
    assert errors[2] < 0.02


@pytest.mark.parametrize("schedule", ["flow", "log-linear"])
def test_order_of_convergence(affine: Measure, schedule: str) -> None:
    """Four times the steps: a first-order method's error falls fourfold, a second-order one's up to sixteenfold."""

    def errors(sampler: str) -> np.ndarray:
        maps = [affine(perfect(gaussian, schedule), steps, sampler=sampler) for steps in (25, 100)]
        return np.abs([moments(found)[1] - S for found in maps])

    coarse, fine = errors("euler")
    assert np.all((coarse / fine > 3) & (coarse / fine < 5))
    for sampler in ("heun", "dpmpp-2m"):
        coarse, finer = errors(sampler)
        assert np.all(coarse / finer > 6)
        assert np.all(finer < fine / 5)


@pytest.mark.parametrize("steps", [10, 25, 100])
@pytest.mark.parametrize("schedule", PRESERVING)
def test_the_handouts_samplers_are_too_narrow(affine: Measure, schedule: str, steps: int) -> None:
    denoiser = perfect(gaussian, schedule)
    spread = {
        sampler: moments(affine(denoiser, steps, sampler=sampler))[1] for sampler in TOO_NARROW
    }
    assert np.all(spread["mean"] < 0.01 * S)
    assert np.all(spread["ddpm-printed"] < 0.5 * S)


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


@pytest.mark.parametrize(
    ("schedule", "prediction", "grid", "sampler"),
    [
        (*case, s)
        for case in GRIDDED
        for s in TEXTBOOK
        if s != "ddpm-printed" or case[0] in PRESERVING
    ],
)
def test_mixture(schedule: str, prediction: str, grid: str, sampler: str) -> None:
    denoiser = perfect(mixture, schedule, prediction, shape=(1, 80, 100))
    x = draw(denoiser, [0], sampler=sampler, grid=grid, steps=200, seed=1, clip=False)
    if sampler in TOO_NARROW:
        assert x.std() < 0.1  # 0.48 in the data: one mode is gone, and the other has shrunk
        return
    left, right = x[x < -0.15], x[x >= -0.15]
    assert len(left) / x.numel() == pytest.approx(0.3, abs=0.02)  # a standard deviation is 0.005
    for mode, mean, std in zip((left, right), MEANS, STDS, strict=True):
        assert mode.mean().item() == pytest.approx(mean.item(), abs=0.012)
        assert mode.std().item() == pytest.approx(std.item(), abs=0.012)


# The loop


def toy(x: Tensor, level: Tensor, label: Tensor | None) -> Tensor:
    """A network that is no perfect denoiser, and leaves [-1, 1]."""
    return 1.5 * (1.3 * x + process.expand(0.1 * level, x)).tanh()


TOY = Denoiser(toy, "cosine", "x0", (1, 3, 3))


@pytest.mark.parametrize("sampler", TEXTBOOK)
def test_every_number_of_steps(sampler: str) -> None:
    """Traps 2, 3 and 6: K steps, K network calls (heun 2K - 1), from t = 1 to t = 0, ending in x_0."""
    calls = []
    denoiser = Denoiser(lambda *args: calls.append(1) or toy(*args), "cosine", "x0", (1, 1, 1))
    for steps in range(1, 41):
        calls.clear()
        frames = list(trajectory(denoiser, [0, 1], sampler=sampler, steps=steps))
        assert len(frames) == steps
        assert frames[-1].calls == len(calls) == (2 * steps - 1 if sampler == "heun" else steps)
        assert [frame.index for frame in frames] == list(range(steps))
        assert all(one.s == two.t and one.x_s is two.x_t for one, two in pairwise(frames))
        assert frames[0].t == 1
        assert frames[-1].s == 0
        assert torch.equal(frames[-1].x_s, frames[-1].x_0)


@pytest.mark.parametrize("schedule", [*SCHEDULES, GROWING])
def test_the_start_has_the_size_of_x_1(schedule: str) -> None:
    """Trap 13. For data of unit size: sqrt(alpha^2 + sigma^2)."""
    start = next(trajectory(Denoiser(toy, schedule, "x0", (1, 64, 64)), [0])).x_t
    assert start.mean().item() / start.std().item() == pytest.approx(0, abs=0.07)
    assert start.std().item() == pytest.approx(np.hypot(*at(schedule, 1)), rel=0.05)


@pytest.mark.parametrize("sampler", TEXTBOOK)
def test_noise_is_fresh_at_every_step_but_the_last(
    sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 14: each noise is a stream of its own step. (test_samplers_do_what_their_papers_say shows where it goes.)"""
    asked, normal_each = [], rng.normal_each

    def spy(samples: Sequence[int], shape: Sequence[int], *key: object) -> Tensor:
        asked.append((list(samples), *key))
        return normal_each(samples, shape, *key)

    monkeypatch.setattr(rng, "normal_each", spy)
    draw(TOY, [4, 2], sampler=sampler, steps=6, seed=3)
    start, *fresh = asked
    assert start == ([4, 2], 3, "start", 0)
    assert fresh in ([], [([4, 2], 3, "sampling", step) for step in range(5)])


@pytest.mark.parametrize("sampler", TEXTBOOK)
def test_the_batch_does_not_change_an_image(sampler: str) -> None:
    """Trap 15."""
    together = draw(TOY, range(5), sampler=sampler, steps=6)
    assert torch.equal(draw(TOY, [3], sampler=sampler, steps=6), together[[3]])
    assert torch.equal(draw(TOY, [4, 0, 2], sampler=sampler, steps=6), together[[4, 0, 2]])
    assert len(together.unique(dim=0)) == 5
    assert not torch.equal(draw(TOY, range(5), sampler=sampler, steps=6, seed=1), together)


@pytest.mark.parametrize("eta", [-0.1, 1.01, 2])
def test_eta_out_of_range(eta: float) -> None:
    """Trap 12: the noise may not be larger than what x_s is to hold."""
    with pytest.raises(UserError, match=rf"eta must be between 0 and 1, not {float(eta)}"):
        draw(TOY, [0], sampler=f"ddim:eta={eta}")


@pytest.mark.parametrize(("clip", "bound"), [(True, 1), (False, 2)])
def test_eps_follows_the_clipped_x_0(clip: bool, bound: float) -> None:
    """Trap 10. The toy stays within 1.5, so a bound of 2 is none."""
    for frame in trajectory(TOY, range(50), sampler="ddim", steps=10, clip=clip):
        raw = TOY(frame.x_t, torch.full((50,), frame.t, dtype=torch.float64))
        assert (raw.abs() > 1).any()
        assert torch.equal(frame.x_0, raw.clamp(-bound, bound))
        (alpha_t, sigma_t), (alpha_s, sigma_s) = at("cosine", frame.t), at("cosine", frame.s)
        eps = (frame.x_t - alpha_t * frame.x_0) / sigma_t
        torch.testing.assert_close(frame.x_s, alpha_s * frame.x_0 + sigma_s * eps)


# Guidance: a network whose guess is its label's number

GUESSES = torch.tensor([0.1, 0.2, -0.4])  # class 0, class 1, no label
LABELLED = Denoiser(
    lambda x, level, label: process.expand(GUESSES[label], x).expand_as(x),
    "flow",
    "x0",
    (1, 2, 2),
    ("a", "b"),
)


@pytest.mark.parametrize(("guidance", "calls"), [(0, 8), (0.5, 8), (1, 4), (1.5, 8), (4, 8)])
def test_guidance(guidance: float, calls: int) -> None:
    labels = torch.tensor([0, 1, 1])
    for clip in (False, True):
        *_, last = trajectory(
            LABELLED, range(3), steps=4, label=labels, guidance=guidance, clip=clip
        )
        guided = -0.4 + guidance * (GUESSES[labels] + 0.4)
        expected = guided.clamp(-1, 1) if clip else guided
        torch.testing.assert_close(last.x_s, expected[:, None, None, None].expand(3, 1, 2, 2))
        assert last.calls == calls


def test_labels_where_there_are_classes() -> None:
    with pytest.raises(ValueError, match="with classes takes some"):
        draw(LABELLED, [0])
    with pytest.raises(ValueError, match="takes none"):
        draw(TOY, [0], label=torch.tensor([0]))


# Time grids


@pytest.mark.parametrize("grid", list(GRIDS))
@pytest.mark.parametrize("schedule", [*SCHEDULES, GROWING])
def test_grids_fall_from_1_to_0(schedule: str, grid: str) -> None:
    for steps in [*range(1, 41), 1000]:
        times = time_grid(grid, schedule, steps)
        assert len(times) == steps + 1
        assert times[0] == 1
        assert times[-1] == 0
        assert (times.diff() < 0).all()


@pytest.mark.parametrize("steps", [1, 7, 100, 1000])
def test_the_uniform_grid_is_the_chains_own(steps: int) -> None:
    expected = chain(SCHEDULES["linear"], steps).t.flip(0)
    assert torch.equal(time_grid("uniform", "linear", steps)[:-1], expected)


@pytest.mark.parametrize("schedule", [*SCHEDULES, GROWING])
def test_spacing_of_the_other_grids(schedule: str) -> None:
    """Equal steps of the log-SNR, and of (sigma / alpha)^(1/rho), from the noisiest level of schedule and bounds."""
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
        times = time_grid(grid, schedule, 9)[
            1:-1
        ]  # the first is t = 1, where the level may be lower
        levels = log_snr(*SCHEDULES[schedule](times)).numpy()
        expected = np.linspace(scale(max(lowest, ends_at)), scale(highest), 9)[1:]
        np.testing.assert_allclose(scale(levels), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    "times",
    [
        [1, 0.5, 0.5, 0],
        [1, 0.2, 0.7, 0],
        [0.9, 0.5, 0.2, 0],
        [1, 0.5, 0.2, 0.1],
        [1, 0],
        [1, np.nan, 0.5, 0],
    ],
)
def test_bad_grids_are_refused(times: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GRIDS._functions, "bad", lambda schedule, steps: torch.tensor(times))
    with pytest.raises(UserError, match="time grid 'bad' has no 3 distinct steps"):
        draw(TOY, [0], grid="bad", steps=3)


@pytest.mark.parametrize("steps", [0, -1])
def test_no_steps(steps: int) -> None:
    with pytest.raises(UserError, match=f"at least 1 step, and at most 100,000, not {steps}"):
        draw(TOY, [0], steps=steps)
