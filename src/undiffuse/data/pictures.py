"""Images to learn from: the embedded MNIST, IDX files, folders of PNG or JPEG images; and the order of the batches.

A data set is one uint8 tensor held whole, (N, C, H, W). A batch is a choice of its rows, and which rows is a function
of (seed, step). Networks see floats in [-1, 1]: x = u / 127.5 - 1 for a byte u, here and nowhere else.

IDX is the format of the MNIST files: two zero bytes, the element type (8: unsigned byte), the number of dimensions,
each dimension as a big-endian 32-bit number, then the elements, the last index fastest. A file is trusted for nothing:
what it promises is compared with its length before memory is asked for.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from undiffuse.base.errors import UserError
from undiffuse.base.lazy import lazy
from undiffuse.data.dataset import Dataset, _check_room, _dataset

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL import Image
else:
    torch = lazy("torch")
    np = lazy("numpy")

MAX_PIXELS = 4096 * 4096  # of one image file


def _read_pictures(folder: Path, paths: list[Path], size: int | None) -> Dataset:
    from PIL import Image

    parents = [path.relative_to(folder).parts[0] if path.parent != folder else "" for path in paths]
    classes = tuple(sorted({*parents} - {""}))
    if classes and "" in parents:
        loose = paths[parents.index("")].name
        raise UserError(
            f"{folder} holds images ({loose}) beside sub-folders of images ({classes[0]}); keep one kind"
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
            _check_room(folder, len(paths), *pictures[-1].shape)

    channels = max(picture.shape[2] for picture in pictures)
    pixels = np.stack([np.broadcast_to(picture, (height, width, channels)) for picture in pictures])
    dataset = _dataset(folder.resolve().name, pixels, None, None)
    if not classes:
        return dataset
    return replace(
        dataset, labels=torch.tensor([classes.index(parent) for parent in parents]), classes=classes
    )


def _read_picture(path: Path, size: int | None) -> NDArray[np.uint8]:
    """An image file as bytes (H, W, 1) if it is grey, else (H, W, 3)."""
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
        except Exception as error:  # whatever the decoder trips over in a broken file
            raise UserError(
                f"{path} is broken or no PNG or JPEG image; mend or remove it"
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


def _resized(dataset: Dataset, size: int | None) -> Dataset:
    from PIL import Image

    channels, height, width = dataset.shape
    if size is None or height == width == size:
        return dataset
    _check_room(dataset.name, len(dataset), size, size, channels)
    planes = dataset.images.flatten(0, 1).numpy()  # (N C, H, W)
    resized = np.empty((len(planes), size, size), np.uint8)
    for plane, out in zip(planes, resized, strict=True):
        out[:] = np.asarray(_square(Image.fromarray(plane), size))
    images = torch.from_numpy(resized).view(len(dataset), channels, size, size)
    return Dataset.of(dataset.name, images, dataset.labels, dataset.classes)
