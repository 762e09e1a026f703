"""Guidance: each method against its equation, and guidance by a weaker model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from helpers import close, toy
from undiffuse.base import rng
from undiffuse.base.errors import UserError
from undiffuse.diffusion import process
from undiffuse.diffusion.conditioning import Conditioning
from undiffuse.diffusion.denoiser import Denoiser
from undiffuse.diffusion.guidance import GUIDANCES, once
from undiffuse.diffusion.process import expand
from undiffuse.diffusion.sampling import Sampling, network_calls, sample

Denoise = Callable[[Tensor, Tensor], Tensor]


def network(x: Tensor, log_snr: Tensor, condition: Tensor | None = None) -> Tensor:
    return toy(x, log_snr) if condition is None else toy(x, log_snr) + expand(0.2 * condition, x)


def weak(x: Tensor, log_snr: Tensor, condition: Tensor | None = None) -> Tensor:
    return 0.8 * network(x, log_snr, condition)


DENOISER = Denoiser(network, "cosine", "v", (1, 3, 3), Conditioning(("cat", "dog")))
CLASSES = torch.tensor([0, 1, 1])
T = torch.tensor(0.5, dtype=torch.float64)


def random(seed: int) -> Tensor:
    return torch.randn(3, 1, 3, 3, generator=torch.Generator().manual_seed(seed))


A, B = random(1), random(2)
CONDITIONAL: Denoise = lambda x_t, t: A  # noqa: E731
UNCONDITIONAL: Denoise = lambda x_t, t: B  # noqa: E731


def guided(spec: str, scale: float) -> Tensor:
    found: Tensor = GUIDANCES[spec](CONDITIONAL, UNCONDITIONAL, scale)(random(0), T)
    return found


def test_cfg_plus_plus_of_1_still_puts_the_other_noise_back() -> None:
    plus = Sampling("ddim", 3, guidance=1.0, guidance_method="cfg++", clip=False)
    found = sample(DENOISER, range(3), plus, classes=CLASSES)
    near = sample(DENOISER, range(3), replace(plus, guidance=0.9999), classes=CLASSES)
    close(found, near, 1e-3)
    usual = sample(DENOISER, range(3), replace(plus, guidance_method="cfg"), classes=CLASSES)
    assert not torch.allclose(found, usual, atol=1e-2)


@pytest.mark.parametrize("spec", list(GUIDANCES))
def test_a_scale_of_1_gives_the_conditional_prediction(spec: str) -> None:
    close(guided(spec, 1), A, 1e-6)
    assert not torch.allclose(guided(spec, 2), A)


def test_classifier_free_guidance() -> None:
    close(guided("cfg", 2.5), B + 2.5 * (A - B), 1e-6)


def test_projected_guidance_leaves_the_conditional_prediction_as_long_as_it_is() -> None:
    """What is added is orthogonal to it. With eta = 1 it is classifier-free guidance."""
    added = (guided("apg", 3) - A).flatten(1)
    close((added * A.flatten(1)).sum(1), torch.zeros(3), 1e-5)
    close(guided("apg:eta=1", 3), guided("cfg", 3), 1e-5)
    limited = (guided("apg:eta=1,most=0.5", 2) - A).flatten(1)
    close(limited.norm(dim=1), torch.full((3,), 0.5), 1e-5)


def test_the_noise_that_cfg_plus_plus_puts_back() -> None:
    """One step of DDIM by hand: Chung et al. 2024, algorithm 2."""
    sampling = Sampling("ddim", 3, guidance=0.6, guidance_method="cfg++", clip=False, seed=4)
    found = sample(DENOISER, range(3), sampling, classes=CLASSES)
    x = rng.normal_each(range(3), (1, 3, 3), 4, "start", 0)
    for t, s in ((1, 2 / 3), (2 / 3, 1 / 3), (1 / 3, 0)):
        t_, s_ = (torch.tensor(time, dtype=torch.float64) for time in (t, s))
        with_class = DENOISER(x, t_.expand(3), condition=CLASSES)
        without = DENOISER(x, t_.expand(3))
        x_0 = without + 0.6 * (with_class - without)
        at_t, at_s = DENOISER.noise_level(t_), DENOISER.noise_level(s_)
        eps = process.eps_from(x, without, at_t.alpha, at_t.sigma)
        x = process.jump(x_0, eps, at_s.alpha, at_s.sigma)
    close(found, x, 1e-5)
    usual = sample(DENOISER, range(3), replace(sampling, guidance_method="cfg"), classes=CLASSES)
    assert not torch.allclose(usual, found)


def test_guidance_by_a_weaker_model() -> None:
    """It leads away from the weaker model's prediction for the same condition."""
    weaker = replace(DENOISER, network=weak)
    sampling = Sampling("ddim", 1, guidance=1.5, clip=False)
    found = sample(replace(DENOISER, weaker=weaker), range(3), sampling, classes=CLASSES)
    x, one = rng.normal_each(range(3), (1, 3, 3), 0, "start", 0), torch.ones(3).double()
    good, bad = (each(x, one, condition=CLASSES) for each in (DENOISER, weaker))
    close(found, bad + 1.5 * (good - bad), 1e-5)
    unconditional = Denoiser(network, "cosine", "v", (1, 3, 3))
    with_weaker = replace(unconditional, weaker=replace(unconditional, network=weak))
    assert sampling.checked(with_weaker) == sampling
    guided_images = sample(with_weaker, range(3), sampling)
    assert not torch.allclose(guided_images, sample(unconditional, range(3), Sampling("ddim", 1)))


@pytest.mark.parametrize(
    ("method", "calls"), [("cfg", 8), ("apg", 8), ("cfg++", 8), ("none", 4), ("weaker", 8)]
)
def test_each_method_takes_two_calls_a_step(method: str, calls: int) -> None:
    denoiser = replace(DENOISER, weaker=replace(DENOISER, network=weak))
    sampling = Sampling("ddim", guidance=1 if method == "none" else 1.5)
    if method in GUIDANCES:
        denoiser, sampling = DENOISER, replace(sampling, guidance_method=method)
    assert network_calls(denoiser, sampling, 4) == calls


def test_once() -> None:
    calls = []

    def counted(x_t: Tensor, t: Tensor) -> Tensor:
        calls.append(t.item())
        return x_t + t

    remembered, x = once(counted), random(0)
    assert torch.equal(remembered(x, T), remembered(x, T))
    remembered(x, T / 2)
    remembered(x + 0, T / 2)
    assert calls == [0.5, 0.25, 0.25]


@pytest.mark.parametrize(
    ("sampling", "sentence"),
    [
        (Sampling(guidance_method="pag"), "no guidance method called 'pag'"),
        (Sampling(guidance_method="apg:zeta=1"), "has no parameter 'zeta'"),
        (Sampling("ddpm", guidance_method="cfg++"), "ddpm computes none; use ddim or euler"),
    ],
)
def test_what_cannot_be_is_refused(sampling: Sampling, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        sampling.checked(DENOISER)
