"""One image file, read as a viewer shows it."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from undiffuse.base.errors import UserError
from undiffuse.base.images import is_drawn
from undiffuse.base.lazy import lazy
from undiffuse.data.values import Scale, scale_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image
else:
    np = lazy("numpy")

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
ENDINGS = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif"
)  # fmt: skip
"""How the names of image files end that are read; upper case is read too."""

UNREAD = (
    ".heic", ".heif", ".avif", ".svg", ".jp2", ".jxl", ".psd", ".tga", ".ico", ".ppm", ".pgm",
    ".exr", ".hdr", ".dng", ".nef", ".cr2", ".cr3", ".arw", ".raw", ".pcx", ".xcf", ".npz", ".npy",
)  # fmt: skip
"""How the names of files with images end that are passed over beside others, with a note."""

MAX_PIXELS = 4096 * 4096
"""The most pixels of one image file."""


class Picture(NamedTuple):
    """One image file.

    pixels: uint8 (H, W, C) with C = 1 or 3, on black. alpha: uint8 (H, W, 1), None for an opaque
    picture. brightest: its largest value before it was resized. brightest_16: that of 16 bits, or
    None for a picture of 8 bits. span: the smallest and the largest of its floats, None for whole
    numbers. first: whether the file has more pictures, which are not read."""

    pixels: NDArray[np.uint8]
    alpha: NDArray[np.uint8] | None
    brightest: int
    brightest_16: int | None
    span: tuple[float, float] | None
    first: bool


class Values(NamedTuple):
    """How the values of pictures become bytes.

    factor: bytes are multiplied by it. floats: the scale of floats; None for each picture's own."""

    factor: int = 1
    floats: Scale | None = None


AS_STORED = Values()


class BrokenPicture(UserError):
    """A file that should be a picture and cannot be read as one."""


def read_picture(path: Path, size: int | None, values: Values = AS_STORED) -> Picture | None:
    """The picture in an image file. None for a sheet that undiffuse drew.

    size: crop it to its central square and resize that. Raises BrokenPicture for a broken file, and
    UserError for one that is too large."""
    from PIL import Image

    with path.open("rb") as file, pillows_own_limits():
        try:
            image = opened(file)
            if is_drawn(image):
                return None
            first = bool(getattr(image, "is_animated", False))
            white_is_0 = image.mode.startswith("I") and is_white_0(image)
            image = turned(image)
            span = scale = None
            if image.mode == "F":
                span = extrema(image)[0]
                scale = values.floats or scale_of(*span, "the picture", floats=True)
            image, alpha, brightest_16 = shown(image, scale, white_is_0=white_is_0)
        except MemoryError:
            raise
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        except Image.DecompressionBombError:
            raise UserError(
                f"{path} has more than {MAX_PIXELS} pixels; make it smaller or remove it"
            ) from None
        except Exception as error:  # a decoder may raise anything for a broken file
            raise BrokenPicture(f"{path} is broken or no image; fix or remove it") from error
    brightest = max(high for _, high in extrema(image))
    if values.factor != 1:
        image = image.point(
            [min(255, values.factor * value) for value in range(256)] * len(image.getbands())
        )
    if size is not None:
        image = square(image, size)
        alpha = alpha and square(alpha, size)
    shape = image.height, image.width, -1
    covered = None if alpha is None else np.asarray(alpha).reshape(shape)
    pixels = np.asarray(image).reshape(shape)
    return Picture(pixels, covered, brightest, brightest_16, span, first)


@contextmanager
def pillows_own_limits() -> Iterator[None]:
    """A context in which Pillow reads no half of a picture, whatever the caller has set.

    Its limit of pixels is off: MAX_PIXELS is stricter."""
    from PIL import Image, ImageFile

    kept = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
    ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, None
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = kept


def is_picture(file: Path) -> bool:
    """Whether a file is a picture that is read, by its ending or else by its first bytes."""
    ending = file.suffix.lower()
    if ending in ENDINGS or ending in UNREAD:
        return ending in ENDINGS
    try:
        with file.open("rb") as content:
            start = content.read(18)
    except OSError:
        return False
    of_bmp = start[:2] == b"BM" and start[6:10] == bytes(4) and start[14:18] in BMP_HEADERS
    return start.startswith(STARTS) or start[:4] + start[8:12] == b"RIFFWEBP" or of_bmp


def extrema(image: Image.Image) -> list[tuple[int, int]]:
    """(the smallest value, the largest value) of each band of an image."""
    found: Any = image.getextrema()
    return [found] if len(image.getbands()) == 1 else list(found)


def opened(file: Any) -> Image.Image:
    """The decoded image in a file, the first one of an animation.

    A PNG file whose texts or colour profile are too long for Pillow is read without them."""
    from PIL import Image

    try:
        return decoded(file)
    except Image.DecompressionBombError:
        raise
    except Exception:
        file.seek(0)
        content = file.read()
        if not content.startswith(SIGNATURE):
            raise
        return decoded(io.BytesIO(without_texts(content)))


def decoded(file: Any) -> Image.Image:
    """The image in a file. Raises DecompressionBombError where it has too many pixels."""
    from PIL import Image

    Image.init()  # the formats beyond the most common ones
    image: Image.Image = Image.open(file, formats=FORMATS)  # reads the header only
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError
    image.load()
    return image


SIGNATURE = b"\x89PNG\r\n\x1a\n"
STARTS = (SIGNATURE, b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
"""How PNG, JPEG, GIF and TIFF files begin."""
BMP_HEADERS = {struct.pack("<I", size) for size in (12, 40, 52, 56, 108, 124)}
TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf")


def without_texts(png: bytes) -> bytes:
    """A PNG file without its chunks of text, colour profile and camera data."""
    kept, place = [SIGNATURE], len(SIGNATURE)
    while place + 12 <= len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        if png[place + 4 : place + 8] not in TEXTS:
            kept.append(png[place : place + 12 + length])
        place += 12 + length
    return b"".join(kept)


def turned(image: Image.Image) -> Image.Image:
    """The image as the camera was held. Where the camera's data are broken it stays as it is."""
    from PIL import ImageOps

    with suppress(Exception):  # a reader of broken data may raise anything
        return ImageOps.exif_transpose(image)
    return image


def is_white_0(image: Image.Image) -> bool:
    """Whether a TIFF file stores white as 0. Pillow turns that round for 8 bits only."""
    tags: Any = getattr(image, "tag_v2", {})
    return tags.get(262) == 0  # PhotometricInterpretation


def shown(
    image: Image.Image, scale: Scale | None, *, white_is_0: bool
) -> tuple[Image.Image, Image.Image | None, int | None]:
    """(the image in mode L or RGB, on black; its alpha or None; its largest value of 16 bits).

    scale: of an image of floats, else None. white_is_0: whether 16 bits are stored as in a
    negative."""
    from PIL import Image

    brightest_16 = None
    if scale is not None:
        image = Image.fromarray(scale(np.asarray(image)))
    if image.mode.startswith("I"):  # 16 bits: 65535 = 257 * 255
        sixteen, clear = np.asarray(image), image.info.get("transparency", -1)
        brightest_16 = int(sixteen.max())
        if not 0 <= sixteen.min() <= brightest_16 <= 65535:
            raise UserError(f"values from {sixteen.min()} to {brightest_16} are no 16-bit image")
        if white_is_0:
            sixteen = 65535 - sixteen.astype(np.int32)
            brightest_16 = int(sixteen.max())
        image = Image.fromarray(np.rint(sixteen * (sixteen != clear) / 257).astype(np.uint8))
        if (sixteen == clear).any():
            image.putalpha(Image.fromarray(((sixteen != clear) * 255).astype(np.uint8)))
    opaque = "L" if image.mode in ("1", "L", "LA") else "RGB"
    if not image.has_transparency_data:
        return image.convert(opaque), None, brightest_16
    image = image.convert(opaque + "A")
    black, alpha = Image.new(opaque, image.size), image.getchannel("A")
    black.paste(image.convert(opaque), mask=alpha)
    everywhere = alpha.getextrema() == (255, 255)
    return black, None if everywhere else alpha, brightest_16


def square(image: Image.Image, size: int) -> Image.Image:
    """The central square of an image, resized to (size, size)."""
    return fitted(image, size, size)


def fitted(image: Image.Image, width: int, height: int) -> Image.Image:
    """The largest part in an image's middle that has the shape width x height, resized to it."""
    from PIL import Image

    scale = min(image.width / width, image.height / height)
    wide, high = round(width * scale), round(height * scale)
    left, top = (image.width - wide) // 2, (image.height - high) // 2
    return image.resize(
        (width, height), Image.Resampling.LANCZOS, box=(left, top, left + wide, top + high)
    )
