"""Images that people start from: requests to inpaint, edit, interpolate and restore; and encoding.

Each takes a user's images, checks them, and gives a `Request` to the sampler. Images are uint8, as
for `Model.bits`. A class is optional. Where a network has conditions, those of the new images are
inferred from what is known of the image. Walks and encoding use the unconditional prediction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from undiffuse.base.errors import UserError
from undiffuse.base.given import as_tensor, check_numbers, real, whole
from undiffuse.base.pixels import from_array, to_float, to_uint8
from undiffuse.base.rng import normal_each
from undiffuse.diffusion import encoding, inference
from undiffuse.diffusion.grids import MOST_STEPS
from undiffuse.diffusion.inverse import Fit
from undiffuse.diffusion.operators import Identity, Mask, Operator, operator_of
from undiffuse.diffusion.sampling import Sampling, denoise_function, unguidable
from undiffuse.diffusion.tasks import FromImage, FromNoise, Task
from undiffuse.model.request import BATCH, Request, counts, given_options

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from undiffuse.diffusion.denoiser import Denoiser

    Images = NDArray[np.uint8] | Tensor

STEPS = 50
"""Steps of an edit, unless others are asked for. A measurement is met in small steps only."""


@dataclass(frozen=True)
class Editor:
    """Makes the requests for one model. usual: its own options. step: of its training."""

    denoiser: Denoiser
    usual: Sampling
    step: int

    def inpaint(
        self, image: Images, mask: Any, n: int, classes: Any, method: str, options: dict[str, Any]
    ) -> Request:
        """n images in which the pixels under the mask are new. mask: (H, W), not 0 where new.

        Raises UserError for a mask of another shape, and for one that is empty or full."""
        shape = self.denoiser.shape
        new = as_tensor("mask", mask) != 0
        if tuple(new.shape) != shape[1:]:
            raise UserError(
                f"the mask must be {shape[1]} x {shape[2]}, as the image is, not "
                f"{' x '.join(map(str, new.shape))}"
            )
        if not new.any():
            raise UserError("the mask is empty, so nothing is to be sampled; mark some pixels")
        if new.all():
            raise UserError(
                "the mask covers the whole image, so nothing of it is kept; use sample for new "
                "images"
            )
        y = torch.where(new, 0.0, self.one(image))
        task = self.fit(Mask(~new), y, 0.0, method, options)
        return self.request(task, n, classes, options, task)

    def restore(
        self,
        measured: Any,
        operator: str | Operator,
        noise: float,
        n: int,
        classes: Any,
        method: str,
        options: dict[str, Any],
    ) -> Request:
        """n images whose measurement by the operator, with noise, may be `measured`.

        measured: uint8 (H', W') or (H', W', C), or floats (C, H', W') of an operator of the user's.
        noise: its standard deviation; 1 is the distance from black to white. Raises UserError where
        the measurement is not of the shape that the operator gives."""
        if isinstance(operator, str):
            operator = operator_of(operator, self.denoiser.shape)
        wanted = self.measured_shape(operator, degrade=False)
        found = as_tensor("the measurement", measured)
        if found.is_floating_point():
            y = found.float()[None]
        elif len(wanted) == 3:
            y = to_float(from_array(found[None], (wanted[0], wanted[1], wanted[2])))
        else:
            raise UserError("this operator's measurement is no image; give it as floats")
        if tuple(y.shape[1:]) != wanted:
            raise UserError(f"the measurement must be {wanted}, not {tuple(y.shape[1:])}")
        if isinstance(operator, Mask):
            y = operator.apply(y)
        noise = real("noise", noise)
        task = self.fit(operator, y, noise, method, options)
        return self.request(task, n, classes, options, task)

    def edit(
        self, image: Images, strength: float, n: int, classes: Any, options: dict[str, Any]
    ) -> Request:
        """n variations of an image. strength: from 0, the image itself, to 1, a new image."""
        x_0 = self.one(image)
        task = FromImage(x_0, real("strength", strength))
        whole = Fit(Identity(self.denoiser.shape), x_0)
        return self.request(task, n, classes, options, whole if task.strength < 1 else None)

    def interpolate(
        self, first: Any, second: Any, n: int, classes: Any, options: dict[str, Any]
    ) -> Request:
        """n images on the way from one to another, through their noises.

        first, second: an image, or the seed of a noise. One class, or none, for all of them."""
        n, options = whole("n", n), dict(options)
        if n < 2:
            raise UserError(f"n must be at least 2, the two ends, not {n}")
        request = self.request(
            FromNoise(torch.zeros(1, *self.denoiser.shape)), n, classes,
            {"sampler": "heun", "guidance": 1.0}
            | {name: value for name, value in options.items() if value is not None},
        )  # fmt: skip
        condition = self.one_condition(classes, request.sampling.seed)
        ends = self.noise_of(first, condition), self.noise_of(second, condition)
        noises = encoding.between(*ends, torch.linspace(0, 1, n))
        every = None if condition is None else condition.expand(n)
        return replace(request, task=FromNoise(noises), condition=every)

    def noise_of(self, end: Any, condition: Tensor | None) -> Tensor:
        """The noise (C, H, W) of an image, or that with which the image of a seed begins."""
        if np.ndim(end) == 0 and not isinstance(end, Tensor):
            seed = whole("seed", end)
            check_numbers(1, seed)
            return normal_each([0], self.denoiser.shape, seed, "start", 0)[0]
        return self.encode(self.one(end), condition)[0]

    @torch.no_grad()
    def encode(self, x: Tensor, condition: Tensor | None, steps: int = encoding.STEPS) -> Tensor:
        """The noise of images float (n, C, H, W), by the ODE. condition: (n,) or None."""
        return self.along(encoding.encode, x, condition, steps)

    @torch.no_grad()
    def decode(
        self, noise: Tensor, condition: Tensor | None, steps: int = encoding.STEPS
    ) -> Tensor:
        """The images, float (n, C, H, W), of noises: the inverse of `encode`."""
        return self.along(encoding.decode, noise, condition, steps)

    def along(
        self, way: Callable[..., Tensor], x: Tensor, condition: Tensor | None, steps: int
    ) -> Tensor:
        """The end of the ODE's way for images or noises (n, C, H, W), a batch at a time."""
        found = []
        for rows in torch.arange(len(x)).split(BATCH):
            own = None if condition is None else condition[rows]
            denoise = denoise_function(self.denoiser, own, Sampling(clip=False))
            found.append(way(denoise, x[rows], self.denoiser.schedule, steps=ode_steps(steps)))
        return torch.cat(found)

    def fit(
        self, operator: Operator, y: Tensor, noise: float, method: str, options: dict[str, Any]
    ) -> Fit:
        """The task of fitting y. Raises UserError where a sampler is given that is not used."""
        if method.partition(":")[0] == "smc" and options.get("sampler") is not None:
            raise UserError("the method smc takes its own steps; leave the sampler out")
        return Fit(operator, y, 2 * noise, method)

    def measured_shape(self, operator: str | Operator, *, degrade: bool) -> tuple[int, ...]:
        """The shape that a measurement for `restore` must have: (C, H', W') for an image.

        degrade: whether the operator is still to be applied to it."""
        shape = self.denoiser.shape
        if degrade:
            return shape
        chosen = operator_of(operator, shape) if isinstance(operator, str) else operator
        return tuple(chosen.apply(torch.zeros(1, *shape)).shape[1:])

    def degraded(self, image: Tensor, operator: str, noise: float, seed: int) -> Tensor:
        """An image uint8 (C, H, W) after the operator and with noise, as 8-bit values."""
        seen = operator_of(operator, self.denoiser.shape).apply(to_float(image)[None])
        fresh = normal_each([0], seen.shape[1:], seed, "degraded", 0)
        return to_uint8(seen + 2 * noise * fresh)[0]

    # --- Parts ---

    def one(self, image: Images) -> Tensor:
        """One image of a user's, float (1, C, H, W). Raises UserError for another shape or type."""
        found = as_tensor("image", image)
        channels, height, width = self.denoiser.shape
        if found.ndim == 2 or tuple(found.shape) in (
            (height, width, channels), (channels, height, width),
        ):  # fmt: skip
            found = found[None]
        if found.ndim < 3 or len(found) != 1:
            raise UserError(f"give one image, ({height}, {width}), not {tuple(found.shape)}")
        return to_float(from_array(found, self.denoiser.shape))

    def one_condition(self, classes: Any, seed: int) -> Tensor | None:
        """The condition (1,) of one class. Without a class, that of the unconditional model."""
        conditioning = self.denoiser.conditioning
        if classes is None:
            return self.unconditional(1)
        numbers = conditioning.class_numbers(classes)
        if len(numbers) > 1:
            raise UserError(f"give one class, not {len(numbers)}")
        return conditioning.sample(torch.tensor(numbers), [0], seed)

    def unconditional(self, n: int) -> Tensor | None:
        """The condition (n,) that stands for "unconditional"; None where there are no conditions.

        Raises UserError for a model that has learned conditions only."""
        conditioning = self.denoiser.conditioning
        if not conditioning.count:
            return None
        if not conditioning.unconditional:
            raise UserError(f"give a class: {unguidable(self.denoiser)}")
        return torch.full((n,), conditioning.count)

    def request(
        self,
        task: Task,
        n: int,
        classes: Any,
        options: dict[str, Any],
        seen: Fit | None = None,
    ) -> Request:
        """A request for n images of a task. classes: numbers or names, which take turns.

        seen: what is known of the images. Each image's condition is sampled as likely as it is
        then. Without it and without classes, the unconditional prediction is used."""
        options = dict(options)
        batch_size = options.pop("batch_size", BATCH)
        given = given_options(options)
        given = {"steps": None if "calls" in given else STEPS} | given
        n, batch_size = counts(n, batch_size, given.get("seed", 0))
        numbers = condition = None
        if classes is not None:
            cycle = self.denoiser.conditioning.class_numbers(classes)
            numbers = torch.tensor(cycle)[torch.arange(n) % len(cycle)]
        elif seen is None:
            condition = self.unconditional(n)
        if numbers is None:
            if given.get("guidance", 1) != 1:
                raise UserError("guidance is towards a class; give classes, or leave guidance out")
            given["guidance"] = 1.0
        chosen = replace(self.usual, **given).checked(self.denoiser)
        if seen is not None:
            condition = self.inferred(seen, numbers, n, chosen.seed)
        return Request(
            self.denoiser, self.step, n, numbers, chosen, batch_size, False, condition, task
        )

    def inferred(self, seen: Fit, classes: Tensor | None, n: int, seed: int) -> Tensor | None:
        """The condition (n,) of each image, sampled in proportion to p(k | what is seen of it).

        seen: the measurement of one image. classes: (n,), whose conditions come into question."""
        conditioning = self.denoiser.conditioning
        if not conditioning.count:
            return None
        condition = torch.zeros(n, dtype=torch.long)
        for number in [None] if classes is None else classes.unique().tolist():
            prior = conditioning.log_prior(None if number is None else [number])
            log_p = inference.log_posterior(self.denoiser, seen, prior, seed)
            rows = torch.ones(n, dtype=torch.bool) if number is None else classes == number
            condition[rows] = inference.chosen(log_p, range(n), seed)[rows]
        return condition


def ode_steps(steps: Any) -> int:
    """A number of steps of the ODE. Raises UserError for one that cannot be."""
    found = whole("steps", steps)
    if not 1 <= found <= MOST_STEPS:
        raise UserError(f"steps must be at least 1 and at most {MOST_STEPS:,}, not {found}")
    return found
