"""Images as pictures: grids and animations of uint8 tensors, as PIL images, PNG and GIF files."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from undiffuse.base.lazy import lazy

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL import Image, PngImagePlugin
    from torch import Tensor
else:
    np, torch = lazy("numpy"), lazy("torch")
    Image, PngImagePlugin = lazy("PIL.Image"), lazy("PIL.PngImagePlugin")


def as_picture(image: Tensor) -> Image.Image:
    """One image, uint8 (C, H, W) with C = 1 or 3, as a PIL image."""
    array = image.numpy()
    return Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0))


def as_array(images: Tensor) -> NDArray[np.uint8]:
    """Images uint8 (N, C, H, W) as an array: (N, H, W) for C = 1, else (N, H, W, C)."""
    array: NDArray[np.uint8] = (
        images[:, 0] if images.shape[1] == 1 else images.movedim(1, -1)
    ).numpy()
    return array


def columns_for(count: int, classes: int = 0) -> int:
    """The number of columns for a grid of `count` images.

    Where 2 to 20 `classes` take turns, each column holds images of one class. Otherwise the grid is
    about as wide as it is high."""
    if 1 < classes <= min(count, 20):
        return classes * max(1, min(10, count) // classes)
    return math.ceil(math.sqrt(count))


GAP = 2  # pixels between the images of a grid, before enlargement


def enlargement(height: int, width: int) -> int:
    """The whole factor by which images are enlarged in a grid, to about 56 pixels a side.

    height, width: of an image, in pixels."""
    return max(1, round(56 / max(height, width)))


def image_grid(images: Tensor, columns: int, *, down: bool = False) -> Image.Image:
    """A grid of images uint8 (N, C, H, W), enlarged, filled row by row, with `columns` columns.

    down: fill it column by column, with `columns` rows. Where classes take turns, each row then
    holds images of one class."""
    n, c, h, w = images.shape
    places = [
        divmod(i, columns)[::-1] if down else divmod(i, columns) for i in range(n)
    ]  # (row, column)
    other = math.ceil(n / columns)
    rows, columns = (columns, other) if down else (other, columns)
    sheet = torch.zeros(c, rows * (h + GAP) + GAP, columns * (w + GAP) + GAP, dtype=torch.uint8)
    for image, (row, column) in zip(images, places, strict=True):
        top, left = GAP + row * (h + GAP), GAP + column * (w + GAP)
        sheet[:, top : top + h, left : left + w] = image
    scale = enlargement(h, w)
    return as_picture(sheet.repeat_interleave(scale, 1).repeat_interleave(scale, 2))


def tiles(sheet: Image.Image, height: int, width: int) -> list[Image.Image]:
    """The images of a grid that `image_grid` made, row by row, still enlarged.

    height, width: of an image before it was enlarged, in pixels. The last tiles may be empty."""
    scale = enlargement(height, width)
    tops = range(GAP * scale, sheet.height, (height + GAP) * scale)
    lefts = range(GAP * scale, sheet.width, (width + GAP) * scale)
    return [sheet.crop((x, y, x + width * scale, y + height * scale)) for y in tops for x in lefts]


def animation_bytes(frames: Sequence[Image.Image], milliseconds: int = 80) -> bytes:
    """A GIF that repeats for ever: `milliseconds` for each frame, 1.5 seconds for the last.

    It is marked as drawn by undiffuse."""
    out, mark = io.BytesIO(), NOTE.encode()
    durations = [milliseconds] * (len(frames) - 1) + [1500]
    frames[0].save(
        out, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0,
        comment=mark,
    )  # fmt: skip
    return out.getvalue()


NOTE = "undiffuse"
"""The key of the text chunk of a PNG that holds its note, and the comment of a GIF."""


def is_drawn(picture: Image.Image) -> bool:
    """Whether a picture is marked as drawn by undiffuse."""
    return NOTE in picture.info or picture.info.get("comment") == NOTE.encode()


def png_bytes(image: Image.Image, note: dict[str, Any] | None = None) -> bytes:
    """The image as a PNG file. note: what the picture shows; `note_of` reads it from the file."""
    out, info = io.BytesIO(), PngImagePlugin.PngInfo()
    if note is not None:
        info.add_text(NOTE, json.dumps(note))
    image.save(out, format="PNG", optimize=True, pnginfo=info)
    return out.getvalue()


def note_of(png: bytes) -> dict[str, Any]:
    """The note that `png_bytes` stored in a PNG file. {} for a file without a note, or no PNG."""
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
            found = json.loads(picture.info[NOTE])
    except (
        KeyError,
        TypeError,
        ValueError,
        OSError,
        SyntaxError,
        RecursionError,
        Image.DecompressionBombError,
    ):
        return {}
    return found if isinstance(found, dict) else {}
