"""Image files: each is read as a viewer shows it, and together they are a data set."""

from __future__ import annotations

import io
import struct
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from undiffuse.base.errors import UserError
from undiffuse.base.files import readable
from undiffuse.base.images import NOTE
from undiffuse.base.lazy import lazy
from undiffuse.data.dataset import Dataset, check_bytes, dataset_from_arrays
from undiffuse.data.values import as_bytes, deep_enough, stretch

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL import Image
else:
    torch = lazy("torch")
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

BACKGROUNDS = ("auto", "black", "white")
DIM = 64
"""On "auto", transparent pictures lie on white where what they show is darker than this, of 255."""


class Picture(NamedTuple):
    """One image file.

    pixels: uint8 (H, W, C) with C = 1 or 3, on black. alpha: uint8 (H, W, 1), None for an opaque
    picture. brightest: its largest value before it was resized. brightest_16: that of 16 bits, or
    None for a picture of 8 bits. first: whether the file has more pictures, which are not read."""

    pixels: NDArray[np.uint8]
    alpha: NDArray[np.uint8] | None
    brightest: int
    brightest_16: int | None
    first: bool


def read_pictures(
    folder: Path,
    paths: list[Path],
    size: int | None,
    background: str = "auto",
    of_class: tuple[str, ...] | None = None,
) -> Dataset:
    """The data set of the image files at `paths`, which are in `folder` and below.

    The sub-folders of `folder` are the classes. size, background: as in `load_dataset`. of_class:
    the classes, where they are known from a training set. Raises UserError for a broken file, for
    different sizes without `size`, and for files both in sub-folders and beside them."""
    classes = of_class if of_class is not None else classes_of(folder, paths)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata; MAX_PIXELS is stricter than Pillow's limit
        pictures = Reading(folder, size, background)
        read = pictures.read(paths)
        if not read.paths:
            raise UserError(
                f"{folder} holds only pictures that undiffuse drew; give a folder of images"
            )
    dataset = dataset_from_arrays(readable(folder.resolve().name), read.pixels, None, None)
    dataset = replace(dataset, notes=tuple(pictures.notes))
    if not classes:
        return dataset
    labels = []
    for path in read.paths:
        if (name := class_of(folder, path)) not in classes:
            raise UserError(
                f"{path} is of the class {name}, which the training images lack; give both the "
                "same classes"
            )
        labels.append(classes.index(name))
    return replace(dataset, labels=torch.tensor(labels), classes=classes)


def class_of(folder: Path, path: Path) -> str:
    """The class of a file: the sub-folder of `folder` in which it is. "" for none."""
    return "" if path.parent == folder else readable(path.relative_to(folder).parts[0])


def classes_of(folder: Path, paths: list[Path]) -> tuple[str, ...]:
    """The names of the classes: numbers in their order, and otherwise by the alphabet.

    Raises UserError for files both in sub-folders and beside them."""
    parents = [class_of(folder, path) for path in paths]
    names = {*parents} - {""}
    numbers = all(name.isdecimal() for name in names)
    classes = tuple(sorted(names, key=lambda name: (int(name) if numbers else 0, name)))
    if classes and "" in parents:
        loose = paths[parents.index("")].name
        raise UserError(
            f"{folder} holds images ({loose}) beside sub-folders of images ({classes[0]}); "
            "keep one kind"
        )
    return classes


@dataclass
class Together:
    """The pictures of a data set: pixels uint8 (N, H, W, C), and their files."""

    pixels: NDArray[np.uint8]
    paths: list[Path]


class Reading:
    """Reads the pictures of a folder. notes: what a user should know, a sentence each."""

    def __init__(self, folder: Path, size: int | None, background: str) -> None:
        self.folder, self.size, self.background = folder, size, background
        self.notes: list[str] = []

    def read(self, paths: list[Path], factor: int = 1) -> Together:
        """The pictures, all of one size and with one number of channels.

        factor: their values are multiplied by it. Raises UserError as `read_pictures` does."""
        pictures, read = list[Picture](), list[Path]()
        for path in paths:
            picture = read_picture(path, self.size, factor)
            if picture is None:
                continue
            pictures.append(picture)
            read.append(path)
            (height, width, _), (h, w, _) = pictures[0].pixels.shape, picture.pixels.shape
            if (h, w) != (height, width):
                raise UserError(
                    f"{path} is {w} x {h} and {read[0]} {width} x {height}; set a size for all"
                )
            check_bytes(self.folder, len(paths), *picture.pixels.shape)
        if not pictures:
            return Together(np.zeros((0, 1, 1, 1), np.uint8), [])
        if len(read) < len(paths):
            drawn = len(paths) - len(read)
            self.notes.append(f"passed over: {drawn} pictures that undiffuse drew")
        if first := sum(picture.first for picture in pictures):
            self.notes.append(
                f"{first:,} of {len(pictures):,} files hold several pictures, as animations do: "
                "the first one of each is read"
            )
        laid = list(self.on_background(pictures))
        if factor == 1:
            again, said = self.stretched(pictures, laid)
            if again != 1:  # the second reading makes the other notes itself
                self.notes = [said] if said else []
                return self.read(paths, again)
        return Together(self.stacked(laid), read)

    def on_background(self, pictures: list[Picture]) -> Iterator[NDArray[np.uint8]]:
        """The pixels of the pictures, with transparent pixels on black or on white."""
        clear = [picture for picture in pictures if picture.alpha is not None]
        opaque = sum(float(picture.alpha.sum()) for picture in clear if picture.alpha is not None)
        shown = sum(float(picture.pixels.mean(axis=2).sum()) for picture in clear)
        brightness = 255 * shown / opaque if opaque else 255.0
        white = self.background == "white" or (self.background == "auto" and brightness < DIM)
        if clear:
            self.notes.append(
                f"{len(clear):,} of {len(pictures):,} pictures have transparent pixels, which lie "
                f"on {'white' if white else 'black'}: what is drawn has a mean brightness of "
                f"{brightness:.0f} of 255; the option background chooses another"
            )
        for picture in pictures:
            if white and picture.alpha is not None:
                through = 255 - picture.alpha
                yield picture.pixels + np.minimum(through, 255 - picture.pixels)
            else:
                yield picture.pixels

    def stretched(
        self, pictures: list[Picture], laid: list[NDArray[np.uint8]]
    ) -> tuple[int, str | None]:
        """(the factor for all values; a note on it). laid: the pictures on their background."""
        deep = [picture.brightest_16 for picture in pictures if picture.brightest_16 is not None]
        if len(deep) == len(pictures):
            deep_enough(max(deep), self.folder)
        return stretch(
            max(*(p.brightest for p in pictures), *(int(x.max()) for x in laid)), self.folder
        )

    def stacked(self, laid: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """The pictures as one array. They are grey where no pixel of any has a colour."""
        (height, width, _), channels = laid[0].shape, max(pixels.shape[2] for pixels in laid)
        if channels == 3 and not any(coloured(pixels) for pixels in laid):
            self.notes.append(
                "the pictures are stored in colour and show none: they are read as grey"
            )
            laid, channels = [pixels[..., :1] for pixels in laid], 1
        return np.stack([np.broadcast_to(pixels, (height, width, channels)) for pixels in laid])


def coloured(pixels: NDArray[np.uint8]) -> bool:
    """Whether some pixel of a picture (H, W, C) is not grey."""
    return bool((pixels != pixels[..., :1]).any())


def kinds_of(read: list[Path], others: list[Path]) -> list[str]:
    """Notes on the kinds of image files: those that are read, if several, and those that are not.

    read, others: the files that are read, and all others."""
    counts = Counter(path.suffix.lower() for path in read)
    notes = [f"read: {counted(counts)}"] if len(counts) > 1 else []
    return notes + passed_over(others)


def passed_over(paths: list[Path]) -> list[str]:
    """A note on the image files that are not read, [] where there are none."""
    counts = Counter(path.suffix.lower() for path in paths if path.suffix.lower() in UNREAD)
    if not counts:
        return []
    listed = counted(counts)
    return [f"passed over: {listed}; convert them to PNG or JPEG to train on them too"]


def counted(counts: Counter[str]) -> str:
    """The number of files with each ending, in words."""
    return ", ".join(f"{count:,} {ending}" for ending, count in sorted(counts.items()))


# --- One file ---


def read_picture(path: Path, size: int | None, factor: int = 1) -> Picture | None:
    """The picture in an image file. None for a sheet that undiffuse drew.

    size: crop it to its central square and resize that. factor: its values are multiplied by it.
    Raises UserError for a file that is broken or too large."""
    from PIL import Image

    with path.open("rb") as file:
        try:
            image = opened(file)
            if NOTE in image.info:
                return None
            first = bool(getattr(image, "is_animated", False))
            image, alpha, brightest_16 = shown(turned(image))
        except MemoryError:
            raise
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        except Image.DecompressionBombError:
            raise UserError(
                f"{path} has more than {MAX_PIXELS} pixels; make it smaller or remove it"
            ) from None
        except Exception as error:  # a decoder may raise anything for a broken file
            raise UserError(f"{path} is broken or no image; fix or remove it") from error
    brightest = max(high for _, high in extrema(image))
    if factor != 1:
        image = image.point(
            [min(255, factor * value) for value in range(256)] * len(image.getbands())
        )
    if size is not None:
        image = _square(image, size)
        alpha = alpha and _square(alpha, size)
    shape = image.height, image.width, -1
    covered = None if alpha is None else np.asarray(alpha).reshape(shape)
    return Picture(np.asarray(image).reshape(shape), covered, brightest, brightest_16, first)


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


def shown(image: Image.Image) -> tuple[Image.Image, Image.Image | None, int | None]:
    """(the image in mode L or RGB, on black; its alpha or None; its largest value of 16 bits)."""
    from PIL import Image

    brightest_16 = None
    if image.mode == "F":
        values, _ = as_bytes(np.asarray(image), "the picture")
        image = Image.fromarray(values)
    if image.mode.startswith("I"):  # 16 bits: 65535 = 257 * 255
        sixteen, clear = np.asarray(image), image.info.get("transparency", -1)
        brightest_16 = int(sixteen.max())
        if not 0 <= sixteen.min() <= brightest_16 <= 65535:
            raise UserError(f"values from {sixteen.min()} to {brightest_16} are no 16-bit image")
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
    made = Dataset.of(dataset.name, images, dataset.labels, dataset.classes)
    return replace(made, notes=dataset.notes)
