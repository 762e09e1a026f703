"""`Model`: a network with everything that is needed to use it.

model = Model.load("runs/digits/model.safetensors")
model.sample(n=8, classes="7")      # uint8 images
model(x_t, t, classes=[7, 7])       # denoised images
model.bits(images)                  # bits per dimension
model.inpaint(image, mask)          # and edit, interpolate, restore, encode, decode
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from undiffuse.base.errors import UserError
from undiffuse.base.files import as_path
from undiffuse.base.given import as_tensor, as_times, check_numbers
from undiffuse.base.images import as_array
from undiffuse.base.pixels import from_array, to_float, to_uint8
from undiffuse.base.process import undisturbed
from undiffuse.base.rng import normal_each
from undiffuse.base.tensors import load_tensors, not_finite, save_tensors
from undiffuse.diffusion.denoiser import Denoiser
from undiffuse.diffusion.encoding import STEPS
from undiffuse.diffusion.likelihood import CHAIN, variational_bound
from undiffuse.diffusion.process import jump
from undiffuse.diffusion.sampling import unguidable
from undiffuse.model.description import Description
from undiffuse.model.edits import Editor
from undiffuse.model.request import BATCH, Request, counts, given_options
from undiffuse.model.wrap import Level, Wrapped, description_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from undiffuse.diffusion.operators import Operator


class Model:
    """A network with its schedule, prediction, conditioning and image shape, ready to use.

    Raises UserError for a prediction that the schedule makes impossible."""

    @undisturbed()
    def __init__(self, description: Description, network: nn.Module | None = None) -> None:
        """network: it has the weights. None: a new network that is not trained."""
        self.description = description
        self.network = (network if network is not None else description.build()).eval()
        self.denoiser = Denoiser(
            self.network,
            description.schedule,
            description.predict,
            description.shape,
            description.conditioning,
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes that the model is conditioned on; () for none."""
        return self.description.conditioning.classes

    def describe(self) -> dict[str, Any]:
        """The description as plain data."""
        return asdict(self.description)

    @classmethod
    def wrap(
        cls,
        function: Callable[..., Any],
        shape: Sequence[int],
        *,
        schedule: str = "linear",
        predict: str = "eps",
        level: Level = "step",
        steps: int = 1000,
        classes: Sequence[str] = (),
    ) -> Model:
        """A model around any function (noisy images (B, C, H, W), noise level (B,)) -> its output.

        predict: what it returns, such as "x0", "eps" or "v". level: what it is told of the noise:
        "step", 0 to steps - 1; "t", in (0, 1]; "log-snr"; or "sigma", which is sigma / alpha, and
        then it gets x_t / alpha. classes: with names of classes it takes class numbers as a third
        argument, of which len(classes) stands for none. Raises UserError for what cannot be."""
        found = description_of(shape, schedule, predict, level, classes)
        network = Wrapped(function, schedule, level, steps, bool(classes))
        return cls(Description(**found), network)

    # --- Files ---

    def save(self, path: str | Path) -> None:
        """Write the weights and the description to one file, FILE.safetensors.

        Raises UserError for a wrapped function, which no file can hold."""
        if isinstance(self.network, Wrapped):
            raise UserError("a wrapped function cannot be saved; save it in its own way")
        metadata = {
            "step": str(self.description.step),
            "model": json.dumps(self.describe()),
        }
        save_tensors(as_path(path), dict(self.network.state_dict()), metadata)

    @classmethod
    @undisturbed()
    def load(cls, path: str | Path) -> Model:
        """The model that `save` wrote, or a finished run's model.safetensors.

        Raises UserError for a file that is missing, damaged or not a model. The error names it."""
        path = as_path(path)
        if not path.is_file():
            raise UserError(f"{path} does not exist; give a file that Model.save wrote")
        tensors, metadata = load_tensors(path)
        if strange := not_finite(tensors):
            raise UserError(f"{path} is damaged: its {strange} is not finite")
        try:
            found = TypeAdapter(Description).validate_json(metadata.get("model", ""))
            return cls.of_tensors(found, tensors, path)
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(f"{path} is not a model: {first['msg']}") from error

    @classmethod
    def of_tensors(
        cls, description: Description, tensors: dict[str, Tensor], source: Path
    ) -> Model:
        """A model with these weights. source: their file, for errors.

        Raises UserError where names or shapes of the weights do not fit the description."""
        # Compared before memory is allocated: a damaged description may ask for any size.
        try:
            promised = cls(description, description.build(device="meta")).network.state_dict()
        except UserError as error:
            raise UserError(f"{source} is not a model: {error}") from error
        found = {name: value.shape for name, value in tensors.items()}
        if found != {name: value.shape for name, value in promised.items()}:
            raise UserError(f"the weights in {source} do not fit its description of the network")
        network = description.build()
        network.load_state_dict(tensors)
        return cls(description, network)

    # --- Use ---

    @undisturbed()
    @torch.no_grad()
    def __call__(
        self,
        x_t: Tensor | NDArray[Any],
        t: Tensor | NDArray[Any] | float,
        classes: Any = None,
        *,
        samples: Sequence[int] | None = None,
        seed: int = 0,
    ) -> Tensor:
        """x_0_hat float32 (B, C, H, W): noisy images x_t (B, C, H, W), denoised.

        t: times in (0, 1], () or (B,). classes: numbers or names, one for all images or one each;
        None for the unconditional prediction.

        Where a class has clusters, one of them is sampled for each image, in proportion to its
        size. The cluster is a function of seed and of the image's index, so an image keeps its
        cluster from call to call. samples: the indices, 0 to B - 1 by default.

        Raises UserError for images of another shape or type, for other times, for unknown classes,
        or where the model cannot predict without a class."""
        x_t = self.noisy(x_t)
        count = len(x_t)
        t = as_times(t, count)
        check_numbers(count, seed)
        if classes is None:
            if not self.description.conditioning.unconditional:
                raise UserError(unguidable(self.denoiser))
            return self.denoiser(x_t, t)
        numbers = self.one_each(classes, count)
        indices = range(count) if samples is None else samples
        if len(indices) != count:
            raise UserError(f"samples has {len(indices)} entries for {count} images; give one each")
        condition = self.description.conditioning.sample(numbers, indices, seed)
        return self.denoiser(x_t, t, condition=condition)

    def noisy(self, x_t: Any, name: str = "x_t") -> Tensor:
        """A user's noisy images as float32 (B, C, H, W). Raises UserError for other arrays."""
        found = as_tensor(name, x_t)
        if tuple(found.shape[1:]) != self.description.shape or not len(found):
            wanted = ", ".join(map(str, self.description.shape))
            raise UserError(f"{name} must be (B, {wanted}), not {tuple(found.shape)}")
        if not found.is_floating_point():
            raise UserError(
                f"{name} must be floats, not {str(found.dtype).partition('.')[2]}; `noised` makes "
                "them from images"
            )
        return found.float()

    def one_each(self, classes: Any, count: int) -> Tensor:
        """The class number (count,) of each image: of `classes`, one for all or one each."""
        numbers = torch.tensor(self.description.conditioning.class_numbers(classes))
        if len(numbers) not in (1, count):
            raise UserError(f"classes has {len(numbers)} entries for {count} images; give one each")
        return numbers.expand(count)

    @undisturbed()
    def noised(
        self,
        images: NDArray[np.uint8] | Tensor,
        t: Tensor | NDArray[Any] | float,
        *,
        seed: int = 0,
    ) -> Tensor:
        """x_t (n, C, H, W): images with noise, by the jump (3).

        images: as for `bits`. t: times in [0, 1], () or (n,). The noise of an image is a function
        of seed and of the image's index. Raises UserError for other images and times."""
        x_0 = to_float(from_array(images, self.description.shape))
        check_numbers(len(x_0), seed)
        level = self.denoiser.noise_level(as_times(t, len(x_0), zero=True))
        noise = normal_each(range(len(x_0)), self.description.shape, seed, "noised", 0)
        return jump(x_0, noise, level.alpha, level.sigma)

    @undisturbed()
    def request(
        self, n: int = 64, classes: Any = None, *, batch_size: int = BATCH, **sampling: Any
    ) -> Request:
        """A request for n images, with all options checked.

        classes: numbers or names; the images take them in turn. By default they take all classes in
        turn. batch_size: images that are sampled at once. sampling: fields of `Sampling`; the
        others are the model's own. Raises UserError for options that the model does not support."""
        given = given_options(sampling)
        n, batch_size = counts(n, batch_size, given.get("seed", 0))
        conditioning = self.description.conditioning
        cycle = list(range(len(self.classes)))
        if classes is not None:
            cycle = conditioning.class_numbers(classes)
        numbers = torch.tensor(cycle)[torch.arange(n) % len(cycle)] if cycle else None
        own = self.description.sampling
        free = {"seed", "precision"}
        same = all(given[name] == getattr(own, name) for name in given.keys() - free)
        usual = classes is None and same
        chosen = replace(own, **given).checked(self.denoiser)
        step = self.description.step
        return Request(self.denoiser, step, n, numbers, chosen, batch_size, usual)

    @undisturbed()
    def sample(self, n: int = 64, classes: Any = None, **options: Any) -> NDArray[np.uint8]:
        """n new images, uint8 (n, H, W), or (n, H, W, 3) in colour. See `request` for the options.

        The same seed gives the same images with any batch size."""
        return as_array(self.request(n, classes, **options).images())

    @undisturbed()
    def bits(
        self, images: NDArray[np.uint8] | Tensor, classes: Any = None, *, seed: int = 0
    ) -> NDArray[np.float64]:
        """Bits per dimension (n,) of images: an upper bound on their code length.

        images: uint8 (n, H, W), (n, H, W, 3) or (n, C, H, W). classes: one for all images or one
        each, for a model that is conditioned on classes. A model with clusters is measured without
        conditions. The bound is that of a chain of T steps (`diffusion/likelihood.py`).

        Raises UserError for classes that the model does not know, or where it cannot predict
        without a class."""
        batch = from_array(images, self.description.shape)
        check_numbers(len(batch), seed)
        conditioning = self.description.conditioning
        numbers = None
        if conditioning.clusters and classes is not None:
            raise UserError(
                "this model is conditioned on clusters, so its bits are those of the unconditional "
                "model; leave classes out"
            )
        if classes is not None:
            numbers = self.one_each(classes, len(batch))
        elif not conditioning.unconditional:
            raise UserError(unguidable(self.denoiser))
        chain = self.description.chain or CHAIN
        bound = variational_bound(self.denoiser, batch, numbers, steps=chain, seed=seed)
        return bound.total.numpy()

    # --- Images to start from ---

    @property
    def editor(self) -> Editor:
        """What makes the requests of the methods below."""
        return Editor(self.denoiser, self.description.sampling, self.description.step)

    @undisturbed()
    def inpaint(
        self,
        image: NDArray[np.uint8] | Tensor,
        mask: Any,
        n: int = 16,
        classes: Any = None,
        *,
        method: str = "mmps",
        **options: Any,
    ) -> NDArray[np.uint8]:
        """n images, as `sample` gives them, in which only the pixels under the mask are new.

        image: uint8 (H, W), or (H, W, 3) in colour. mask: (H, W), not 0 where a pixel is new.
        method: see `diffusion/inverse.py`. options: as for `request`."""
        return as_array(self.editor.inpaint(image, mask, n, classes, method, options).images())

    @undisturbed()
    def edit(
        self,
        image: NDArray[np.uint8] | Tensor,
        strength: float = 0.6,
        n: int = 16,
        classes: Any = None,
        **options: Any,
    ) -> NDArray[np.uint8]:
        """n variations of an image: noise is added up to time `strength`, and taken away again.

        strength: 0 gives the image itself, 1 a new image. Others: as for `inpaint`."""
        return as_array(self.editor.edit(image, strength, n, classes, options).images())

    @undisturbed()
    def interpolate(
        self, first: Any, second: Any, n: int = 12, classes: Any = None, **options: Any
    ) -> NDArray[np.uint8]:
        """n images on the way from `first` to `second`, through their noises.

        first, second: an image, or the seed of a noise. classes: one class, or none. Others: as
        for `inpaint`; the sampler is Heun's method, without guidance, by default."""
        return as_array(self.editor.interpolate(first, second, n, classes, options).images())

    @undisturbed()
    def restore(
        self,
        measured: Any,
        operator: str | Operator,
        noise: float = 0.05,
        n: int = 16,
        classes: Any = None,
        *,
        method: str = "mmps",
        **options: Any,
    ) -> NDArray[np.uint8]:
        """n images whose measurement by `operator` may be `measured`.

        measured: uint8 (H', W'), or (H', W', 3) in colour. operator: a spec such as "blur:sigma=2",
        or an object with apply and transpose (`diffusion/operators.py`). noise: the standard
        deviation of the measurement's noise; 1 is the distance from black to white. Others: as for
        `inpaint`."""
        request = self.editor.restore(measured, operator, noise, n, classes, method, options)
        return as_array(request.images())

    @undisturbed()
    def encode(
        self, images: NDArray[np.uint8] | Tensor, classes: Any = None, *, steps: int = STEPS
    ) -> Tensor:
        """The noise (n, C, H, W) of images, by the probability-flow ODE.

        images, classes: as for `bits`. steps: of Heun's method, two network calls each."""
        x = to_float(from_array(images, self.description.shape))
        return self.editor.encode(x, self.condition_of(classes, len(x)), steps)

    @undisturbed()
    def decode(
        self, noise: Tensor | NDArray[Any], classes: Any = None, *, steps: int = STEPS
    ) -> NDArray[np.uint8]:
        """The images of noises (n, C, H, W): the inverse of `encode`, with the same options."""
        x = self.noisy(noise, "noise")
        condition = self.condition_of(classes, len(x))
        return as_array(to_uint8(self.editor.decode(x, condition, steps)))

    def condition_of(self, classes: Any, count: int) -> Tensor | None:
        """The condition (count,) of each image. Without classes, the unconditional one."""
        if classes is None:
            return self.editor.unconditional(count)
        numbers = self.one_each(classes, count)
        # One cluster for each class, so that an image's does not depend on its place.
        return self.description.conditioning.sample(numbers, [0] * count, 0)
