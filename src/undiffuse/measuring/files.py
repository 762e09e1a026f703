"""Generated images from a file: an .npz file is read and checked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from undiffuse.base.errors import UserError
from undiffuse.base.files import safe_name
from undiffuse.data.dataset import Dataset
from undiffuse.data.loading import files_of
from undiffuse.data.npy import members, read_array
from undiffuse.data.picture import is_picture
from undiffuse.data.pictures import read_pictures
from undiffuse.data.values import stretch
from undiffuse.measuring.reference import FEWEST

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


def read_images(file: Path, training: Dataset) -> tuple[Tensor, Tensor | None, list[str]]:
    """(images uint8 (n, C, H, W), classes (n,) or None, notes) of an .npz file or a folder.

    The file has an array `images`, uint8 (n, H, W) or (n, H, W, C). It may have an array `labels`,
    whole numbers (n,): the class of each image. notes: how the images were changed, or look black,
    a sentence each.

    Raises UserError for images that cannot be compared with the training images."""
    if file.is_dir():
        return read_folder(file, training)
    channels, height, width = training.shape
    arrays = images_and_labels(file)
    pixels, labels = arrays["images"], arrays.get("labels")
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise UserError(f"{file}: images hold NaN or infinity; save them as uint8, 0 to 255")
    if pixels.dtype != np.uint8:
        raise UserError(f"{file}: images are {pixels.dtype}; save them as uint8, 0 to 255")
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.ndim != 4 or pixels.shape[1:] != (height, width, channels):
        raise UserError(
            f"{file}: images have shape {pixels.shape}; those of '{training.name}' are (n, "
            f"{height}, {width}{f', {channels}' if channels > 1 else ''})"
        )
    check_count(file, len(pixels))
    pixels, notes = seen_images(pixels, file)
    generated = torch.from_numpy(np.array(pixels.transpose(0, 3, 1, 2), order="C"))
    if labels is None or not training.classes:
        return generated, None, notes
    if labels.shape != (len(pixels),) or labels.dtype.kind not in "iu":
        raise UserError(
            f"{file}: labels are {labels.dtype} {labels.shape}; save one whole number for "
            f"each of the {len(pixels)} images"
        )
    if labels.min() < 0 or labels.max() >= len(training.classes):
        raise UserError(
            f"{file}: labels go from {labels.min()} to {labels.max()}; with "
            f"{len(training.classes)} classes they must be from 0 to {len(training.classes) - 1}"
        )
    return generated, torch.from_numpy(labels.astype(np.int64)), notes


def seen_images(pixels: NDArray[np.uint8], file: Path) -> tuple[NDArray[np.uint8], list[str]]:
    """(images of 0 and 1 as black and white, others as they are; notes).

    Images that look black are measured as they are, because bad samples may be so."""
    try:
        factor, said = stretch(int(pixels.max()), file)
    except UserError as dark:
        return pixels, [str(dark)]
    return (pixels * factor, [said]) if said else (pixels, [])


def read_folder(folder: Path, training: Dataset) -> tuple[Tensor, Tensor | None, list[str]]:
    """`read_images` of a folder of image files.

    The class of an image is that of its sub-folder, or of a name such as 00012_CLASS.png, if every
    image has one that the training images have too."""
    paths = [path for path in files_of(folder) if is_picture(path)]
    check_count(folder, len(paths))
    found = read_pictures(folder, paths, None)
    check_count(folder, len(found))
    images, (channels, height, width) = found.images, training.shape
    if found.shape == (1, height, width):  # grey images beside training images in colour
        images = images.expand(-1, channels, -1, -1)
    if tuple(images.shape[1:]) != training.shape:
        raise UserError(
            f"{folder}: images are {found.shape}; those of '{training.name}' are {training.shape} "
            "(channels, height, width)"
        )
    numbers = {safe_name(name): number for number, name in enumerate(training.classes)}
    if found.labels is not None:
        names = [found.classes[label] for label in found.labels]
    else:
        names = [path.stem.partition("_")[2] for path in paths]
    known = [numbers[name] for name in map(safe_name, names) if name in numbers]
    labelled = len(known) == len(images)
    return images.contiguous(), torch.tensor(known) if labelled else None, list(found.notes)


def check_count(source: Path, n: int) -> None:
    """Raises UserError where n images, those of `source`, are too few for a statistic."""
    if n < FEWEST:
        raise UserError(f"{source}: {n} images are too few for a statistic; give at least {FEWEST}")


def images_and_labels(file: Path) -> dict[str, NDArray[Any]]:
    """The arrays `images` and, if there is one, `labels` of an .npz file.

    Raises UserError where the file can't be read or has no `images`."""
    try:
        with members(file) as arrays:
            if "images" not in arrays:
                raise UserError(
                    f"{file} has no array 'images'; it has: {', '.join(arrays) or 'none'}"
                )
            names = [name for name in ("images", "labels") if name in arrays]
            return {name: read_array(arrays[name](), f"{file}: {name}") for name in names}
    except FileNotFoundError:
        raise UserError(
            f"{file} does not exist; give an .npz file with an array 'images'"
        ) from None
