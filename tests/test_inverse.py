"""Images that fit a measurement: against the exact conditional distribution.

The data are normal, or a mixture of normals, in a few dimensions. Their denoiser is known, and so
is what a measurement says of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor

from helpers import close
from undiffuse.base import rng
from undiffuse.base.errors import UserError
from undiffuse.diffusion.conditioning import Conditioning
from undiffuse.diffusion.denoiser import Denoiser
from undiffuse.diffusion.grids import time_grid
from undiffuse.diffusion.inference import chosen, log_posterior
from undiffuse.diffusion.inverse import METHODS, Fit
from undiffuse.diffusion.operators import (
    OPERATORS,
    Mask,
    Operator,
    conjugate_gradient,
    operator_of,
    pseudo_inverse,
)
from undiffuse.diffusion.process import expand
from undiffuse.diffusion.schedule import SCHEDULES, Schedule
from undiffuse.diffusion.step import SAMPLERS
from undiffuse.diffusion.walk import walk

Denoise = Callable[[Tensor, Tensor], Tensor]

SPECS = ["noise", "blur:sigma=1.5", "downsample:factor=4", "mask:left=2,top=1,right=6,bottom=8"]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# Operators


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("shape", [(1, 8, 12), (3, 8, 8)])
def test_the_transpose_is_the_adjoint(spec: str, shape: tuple[int, int, int]) -> None:
    """<A x, y> = <x, A^T y> for each image."""
    operator, x = operator_of(spec, shape), random(5, *shape)
    y = random(*operator.apply(x).shape, seed=1)
    left = (operator.apply(x) * y).flatten(1).sum(1)
    close(left, (x * operator.transpose(y)).flatten(1).sum(1), 1e-12)


def test_every_operator_is_tested() -> None:
    assert {spec.partition(":")[0] for spec in SPECS} == set(OPERATORS)


def test_blur_downsample_and_mask_do_what_they_say() -> None:
    x = random(2, 3, 8, 8)
    small = operator_of("downsample:factor=2", (3, 8, 8)).apply(x)
    close(small, torch.nn.functional.avg_pool2d(x, 2), 1e-12)
    flat = torch.full((1, 1, 8, 8), 0.3, dtype=torch.float64)
    close(operator_of("blur:sigma=3", (1, 8, 8)).apply(flat), flat, 1e-12)
    spot = torch.zeros(1, 1, 21, 21, dtype=torch.float64)
    spot[..., 10, 10] = 1
    blurred = operator_of("blur:sigma=1.5", (1, 21, 21)).apply(spot)[0, 0]
    ratio = blurred[10, 13] / blurred[10, 10]
    assert ratio.item() == pytest.approx(math.exp(-(3**2) / (2 * 1.5**2)), rel=1e-6)
    hidden = operator_of("mask:left=1,top=2,right=3,bottom=8", (3, 8, 8)).apply(x)
    assert (hidden == 0).sum() == 2 * 3 * 6 * 2
    assert torch.equal(hidden[..., 3:], x[..., 3:])


def matrix_of(operator: Operator, shape: tuple[int, int, int]) -> Tensor:
    """A, (measured, pixels)."""
    size = math.prod(shape)
    eye = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
    return operator.apply(eye).reshape(size, -1).T


@pytest.mark.parametrize("spec", ["downsample:factor=2", "mask:left=2,top=1,right=6,bottom=8"])
def test_the_pseudo_inverse(spec: str) -> None:
    operator, shape = operator_of(spec, (1, 8, 8)), (1, 8, 8)
    y = operator.apply(random(3, *shape))
    expected = y.flatten(1) @ torch.linalg.pinv(matrix_of(operator, shape)).T
    close(pseudo_inverse(operator, y).flatten(1), expected, 1e-9)


def test_conjugate_gradients_solve_each_image_by_itself() -> None:
    root = random(4, 6, 6)
    systems = root @ root.transpose(1, 2) + 0.1 * torch.eye(6, dtype=torch.float64)
    b = random(4, 6, seed=1)
    b[2] = 0  # this one is solved before the first iteration

    def product(rows: Tensor, u: Tensor) -> Tensor:
        return (systems[rows] @ u[..., None])[..., 0]

    every = torch.arange(4)
    found = conjugate_gradient(partial(product, every), b, 20)
    close(found, torch.linalg.solve(systems, b), 1e-8)
    for row in every:
        alone = conjugate_gradient(partial(product, every[row : row + 1]), b[row : row + 1], 20)
        close(alone[0], found[row], 1e-9)


def test_conjugate_gradients_stop_where_the_map_is_not_positive() -> None:
    signs = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    found = conjugate_gradient(lambda u: signs * u, torch.tensor([[1.0, 2.0]]).double(), 5)
    assert torch.equal(found, torch.zeros_like(found))


# The exact conditional distribution


@dataclass
class Mixture:
    """Normals N(means[k], covariances[k]) with probabilities weights[k], in d dimensions."""

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def shares(self, x: Tensor, a: Tensor, variance: Tensor | float) -> tuple[Tensor, Tensor]:
        """Given x = A x_0 + noise: p(k | x), (B, K), and E[x_0 | x, k], (B, K, d)."""
        inner = a @ self.covariances @ a.T + variance * torch.eye(len(a), dtype=torch.float64)
        error = x[:, None] - self.means @ a.T
        solved = torch.linalg.solve(inner, error[..., None])[..., 0]
        log_p = self.weights.log() - torch.logdet(inner) / 2 - (error * solved).sum(-1) / 2
        moved = (self.covariances @ a.T @ solved[..., None])[..., 0]
        return log_p.softmax(-1), self.means + moved

    def denoise(self, schedule: Schedule) -> Denoise:
        def denoised(x_t: Tensor, t: Tensor) -> Tensor:
            alpha, sigma = schedule(t)
            eye = torch.eye(self.means.shape[1], dtype=torch.float64)
            share, mean = self.shares(x_t.flatten(1), alpha * eye, sigma**2)
            return (share[..., None] * mean).sum(1).reshape(x_t.shape)

        return denoised

    def given(self, y: Tensor, a: Tensor, std: float) -> tuple[Tensor, Tensor, Tensor]:
        """(p(k | y), mean, covariance) of x_0 given a measurement y (M,)."""
        share, means = self.shares(y[None], a, std**2)
        inner = a @ self.covariances @ a.T + std**2 * torch.eye(len(a), dtype=torch.float64)
        gain = self.covariances @ a.T @ torch.linalg.inv(inner)
        within = self.covariances - gain @ a @ self.covariances
        mean = (share[0, :, None] * means[0]).sum(0)
        off = means[0] - mean
        spread = within + off[:, :, None] * off[:, None, :]
        return share[0], mean, (share[0, :, None, None] * spread).sum(0)


def normal_data() -> Mixture:
    """Correlated pixels of an image (1, 2, 2)."""
    root = 0.25 * random(4, 4, seed=3)
    covariance = root @ root.T + 0.05 * torch.eye(4, dtype=torch.float64)
    return Mixture(
        torch.ones(1, dtype=torch.float64),
        torch.tensor([[0.3, -0.2, 0.1, 0.4]], dtype=torch.float64),
        covariance[None],
    )


SCHEDULE = SCHEDULES["log-linear"]
TIMES = time_grid("log-snr", "log-linear", 50)
HALF = Mask(torch.tensor([[True, False], [True, False]]))


def fit(
    data: Mixture, task: Fit, starts: Tensor, sampler: str, noise: Callable[..., Tensor]
) -> Tensor:
    """The images (B, d) that begin with noise `starts` (B, 1, h, w)."""
    samples = range(len(starts))
    step_of = task.steps(SAMPLERS[sampler], samples, clip=False)
    x, times = task.begin(starts, TIMES, SCHEDULE, samples)
    *_, last = walk(data.denoise(SCHEDULE), x, times, step_of, schedule=SCHEDULE, noise=noise)
    return last.x_s.flatten(1)


def affine(data: Mixture, task: Fit) -> tuple[Tensor, Tensor]:
    """(mean, covariance) of the samples of an ODE sampler for normal data.

    Its samples are an affine map of the start, which is read off without random numbers."""
    eye = torch.eye(4, dtype=torch.float64).reshape(4, 1, 2, 2)
    starts = torch.cat([torch.zeros(1, 1, 2, 2, dtype=torch.float64), eye])
    found = fit(data, task, starts, "heun", lambda *_: torch.zeros(()))
    response = (found[1:] - found[0]).T
    return found[0], response @ response.T


MEASUREMENTS = {
    "half": (HALF, 0.1),
    "blur": (operator_of("blur:sigma=1", (1, 2, 2)), 0.2),
    "downsample": (operator_of("downsample:factor=2", (1, 2, 2)), 0.05),
    "noise": (operator_of("noise", (1, 2, 2)), 0.4),
}


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_mmps_is_exact_for_normal_data(name: str) -> None:
    """Its mean and covariance are the conditional's within 1e-2 at 50 steps. No random numbers."""
    data, (operator, std) = normal_data(), MEASUREMENTS[name]
    y = operator.apply(torch.tensor([[[[0.5, 0.1], [-0.4, 0.6]]]], dtype=torch.float64))
    mean, covariance = affine(data, Fit(operator, y, std, "mmps:iterations=8"))
    a = matrix_of(operator, (1, 2, 2))
    _, exact_mean, exact_covariance = data.given(y.flatten(), a, std)
    assert (mean - exact_mean).abs().max() < 1e-2
    assert (covariance - exact_covariance).abs().max() < 1e-2
    # and the measurement matters: without it, the mean or the covariance is another
    assert (data.covariances[0] - exact_covariance).abs().max() > 2e-2


def test_pseudo_inverse_guidance_assumes_another_variance() -> None:
    """Its samples are off by more than 1e-2 where the data's variance is not 1."""
    data, (operator, std) = normal_data(), MEASUREMENTS["half"]
    y = operator.apply(torch.tensor([[[[0.5, 0.1], [-0.4, 0.6]]]], dtype=torch.float64))
    mean, covariance = affine(data, Fit(operator, y, std, "pigdm"))
    _, exact_mean, exact_covariance = data.given(y.flatten(), matrix_of(operator, (1, 2, 2)), std)
    error = max((mean - exact_mean).abs().max(), (covariance - exact_covariance).abs().max())
    assert 1e-2 < error < 0.5


def two_modes() -> Mixture:
    """Two modes of an image (1, 1, 2). The first pixel says something of the second."""
    return Mixture(
        torch.tensor([0.4, 0.6], dtype=torch.float64),
        torch.tensor([[-0.5, -0.6], [0.4, 0.5]], dtype=torch.float64),
        torch.tensor(
            [[[0.09, 0.03], [0.03, 0.04]], [[0.06, -0.02], [-0.02, 0.05]]], dtype=torch.float64
        ),
    )


FIRST = Mask(torch.tensor([[True, False]]))


def of_two_modes(method: str, count: int, sampler: str = "ddpm") -> tuple[float, float, float]:
    """The largest errors of (weights, mean, covariance) of `count` draws given y = 0 +- 0.3."""
    data, std = two_modes(), 0.3
    y = torch.zeros(1, 1, 1, 2, dtype=torch.float64)
    task = Fit(FIRST, y, 0.0 if method == "repaint" else std, method)

    def noise(step: int, number: int = 0) -> Tensor:
        return random(count, 1, 1, 2, seed=1 + step + 1000 * number)

    x = fit(data, task, random(count, 1, 1, 2), sampler, noise)
    a = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    share, mean, covariance = data.given(torch.zeros(1, dtype=torch.float64), a, std)
    own, _ = data.shares(x, torch.eye(2, dtype=torch.float64), 1e-9)
    return (
        (own.mean(0) - share).abs().max().item(),
        (x.mean(0) - mean).abs().max().item(),
        (x.T.cov() - covariance).abs().max().item(),
    )


def test_sequential_monte_carlo_is_exact_for_a_mixture() -> None:
    """Weights, mean and covariance within 1e-2: 100,000 particles in 2 dimensions, 50 steps.

    The standard error of the mean is about 0.5 / sqrt(100,000) = 0.0016."""
    assert max(of_two_modes("smc:particles=100000", 100_000)) < 1e-2


@pytest.mark.parametrize("method", ["mmps", "pigdm", "repaint"])
def test_the_other_methods_are_near_for_a_mixture(method: str) -> None:
    errors = of_two_modes(method, 20_000, "dpmpp-2m-sde")
    assert 1e-2 < max(errors) < 0.2, errors  # and not exact: mathematics.md says so


def test_every_method_is_tested() -> None:
    assert set(METHODS) == {"mmps", "pigdm", "repaint", "smc"}


# Which condition a measured image has


def of_classes(means: Tensor, std: float) -> Denoiser:
    """The perfect denoiser of classes N(means[k], std^2 I), with means (K, 1, h, w)."""

    def network(x: Tensor, log_snr: Tensor, condition: Tensor | None) -> Tensor:
        assert condition is not None
        alpha, sigma = (
            expand(level.sqrt(), x) for level in (log_snr.sigmoid(), (-log_snr).sigmoid())
        )
        mean = means[condition].to(x)
        return mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (x - alpha * mean)

    conditioning = Conditioning(tuple(map(str, range(len(means)))))
    return Denoiser(network, "cosine", "x0", tuple(means.shape[1:]), conditioning)


@pytest.mark.parametrize(
    ("operator", "std"),
    [
        (operator_of("noise", (1, 4, 4)), 0.0),
        (Mask(torch.arange(4).repeat(4, 1) < 2), 0.0),
        (operator_of("downsample:factor=2", (1, 4, 4)), 0.1),
    ],
)
def test_the_inferred_condition(operator: Operator, std: float) -> None:
    """An image of a class has that class, as a rule, and a prior that excludes it is heeded."""
    means = 0.5 * random(5, 1, 4, 4, seed=7)
    denoiser, prior = of_classes(means, 0.3), torch.full((5,), 0.2, dtype=torch.float64).log()
    hits = 0
    for k in range(5):
        x_0 = means[k : k + 1] + 0.3 * random(1, 1, 4, 4, seed=20 + k)
        y = (operator.apply(x_0) + std * random(*operator.apply(x_0).shape, seed=k)).float()
        log_p = log_posterior(denoiser, Fit(operator, y, std), prior, seed=0)
        assert log_p.exp().sum().item() == pytest.approx(1)
        hits += log_p.argmax().item() == k
        without = prior.clone()
        without[k] = -torch.inf
        assert log_posterior(denoiser, Fit(operator, y, std), without, seed=0)[k].exp() == 0
    assert hits >= 4


def test_inferred_conditions_are_drawn_in_proportion() -> None:
    log_p = torch.tensor([0.1, 0.0, 0.6, 0.3], dtype=torch.float64).log()
    drawn = chosen(log_p, range(4000), 0)
    share = torch.bincount(drawn, minlength=4) / 4000
    assert share[1] == 0
    close(share, log_p.exp().float(), 0.03)
    assert torch.equal(chosen(log_p, [7, 3], 0), drawn[[7, 3]])


# What is promised of all methods


@pytest.mark.parametrize("method", ["mmps", "pigdm", "repaint:times=2", "smc:particles=4"])
def test_an_image_does_not_depend_on_its_batch(method: str) -> None:
    std = 0.0 if method.startswith("repaint") else 0.1
    data, task = two_modes(), Fit(FIRST, torch.full((1, 1, 1, 2), 0.2).double(), std, method)
    each = task.particles

    def drawn(samples: list[int]) -> Tensor:
        own = [sample * each + number for sample in samples for number in range(each)]
        step_of = task.steps(SAMPLERS["ddpm"], own, clip=True)
        normal = partial(rng.normal_each, own, (1, 1, 2), 0)
        x, times = task.begin(normal("start", 0).double(), TIMES, SCHEDULE, own)
        frames = walk(
            data.denoise(SCHEDULE), x, times, step_of, schedule=SCHEDULE,
            noise=lambda step, number=0: normal(f"noise {number}", step).double(),
        )  # fmt: skip
        return task.result(frames, own)[::each]

    together, alone = drawn([0, 1, 2]), drawn([1])
    close(alone[0], together[1], 1e-9)
    assert not torch.allclose(together[0], together[1])


def test_what_is_kept_is_kept_exactly() -> None:
    data, y = two_modes(), torch.tensor([[[[0.2, 0.0]]]], dtype=torch.float64)
    task = Fit(FIRST, y, 0.0, "mmps")
    frames = walk(
        data.denoise(SCHEDULE), random(3, 1, 1, 2), TIMES,
        task.steps(SAMPLERS["ddim"], range(3), clip=True), schedule=SCHEDULE,
        noise=lambda *_: torch.zeros(()),
    )  # fmt: skip
    found = task.result(frames, range(3))
    assert (found[..., 0] == 0.2).all()
    assert (found[..., 1] != 0).all()


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        (lambda: Fit(FIRST, torch.zeros(1), 0.1, "dps"), "no method called 'dps'"),
        (lambda: Fit(FIRST, torch.zeros(1), -0.1), "noise must be at least 0, not -0.05"),
        (lambda: Fit(FIRST, torch.zeros(1), math.nan), "noise must be at least 0"),
        (
            lambda: Fit(operator_of("noise", (1, 1, 2)), torch.zeros(1), 0, "repaint"),
            "needs a mask",
        ),
        (lambda: Fit(FIRST, torch.zeros(1), 0.1, "smc:particles=0"), "at least 1, not 0"),
        (lambda: Fit(FIRST, torch.zeros(1), 0.1, "mmps:iterations=0"), "at least 1, not 0"),
        (lambda: Fit(FIRST, torch.zeros(1), 0.0, "repaint:times=-1"), "at least 1, not -1"),
        (lambda: Fit(FIRST, torch.zeros(1), 0.1, "repaint"), "measurement without noise"),
        (lambda: operator_of("downsample:factor=3", (1, 8, 8)), "must divide"),
        (lambda: operator_of("downsample:factor=0", (1, 8, 8)), "must divide"),
        (lambda: operator_of("blur:sigma=0", (1, 8, 8)), "more than 0 pixels"),
        (lambda: operator_of("mask", (1, 8, 8)), "is empty or not inside"),
        (lambda: operator_of("mask:right=9,bottom=8", (1, 8, 8)), "is empty or not inside"),
        (lambda: operator_of("zoom", (1, 8, 8)), "no operator called 'zoom'"),
    ],
)
def test_what_cannot_be_is_refused(task: Callable[[], object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        task()
