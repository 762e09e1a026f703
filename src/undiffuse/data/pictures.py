"""Image files: a data set from PNG and JPEG files, and images resized."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from undiffuse.base.errors import UserError
from undiffuse.base.lazy import lazy
from undiffuse.data.dataset import Dataset, check_bytes, dataset_from_arrays

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL import Image
else:
    torch = lazy("torch")
    np = lazy("numpy")

MAX_PIXELS = 4096 * 4096
"""The most pixels of one image file."""


def read_pictures(folder: Path, paths: list[Path], size: int | None) -> Dataset:
    """The data set of the image files at `paths`, which are in `folder` and below.

    The sub-folders of `folder` are the classes. size: as in `load_dataset`. Raises UserError for a
    broken file, for different sizes without `size`, and for files both in sub-folders and beside
    them."""
    from PIL import Image

    parents = [path.relative_to(folder).parts[0] if path.parent != folder else "" for path in paths]
    classes = tuple(sorted({*parents} - {""}))
    if classes and "" in parents:
        loose = paths[parents.index("")].name
        raise UserError(
            f"{folder} holds images ({loose}) beside sub-folders of images ({classes[0]}); "
            "keep one kind"
        )

    pictures: list[NDArray[np.uint8]] = []  # each (H, W, 1) or (H, W, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is stricter
        for path in paths:
            pictures.append(_read_picture(path, size))
            (height, width, _), (h, w, _) = pictures[0].shape, pictures[-1].shape
            if (h, w) != (height, width):
                raise UserError(
                    f"{path} is {w} x {h} and {paths[0]} {width} x {height}; set a size for all"
                )
            check_bytes(folder, len(paths), *pictures[-1].shape)

    channels = max(picture.shape[2] for picture in pictures)
    pixels = np.stack([np.broadcast_to(picture, (height, width, channels)) for picture in pictures])
    dataset = dataset_from_arrays(folder.resolve().name, pixels, None, None)
    if not classes:
        return dataset
    return replace(
        dataset, labels=torch.tensor([classes.index(parent) for parent in parents]), classes=classes
    )


def _read_picture(path: Path, size: int | None) -> NDArray[np.uint8]:
    """The pixels of an image file: (H, W, 1) if it is grey, else (H, W, 3). See `load_dataset`.

    Raises UserError for a file that is broken or too large."""
    from PIL import Image, ImageOps

    with path.open("rb") as file:
        try:
            image: Image.Image = Image.open(file, formats=("PNG", "JPEG"))  # reads the header only
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16 bits: 65535 = 257 * 255
                sixteen = np.asarray(image) * (
                    np.asarray(image) != image.info.get("transparency", -1)
                )
                image = Image.fromarray(np.rint(sixteen / 257).astype(np.uint8))
            opaque = "L" if image.mode in ("1", "L", "LA") else "RGB"
            if image.has_transparency_data:
                image = image.convert(opaque + "A")
                black = Image.new(opaque, image.size)
                black.paste(image.convert(opaque), mask=image.getchannel("A"))
                image = black
            image = image.convert(opaque)
        except Image.DecompressionBombError:
            raise UserError(
                f"{path} has more than {MAX_PIXELS} pixels; make it smaller or remove it"
            ) from None
        except Exception as error:  # a decoder may raise anything for a broken file
            raise UserError(
                f"{path} is broken or no PNG or JPEG image; fix or remove it"
            ) from error
    if size is not None:
        image = _square(image, size)
    pixels: NDArray[np.uint8] = np.asarray(image)
    return pixels.reshape(image.height, image.width, -1)


def _square(image: Image.Image, size: int) -> Image.Image:
    """The central square of an image, resized to (size, size)."""
    from PIL import Image

    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.resize(
        (size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side)
    )


def resized(dataset: Dataset, size: int | None) -> Dataset:
    """The data set with its images cropped to their central squares and resized (Lanczos).

    size: in pixels a side; None leaves the images as they are. Raises UserError where the result
    would be too large."""
    from PIL import Image

    channels, height, width = dataset.shape
    if size is None or height == width == size:
        return dataset
    check_bytes(dataset.name, len(dataset), size, size, channels)
    planes = dataset.images.flatten(0, 1).numpy()  # (N C, H, W)
    squares = np.empty((len(planes), size, size), np.uint8)
    for plane, out in zip(planes, squares, strict=True):
        out[:] = np.asarray(_square(Image.fromarray(plane), size))
    images = torch.from_numpy(squares).view(len(dataset), channels, size, size)
    return Dataset.of(dataset.name, images, dataset.labels, dataset.classes)
