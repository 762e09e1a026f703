"""Images that people start from: variations, encoding, walks, and the methods of `Model`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers import close, toy
from textbook import M, S
from undiffuse import Model, UserError
from undiffuse.diffusion import encoding
from undiffuse.diffusion.conditioning import Conditioning
from undiffuse.diffusion.denoiser import PREDICTIONS
from undiffuse.diffusion.grids import time_grid
from undiffuse.diffusion.operators import operator_of
from undiffuse.diffusion.process import expand
from undiffuse.diffusion.sampling import Sampling
from undiffuse.diffusion.schedule import SCHEDULES, Schedule
from undiffuse.diffusion.step import SAMPLERS
from undiffuse.diffusion.tasks import FromImage, FromNoise
from undiffuse.diffusion.walk import walk
from undiffuse.model import Description

MEAN, STD = torch.from_numpy(M).reshape(1, 1, 2), torch.from_numpy(S).reshape(1, 1, 2)


def gaussian(schedule: Schedule) -> Callable[[Tensor, Tensor], Tensor]:
    """The perfect denoiser of normal pixels with mean MEAN and standard deviation STD."""

    def denoised(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = schedule(t)
        return MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x_t - alpha * MEAN)

    return denoised


# Variations of an image


@pytest.mark.parametrize("strength", [0.3, 0.8])
def test_a_variation_has_the_distribution_that_the_ode_gives_it(strength: float) -> None:
    """x_t is normal, and the ODE maps it linearly: mean and standard deviation are known."""
    schedule, image = SCHEDULES["cosine"], torch.tensor([[[[0.9, -0.7]]]], dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64).reshape(2, 1, 1, 2)
    starts = torch.cat([torch.zeros(1, 1, 1, 2, dtype=torch.float64), eye])
    grid = time_grid("uniform", "cosine", 200)
    x, times = FromImage(image, strength).begin(starts, grid, schedule, range(3))
    assert times[0] == strength
    *_, last = walk(
        gaussian(schedule), x, times, SAMPLERS["heun"], schedule=schedule, noise=lambda *_: x
    )
    alpha, sigma = schedule(torch.tensor(strength, dtype=torch.float64))
    spread = (alpha**2 * STD**2 + sigma**2).sqrt()
    close(last.x_s[0], MEAN + STD * alpha * (image[0] - MEAN) / spread, 2e-3)
    response = (last.x_s[1:] - last.x_s[0]).diagonal(dim1=0, dim2=3).flatten()
    close(response, (STD * sigma / spread).flatten(), 2e-3)


# To noise and back


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_the_noise_of_normal_pixels(schedule: str) -> None:
    """The ODE keeps a pixel's place in units of its standard deviation."""
    found, x_0 = SCHEDULES[schedule], torch.tensor([[[[0.9, -0.7]]]], dtype=torch.float64)
    noise = encoding.encode(gaussian(found), x_0, schedule, steps=200)
    alpha, sigma = found(encoding.ode_times(schedule, 200, encoding.LEVEL)[[-1, 0]])
    spread = (alpha[:, None, None, None] ** 2 * STD**2 + sigma[:, None, None, None] ** 2).sqrt()
    place = alpha[0] * (x_0 - MEAN) / spread[0]
    end = (alpha[1] * MEAN + spread[1] * place) / (alpha[1] ** 2 + sigma[1] ** 2).sqrt()
    close(noise, end.reshape(1, 1, 1, 2), 2e-3)
    close(encoding.decode(gaussian(found), noise, schedule, steps=200), x_0, 1e-4)


def test_the_way_there_and_back_is_of_second_order() -> None:
    schedule, x_0 = SCHEDULES["cosine"], torch.tensor([[[[0.9, -0.7]]]], dtype=torch.float64)

    def error(steps: int) -> float:
        noise = encoding.encode(gaussian(schedule), x_0, "cosine", steps=steps)
        back = encoding.decode(gaussian(schedule), noise, "cosine", steps=steps)
        return (back - x_0).abs().max().item()

    coarse, fine = error(25), error(100)
    assert coarse / fine > 12


def test_the_walk_between_two_noises() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 1, 8, 8, generator=g, dtype=torch.float64).unbind()
    way = encoding.between(a, b, torch.linspace(0, 1, 9))
    close(way[0], a, 1e-12)
    close(way[-1], b, 1e-12)
    sizes = way.flatten(1).norm(dim=1)
    assert (sizes >= min(a.norm(), b.norm()) * 0.999).all()
    angles = [
        torch.acos((p * q).sum() / p.norm() / q.norm()).item() for p, q in pairwise(way.unbind())
    ]
    assert max(angles) - min(angles) < 1e-6
    close(encoding.between(a, a, torch.tensor([0.5])), a[None], 1e-9)


# The methods of a model


class Toy(nn.Module):
    """A network without training: its output depends on image, noise level and condition."""

    def forward(self, x: Tensor, log_snr: Tensor, condition: Tensor | None = None) -> Tensor:
        found = toy(x, log_snr)
        return found if condition is None else found + expand(0.1 * condition, x)


KINDS = {
    "without": Conditioning(),
    "classes": Conditioning(("cat", "dog")),
    "clusters": Conditioning((), (3, 1, 2)),
    "both": Conditioning(("cat", "dog"), (5, 3, 4), (0, 0, 1)),
}


def model(
    kind: str = "both",
    shape: tuple[int, int, int] = (1, 8, 8),
    schedule: str = "cosine",
    predict: str = "v",
    **sampling: Any,
) -> Model:
    conditioning = KINDS[kind]
    guidance = 1.5 if conditioning.guidable else 1.0
    options = Sampling(**{"guidance": guidance, "steps": 4, **sampling})
    return Model(Description("unet", schedule, predict, shape, conditioning, options), Toy())


def picture(shape: tuple[int, int, int] = (1, 8, 8), seed: int = 0) -> np.ndarray:
    channels, height, width = shape
    sides = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, sides, dtype=np.uint8)


RIGHT = np.arange(8)[None, :].repeat(8, 0) >= 4

EDITS: dict[str, Callable[..., np.ndarray]] = {
    "inpaint": lambda m, image, **o: m.inpaint(image, RIGHT, **o),
    "repaint": lambda m, image, **o: m.inpaint(image, RIGHT, method="repaint:times=2", **o),
    "edit": lambda m, image, **o: m.edit(image, 0.5, **o),
    "interpolate": lambda m, image, **o: m.interpolate(image, 3, **o),
    "restore": lambda m, image, **o: m.restore(image, "blur:sigma=1", 0.1, **o),
    "smc": lambda m, image, **o: m.restore(image, "noise", 0.3, method="smc:particles=3", **o),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_edit_with_and_without_classes(edit: str, kind: str) -> None:
    own = model(kind)
    found = EDITS[edit](own, picture(), n=3, steps=4)
    assert found.shape == (3, 8, 8)
    assert found.dtype == np.uint8
    assert len(np.unique(found.reshape(3, -1), axis=0)) == 3
    if own.classes:
        of_class = EDITS[edit](own, picture(), n=3, steps=4, classes="dog")
        assert (of_class != found).any()
    else:
        with pytest.raises(UserError, match="trained without classes"):
            EDITS[edit](own, picture(), n=3, classes="dog")


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize(
    ("schedule", "predict"), [("linear", "eps"), ("flow", "flow"), ("log-linear", "x0")]
)
def test_every_edit_in_colour_with_any_schedule(edit: str, schedule: str, predict: str) -> None:
    shape = (3, 8, 8)
    own = model("without", shape, schedule, predict)
    found = EDITS[edit](own, picture(shape), n=2, steps=4)
    assert found.shape == (2, 8, 8, 3)
    assert predict in PREDICTIONS


@pytest.mark.parametrize("edit", ["inpaint", "edit", "interpolate", "restore"])
@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_every_edit_with_any_sampler(edit: str, sampler: str) -> None:
    found = EDITS[edit](model("without"), picture(), n=2, steps=5, sampler=sampler)
    assert found.shape == (2, 8, 8)


@pytest.mark.parametrize("edit", [edit for edit in EDITS if edit != "interpolate"])
def test_the_same_seed_gives_the_same_image_whatever_the_batch(edit: str) -> None:
    """Also of how many are asked for. 8-bit values may differ by the rounding of float32."""
    own = model("both")
    many = EDITS[edit](own, picture(), n=5, steps=4, classes="dog", seed=3)
    few = EDITS[edit](own, picture(), n=3, steps=4, classes="dog", seed=3, batch_size=1)
    assert np.abs(many[:3].astype(int) - few).max() <= 1
    other = EDITS[edit](own, picture(), n=3, steps=4, classes="dog", seed=4)
    assert (other != few).any()


def test_inpainting_keeps_the_image_where_there_is_no_mask() -> None:
    image = picture()
    found = model().inpaint(image, RIGHT, n=4, steps=4)
    assert (found[:, :, :4] == image[:, :4]).all()
    assert (found[:, :, 4:] != image[:, 4:]).any()


def test_calls_decide_the_steps_where_they_are_given() -> None:
    own = model("without")
    few = own.editor.edit(picture(), 0.5, 2, None, {"calls": 5, "sampler": "ddim"})
    assert few.steps == 5
    assert own.editor.edit(picture(), 0.5, 2, None, {}).steps == 50


def test_strength_0_is_the_image_and_strength_1_a_new_one() -> None:
    own, image = model(), picture()
    assert (own.edit(image, 0, n=3) == image).all()
    new = own.sample(3, "dog", steps=4)
    assert (own.edit(image, 1, n=3, classes="dog", steps=4) == new).all()
    assert (own.edit(image, 0.5, n=3, classes="dog", steps=4) != new).any()


def test_a_walk_begins_and_ends_at_the_ends() -> None:
    own = model()
    way = own.interpolate(3, 7, n=5, steps=6)
    for seed, end in ((3, way[0]), (7, way[-1])):
        alone = own.editor.request(
            FromNoise(own.editor.noise_of(seed, None)[None]), 1, None,
            {"sampler": "heun", "steps": 6},
        )  # fmt: skip
        assert np.abs(alone.images()[0, 0].numpy().astype(int) - end).max() <= 1
    of_class = own.interpolate(3, 3, n=3, classes="dog", steps=6)
    assert (of_class == of_class[0]).all()  # and one cluster for the whole walk


def test_a_seed_is_the_image_that_sampling_begins_with() -> None:
    """Of a model without clusters, whose condition is the class."""
    own = model("classes")
    options = {"sampler": "heun", "steps": 6, "guidance": 1.0}
    drawn = own.sample(1, "dog", seed=3, **options)
    assert (own.interpolate(3, 7, n=3, classes="dog", steps=6)[0] == drawn[0]).all()


def test_encode_and_decode() -> None:
    own, images = model(), np.stack([picture(), picture(seed=1)])
    for classes in (None, "dog"):
        noise = own.encode(images, classes)
        assert noise.shape == (2, 1, 8, 8)
        back = own.decode(noise, classes)
        assert np.abs(back.astype(int) - images).mean() < 1
        assert (own.decode(noise[1:], classes) == back[1:]).all()


class Sum:
    """A user's operator: the sum over all pixels."""

    def apply(self, x: Tensor) -> Tensor:
        return x.sum(dim=(1, 2, 3))[:, None]

    def transpose(self, y: Tensor) -> Tensor:
        return y[:, :, None, None].expand(-1, 1, 8, 8)


def test_an_operator_of_the_users() -> None:
    found = model("without").restore(torch.tensor([-40.0]), Sum(), 0.1, n=2, steps=4)
    assert found.shape == (2, 8, 8)


SMALL = picture()[:2, :2]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m: m.inpaint(picture(), RIGHT[:4]), "mask must be 8 x 8, as the image is, not 4"),
        (lambda m: m.inpaint(picture(), RIGHT & False), "the mask is empty"),
        (lambda m: m.inpaint(picture(), RIGHT | True), "covers the whole image"),
        (lambda m: m.inpaint(picture(), "RIGHT"), "mask must be an array"),
        (lambda m: m.inpaint(picture()[:4], RIGHT), "images must be"),
        (lambda m: m.inpaint(picture().astype(float), RIGHT), "images must be uint8"),
        (lambda m: m.inpaint(picture(), RIGHT, method="dps"), "no method called 'dps'"),
        (lambda m: m.inpaint(picture(), RIGHT, sampler="best"), "no sampler called 'best'"),
        (lambda m: m.inpaint(picture(), RIGHT, n=0), "n must be at least 1, not 0"),
        (lambda m: m.edit(picture(), batch_size=0), "batch_size must be at least 1, not 0"),
        (lambda m: m.restore(picture(), "noise", 0.1, method="smc", sampler="ddpm"), "leave the"),
        (lambda m: m.inpaint(picture(), RIGHT, quick=True), "no option 'quick'"),
        (lambda m: m.inpaint(picture(), RIGHT, guidance=2), "guidance is towards a class"),
        (lambda m: m.edit(picture(), 1.01), "strength must be from 0 to 1, not 1.01"),
        (lambda m: m.edit(picture(), -0.1), "strength must be from 0 to 1, not -0.1"),
        (lambda m: m.edit(picture(), float("nan")), "strength must be from 0 to 1, not nan"),
        (lambda m: m.edit(picture(), "half"), "strength must be a number"),
        (lambda m: m.edit(np.stack([picture(), picture()])), "give one image"),
        (lambda m: m.edit(picture(), classes="cow"), "there is no class cow"),
        (lambda m: m.interpolate(3, 7, n=1), "n must be at least 2"),
        (lambda m: m.interpolate(-3, 7), "seed must be a number from 0"),
        (lambda m: m.interpolate(3, 7, classes=["cat", "dog"]), "give one class, not 2"),
        (lambda m: m.interpolate(3.5, 7), "seed must be a whole number"),
        (lambda m: m.restore(picture(), "downsample:factor=4"), "images must be"),
        (lambda m: m.restore(SMALL, "downsample:factor=3"), "factor must divide"),
        (lambda m: m.restore(SMALL, "downsample:factor=4", -1), "noise must be at least 0"),
        (lambda m: m.restore(picture(), "zoom"), "no operator called 'zoom'"),
        (lambda m: m.restore(picture(), Sum()), "this operator's measurement is no image"),
        (lambda m: m.encode(picture()[None], steps=0), "steps must be at least 1"),
        (lambda m: m.decode(picture()[None, None]), "noise must be floats"),
    ],
)
def test_what_cannot_be_is_refused(call: Callable[[Model], object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        call(model())


def test_a_model_that_has_learned_classes_only() -> None:
    """Its edits infer a class. A walk has nothing to infer it from, and asks for one."""
    conditional = Conditioning(("cat", "dog"), unconditional=False)
    own = Model(Description("unet", "cosine", "v", (1, 8, 8), conditional), Toy())
    assert own.edit(picture(), n=2, steps=4).shape == (2, 8, 8)
    with pytest.raises(UserError, match="give a class: this model was trained with"):
        own.interpolate(3, 7)
    assert own.interpolate(3, 7, classes="dog", n=2, steps=4).shape == (2, 8, 8)


def test_measured_images_are_fitted_better_than_others() -> None:
    """The mean of the answers has nearly the measurement that was given."""
    operator = operator_of("downsample:factor=2", (1, 8, 8))
    small = np.full((4, 4), 200, np.uint8)
    found = model("without").restore(small, "downsample:factor=2", 0.02, n=8, steps=50)
    means = operator.apply(torch.from_numpy(found.astype(np.float32))[:, None])
    assert (means - 200).abs().mean() < 20
