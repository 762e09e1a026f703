"""One image file of a user's, made to fit a model: by the rules for data sets of image files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from undiffuse.base.errors import UserError
from undiffuse.base.lazy import lazy
from undiffuse.data.picture import fitted, is_picture, read_picture
from undiffuse.data.pictures import read_one

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image
    from torch import Tensor
else:
    np, torch, Image = lazy("numpy"), lazy("torch"), lazy("PIL.Image")


class OneImage(NamedTuple):
    """An image uint8 (C, H, W). notes: what a user should know, a sentence each."""

    pixels: Tensor
    notes: tuple[str, ...]


def read_image(path: Path, shape: tuple[int, int, int], *, invert: bool = False) -> OneImage:
    """The image in a file, of `shape` (C, H, W).

    It is cropped to the shape's proportions and resized, made grey, or given three channels, where
    it is of another kind. A note says what was lost. invert: light and dark are exchanged, as for
    ink on paper. Raises UserError for a file that is missing, broken, or a sheet of undiffuse's."""
    refuse_no_file(path)
    if read_picture(path, None) is None:
        raise UserError(
            f"{path} is a sheet that undiffuse drew; give one image (sample --out FOLDER/ writes "
            "a file for each)"
        )
    pixels, said = read_one(path)
    notes = [f"{path.name}: {note.partition('; the option background')[0]}" for note in said]
    picture, (channels, height, width) = Image.fromarray(pixels), shape
    if picture.size != (width, height):
        size = f"{picture.width} x {picture.height}"
        cropped = picture.width * height != picture.height * width
        picture = fitted(picture, width, height)
        how = "cropped to its middle and resized" if cropped else "resized"
        notes.append(f"{path.name}: {how} from {size} to {width} x {height} pixels")
    if channels == 1 and picture.mode == "RGB":
        picture = picture.convert("L")
        notes.append(f"{path.name}: its colours are lost, since the model's images are grey")
    fitting = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    image = torch.from_numpy(fitting.reshape(height, width, channels).copy()).movedim(-1, 0)
    return OneImage(255 - image if invert else image, tuple(notes))


def read_mask(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """The mask in an image file, bool (H, W): where it is light, or as light as half of 255.

    Raises UserError for a mask that is not as large as the model's images."""
    refuse_no_file(path)
    found = read_picture(path, None)
    if found is None:
        raise UserError(f"{path} is a sheet that undiffuse drew, not a mask")
    height, width, _ = found.pixels.shape
    if (height, width) != shape[1:]:
        raise UserError(
            f"{path} is {width} x {height} pixels, and the model's images are {shape[2]} x "
            f"{shape[1]}; give a mask of that size, white where the image is to be new"
        )
    light = np.asarray(found.pixels).astype(np.float32).mean(axis=2) * (
        255 / scale_of_mask(found.brightest)
    )
    return torch.from_numpy(light >= 128)


def scale_of_mask(brightest: int) -> int:
    """The value that stands for white: 1 in a mask of 0 and 1, else 255."""
    return 1 if brightest == 1 else 255


def refuse_no_file(path: Path) -> None:
    """Raises UserError unless there is a picture at `path`."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; give one image file")
    if not path.exists():
        raise UserError(f"{path} does not exist; give an image file")
    if not is_picture(path):
        raise UserError(f"{path} is no image file that is read; give a PNG or JPEG file")
