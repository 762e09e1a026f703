"""Functions of others as models: each convention, against the exact denoiser of normal pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers import close
from undiffuse import Model, UserError
from undiffuse.diffusion.process import expand
from undiffuse.diffusion.schedule import SCHEDULES

SHAPE, MEAN, STD = (1, 4, 4), 0.2, 0.3


def exact(x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """E[x_0 | x_t] of normal pixels."""
    alpha, sigma = expand(alpha, x_t), expand(sigma, x_t)
    return MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x_t - alpha * MEAN)


def at(schedule: str, t: Tensor) -> tuple[Tensor, Tensor]:
    return SCHEDULES[schedule](t.double())


def ddpm(x_t: Tensor, step: Tensor) -> Tensor:
    """The noise, told the step from 0."""
    assert step.dtype == torch.long
    alpha, sigma = at("linear", (step + 1) / 1000)
    x_0 = exact(x_t, alpha, sigma)
    return (x_t - expand(alpha, x_t) * x_0) / expand(sigma, x_t)


def velocity(x_t: Tensor, t: Tensor) -> Tensor:
    alpha, sigma = at("cosine", t)
    x_0 = exact(x_t, alpha, sigma)
    eps = (x_t - expand(alpha, x_t) * x_0) / expand(sigma, x_t)
    return expand(alpha, x_t) * eps - expand(sigma, x_t) * x_0


def edm(x: Tensor, sigma: Tensor) -> Tensor:
    """D(x, sigma), for x = x_0 + sigma eps."""
    return exact(x, torch.ones_like(sigma), sigma)


def by_log_snr(x_t: Tensor, log_snr: Tensor) -> Tensor:
    return exact(x_t, log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt())


def straight(x_t: Tensor, t: Tensor) -> Tensor:
    """The velocity eps - x_0 of rectified flow."""
    alpha, sigma = at("flow", t)
    x_0 = exact(x_t, alpha, sigma)
    return (x_t - expand(alpha, x_t) * x_0) / expand(sigma, x_t) - x_0


WRAPPED: dict[str, tuple[Callable[..., Tensor], dict[str, str]]] = {
    "ddpm": (ddpm, {"schedule": "linear", "predict": "eps", "level": "step"}),
    "v": (velocity, {"schedule": "cosine", "predict": "v", "level": "t"}),
    "edm": (edm, {"schedule": "cosine", "predict": "x0", "level": "sigma"}),
    "log-snr": (by_log_snr, {"schedule": "cosine", "predict": "x0", "level": "log-snr"}),
    "flow": (straight, {"schedule": "flow", "predict": "flow", "level": "t"}),
}


@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_the_denoised_image_is_the_exact_one(kind: str, t: float) -> None:
    function, options = WRAPPED[kind]
    x_t = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    found = Model.wrap(function, SHAPE, **options)(x_t, t)
    alpha, sigma = at(options["schedule"], torch.full((3,), t))
    close(found, exact(x_t, alpha, sigma), 2e-4, kind)


@pytest.mark.parametrize("kind", WRAPPED)
def test_its_samples_are_the_datas(kind: str) -> None:
    function, options = WRAPPED[kind]
    model = Model.wrap(function, SHAPE, **options)
    images = model.sample(n=400, sampler="heun", steps=30, clip=False).astype(float) / 127.5 - 1
    assert images.mean() == pytest.approx(MEAN, abs=0.02)  # a standard error is 0.004
    assert images.std() == pytest.approx(STD, abs=0.02)


def test_it_has_edits_and_likelihoods() -> None:
    model = Model.wrap(edm, SHAPE, schedule="cosine", predict="x0", level="sigma")
    image = model.sample(n=1)[0]
    right = np.zeros_like(image)
    right[:, 2:] = 1
    assert model.inpaint(image, right, n=2, steps=10).shape == (2, 4, 4)
    assert np.isfinite(model.bits(image[None])).all()


def test_classes_are_the_third_argument() -> None:
    seen = []

    def network(x: Tensor, t: Tensor, classes: Tensor) -> Tensor:
        seen.append(classes.tolist())
        return x * 0

    model = Model.wrap(network, SHAPE, predict="v", level="t", classes=("cat", "dog"))
    assert model.classes == ("cat", "dog")
    x_t = torch.zeros(2, *SHAPE)
    model(x_t, 0.5, "dog")
    model(x_t, 0.5)
    assert seen == [[1, 1], [2, 2]]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"level": "time"}, "level must be one of t, step, log-snr, sigma, not 'time'"),
        ({"predict": "noise"}, "no prediction called 'noise'"),
        ({"schedule": "steep"}, "no schedule called 'steep'"),
        ({"predict": "edm"}, "wrap EDM's denoiser D itself"),
        ({"schedule": "cosine"}, "divides by zero at t = 1"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Model.wrap(ddpm, SHAPE, **change)


def test_other_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="shape must be"):
        Model.wrap(ddpm, (8, 8))
    with pytest.raises(UserError, match="a wrapped function cannot be saved"):
        Model.wrap(ddpm, SHAPE).save(tmp_path / "a.safetensors")
    small = Model.wrap(lambda x, t: x[:, :, :2], SHAPE, predict="v", level="t")
    with pytest.raises(UserError, match="the wrapped function returned"):
        small(torch.zeros(1, *SHAPE), 0.5)
