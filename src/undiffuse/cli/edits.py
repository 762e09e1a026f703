"""The verbs that start from images: inpaint, edit, interpolate, restore, encode."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import Positional

from undiffuse.base.errors import UserError
from undiffuse.base.lazy import lazy
from undiffuse.cli.output import by_default, say
from undiffuse.cli.verbs import grid_of, sampled_images
from undiffuse.diffusion.inverse import METHODS
from undiffuse.diffusion.operators import OPERATORS
from undiffuse.training.fields import among

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from undiffuse import api
    from undiffuse.base import pixels
    from undiffuse.data import one_image
    from undiffuse.model import Model, Request
    from undiffuse.runs import destinations
    from undiffuse.runs.destinations import Destination
else:
    torch, api = lazy("torch"), lazy("undiffuse.api")
    one_image, destinations = lazy("undiffuse.data.one_image"), lazy("undiffuse.runs.destinations")
    pixels = lazy("undiffuse.base.pixels")

OF_RUN = by_default("the run's")
CLASS_FLAGS = tyro.conf.arg(aliases=["--class", "--label"])
Classes = Annotated[tuple[str, ...], CLASS_FLAGS, by_default("inferred from the image")]
OneClass = Annotated[tuple[str, ...], CLASS_FLAGS, by_default("none")]


@dataclass(frozen=True)
class Steps:
    """How the images are sampled."""

    sampler: Annotated[str | None, tyro.conf.arg(help=among("sampler")), OF_RUN] = None
    steps: Annotated[int | None, by_default("50")] = None
    """number of sampling steps"""
    grid: Annotated[
        str | None, tyro.conf.arg(help=among("grid", "times of the steps: ")), OF_RUN
    ] = None
    guidance: Annotated[float | None, by_default("the run's, with a class")] = None
    """classifier-free guidance towards the class; 1 is none"""
    seed: int = 0
    """the same seed gives the same images"""
    batch_size: int = 256
    """images that are sampled at once"""

    def options(self, run: Path) -> dict[str, Any]:
        """The options as `Editor` takes them."""
        return asdict(self) | {"grid": grid_of(run, self.grid)}


@dataclass(frozen=True)
class Place:
    """What is read and where it is written."""

    invert: bool = False
    """exchange light and dark in the image, as for ink on paper"""
    out: Annotated[str | None, by_default("RUN/VERB.png")] = None
    """FILE.png for a sheet, FILE.npz for an archive, or FOLDER/ for a PNG file of each image"""
    overwrite: bool = False
    """replace files of that name that undiffuse did not write"""

    def of(self, run: Path, name: str) -> Destination:
        """The destination. name: of the file in the run folder that is the default."""
        return destinations.destination(self.out or str(run / name), overwrite=self.overwrite)


Sampled = Annotated[Steps, tyro.conf.OmitArgPrefixes]
Placed = Annotated[Place, tyro.conf.OmitArgPrefixes]


def inpaint(
    run: Positional[Path],
    image: Path,
    mask: Annotated[Path | None, by_default("none, with --box")] = None,
    box: Annotated[str | None, by_default("none, with --mask")] = None,
    n: int = 16,
    classes: Classes = (),
    method: Annotated[str, tyro.conf.arg(help=" | ".join(METHODS))] = "mmps",
    sampled: Sampled = Steps(),
    place: Placed = Place(),
) -> None:
    """Sample a part of an image anew, in several ways.

    Args:
        run: the run folder
        image: a PNG or JPEG file; it is made to fit the model's images
        mask: a picture as large as the model's images, white where the image is to be new
        box: LEFT,TOP,RIGHT,BOTTOM in pixels: the part that is to be new; 14,0,28,28 is the right
            half of a digit
        n: number of images
        classes: of the new images, by name or number, in turn
    """
    model = api.load(run)
    to = place.of(run, "inpaint.png")
    if (mask is None) == (box is None):
        raise UserError("give either --mask FILE.png or --box LEFT,TOP,RIGHT,BOTTOM")
    given = one_of(image, model, invert=place.invert)
    shape = model.description.shape
    new = one_image.read_mask(mask, shape) if mask is not None else in_box(box or "", shape)
    request = model.editor.inpaint(given, new, n, classes or None, method, sampled.options(run))
    hidden = torch.where(new, torch.full_like(given, 128), given)
    finish(to, "inpaint", request, [given, hidden], {"method": method})


def edit(
    run: Positional[Path],
    image: Path,
    strength: float = 0.6,
    n: int = 16,
    classes: Classes = (),
    sampled: Sampled = Steps(),
    place: Placed = Place(),
) -> None:
    """Vary an image: noise is added to it, and taken away again.

    Args:
        run: the run folder
        image: a PNG or JPEG file; it is made to fit the model's images
        strength: the time up to which noise is added; 0 is the image itself, 1 a new image
        n: number of images
        classes: of the new images, by name or number, in turn
    """
    model = api.load(run)
    to = place.of(run, "edit.png")
    given = one_of(image, model, invert=place.invert)
    request = model.editor.edit(given, strength, n, classes or None, sampled.options(run))
    finish(to, "edit", request, [given], {"strength": strength})


def interpolate(
    run: Positional[Path],
    first: Annotated[str, tyro.conf.arg(name="from")],
    second: Annotated[str, tyro.conf.arg(name="to")],
    n: int = 12,
    classes: OneClass = (),
    sampled: Sampled = Steps(),
    place: Placed = Place(),
) -> None:
    """Walk from one image to another, through their noises.

    Without --sampler it takes Heun's method, and without --guidance none.

    Args:
        run: the run folder
        first: FILE.png, or seed:N for the noise with which sampling with that seed begins
        second: the other end, of the same kinds
        n: number of images, the two ends included
        classes: one class for all of them
    """
    model = api.load(run)
    to = place.of(run, "interpolate.png")
    ends = end_of(first, model, invert=place.invert), end_of(second, model, invert=place.invert)
    request = model.editor.interpolate(*ends, n, classes or None, sampled.options(run))
    files = [end for end in ends if not isinstance(end, int)]
    finish(to, "interpolate", request, files, {"from": first, "to": second})


def restore(
    run: Positional[Path],
    image: Path,
    operator: Annotated[
        str, tyro.conf.arg(help=f"what was done to it: {' | '.join(OPERATORS)}, as blur:sigma=2")
    ],
    noise: float = 0.05,
    degrade: bool = False,
    n: int = 16,
    classes: Classes = (),
    method: Annotated[str, tyro.conf.arg(help=" | ".join(METHODS))] = "mmps",
    sampled: Sampled = Steps(),
    place: Placed = Place(),
) -> None:
    """Sample images that may have become the given one: sharp ones for a blurred one.

    The answers differ, because the given image does not say everything.

    Args:
        run: the run folder
        image: a PNG or JPEG file, after the operator; with --degrade, before it
        noise: the standard deviation of the noise in it; 1 is the distance from black to white
        degrade: apply the operator and the noise to the image first
        n: number of images
        classes: of the images, by name or number, in turn
    """
    model = api.load(run)
    to = place.of(run, "restore.png")
    given = one_of(
        image, model, model.editor.measured_shape(operator, degrade=degrade), invert=place.invert
    )
    seen = model.editor.degraded(given, operator, noise, sampled.seed) if degrade else given
    request = model.editor.restore(
        seen, operator, noise, n, classes or None, method, sampled.options(run)
    )
    shown = [given] if degrade else []
    shown.append(enlarged(seen, model.description.shape))
    about = {"operator": operator, "noise": noise, "method": method}
    finish(to, "restore", request, shown, about)


def encode(
    run: Positional[Path],
    image: Path,
    classes: OneClass = (),
    steps: int = 100,
    invert: bool = False,
    out: Annotated[str | None, by_default("RUN/encode.npz")] = None,
    overwrite: bool = False,
) -> None:
    """Find the noise that the ODE leads to an image, and go back from it. Prints the error.

    Args:
        run: the run folder
        image: a PNG or JPEG file; it is made to fit the model's images
        classes: one class, by name or number
        steps: steps of Heun's method, of two network calls each
        invert: exchange light and dark in the image, as for ink on paper
        out: FILE.npz for the noise and the image after the way back, or FILE.png for a picture
        overwrite: replace files of that name that undiffuse did not write
    """
    model = api.load(run)
    to = destinations.destination(out or str(run / "encode.npz"), overwrite=overwrite)
    if to.kind == "folder":
        raise UserError(f"out={to}: write FILE.npz or FILE.png")
    given = one_of(image, model, invert=invert)
    of_class = classes or None
    noise = model.encode(given[None], of_class, steps=steps)
    back = pixels.from_array(model.decode(noise, of_class, steps=steps), model.description.shape)
    error = (back.float() - given.float()).abs().mean().item()
    seen = pixels.to_uint8(noise / 3)
    destinations.save_encoded(to, given[None], noise, seen, back)
    say(
        f"{to}: the noise by {steps} steps of Heun's method (mean {noise.mean():.2f}, standard "
        f"deviation {noise.std():.2f}); there and back the mean error is {error:.2f} of 255"
    )


# --- Parts ---


def one_of(path: Path, model: Model, shape: tuple[int, ...] = (), *, invert: bool) -> Tensor:
    """The image in a file, uint8 (C, H, W), made to fit. What was changed is printed.

    shape: (C, H, W) of the image; by default that of the model's images."""
    channels, height, width = shape or model.description.shape
    found = one_image.read_image(path, (channels, height, width), invert=invert)
    for note in found.notes:
        say(note)
    return found.pixels


def end_of(text: str, model: Model, *, invert: bool) -> Tensor | int:
    """An end of a walk: the image in a file, or the number of "seed:3"."""
    if not text.startswith("seed:"):
        return one_of(Path(text), model, invert=invert)
    number = text.removeprefix("seed:")
    if not number.isdecimal():
        raise UserError(f"'{text}' is no seed; write seed: and a number, such as seed:3")
    return int(number)


def in_box(text: str, shape: tuple[int, int, int]) -> Tensor:
    """Which pixels (H, W) are in the box LEFT,TOP,RIGHT,BOTTOM."""
    sides = text.split(",")
    if len(sides) != 4 or not all(side.strip().isdecimal() for side in sides):
        raise UserError(f"--box {text}: give four numbers, LEFT,TOP,RIGHT,BOTTOM, in pixels")
    names = ("left", "top", "right", "bottom")
    spec = ",".join(f"{name}={int(side)}" for name, side in zip(names, sides, strict=True))
    return ~OPERATORS[f"mask:{spec}"](shape).kept


def enlarged(image: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """A measurement (C, H', W') as large as the model's images, without smoothing."""
    _, height, width = shape
    if tuple(image.shape) == shape:
        return image
    return torch.nn.functional.interpolate(image[None].float(), (height, width))[0].byte()


def finish(
    to: Destination,
    verb: str,
    request: Request,
    shown: list[Tensor],
    about: dict[str, Any],
) -> None:
    """Sample a request, write the images, and say where. shown: images before them in a sheet."""
    begin = time.monotonic()
    images = sampled_images(request)
    seconds = time.monotonic() - begin
    names = request.denoiser.conditioning.classes
    before = torch.stack(shown) if shown else None
    note = {"verb": verb, **about, **request.note}
    destinations.save_images(to, images, request.classes, names, note, before=before)
    name = str(about.get("method", "")).partition(":")[0]
    by = "smc" if name == "smc" else request.sampling.sampler
    say(f"{to}: {request.n:,} images by {by}, {request.steps} steps, in {seconds:.1f} s")
