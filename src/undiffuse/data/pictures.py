"""Image files as a data set."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from undiffuse.base.errors import UserError, listed
from undiffuse.base.files import readable
from undiffuse.base.lazy import lazy
from undiffuse.data.dataset import Dataset, check_bytes, dataset_from_arrays
from undiffuse.data.picture import (
    AS_STORED,
    UNREAD,
    BrokenPicture,
    Picture,
    Values,
    read_picture,
    square,
)
from undiffuse.data.values import deep_enough, scale_of, stretch

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
else:
    torch = lazy("torch")
    np = lazy("numpy")

BACKGROUNDS = ("auto", "black", "white")
DIM = 64
"""On "auto", transparent pictures lie on white where what they show is darker than this, of 255."""


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


def read_one(path: Path) -> tuple[NDArray[np.uint8], list[str]]:
    """(the pixels (H, W) or (H, W, 3) of one image file; notes), by the rules for data sets."""
    reading = Reading(path, None, "auto")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        pixels = reading.read([path]).pixels[0]
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels, reading.notes


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

    def read(self, paths: list[Path], values: Values = AS_STORED) -> Together:
        """The pictures, all of one size and with one number of channels.

        Raises UserError as `read_pictures` does."""
        pictures, read, broken = list[Picture](), list[Path](), dict[Path, BrokenPicture]()
        for path in paths:
            try:
                picture = read_picture(path, self.size, values)
            except BrokenPicture as error:
                broken[path] = error
                continue
            if picture is None or broken:
                continue
            pictures.append(picture)
            read.append(path)
            (height, width, _), (h, w, _) = pictures[0].pixels.shape, picture.pixels.shape
            if (h, w) != (height, width):
                raise UserError(
                    f"{path} is {w} x {h} and {read[0]} {width} x {height}; set a size for all"
                )
            check_bytes(self.folder, len(paths), *picture.pixels.shape)
        refuse_broken(self.folder, broken)
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
        spans = [picture.span for picture in pictures if picture.span is not None]
        if spans and values.floats is None:  # one scale for all; the second reading makes the notes
            low, high = min(low for low, _ in spans), max(high for _, high in spans)
            scale = scale_of(low, high, self.folder, floats=True)
            self.notes = [scale.note] if scale.note else []
            return self.read(paths, Values(floats=scale))
        laid = list(self.on_background(pictures))
        if values.factor == 1:
            again, said = self.stretched(pictures, laid)
            if again != 1:
                self.notes = [said] if said else []
                return self.read(paths, values._replace(factor=again))
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


def refuse_broken(folder: Path, broken: dict[Path, BrokenPicture]) -> None:
    """Raises an error that names the broken pictures of a folder, the first ten of them."""
    if len(broken) == 1:
        raise next(iter(broken.values()))
    if broken:
        raise BrokenPicture(
            f"{len(broken):,} files in {folder} are broken or no images; fix or remove them: "
            f"{listed(broken)}"
        )


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
    found = sorted(counts.items())
    return ", ".join(f"{count:,} {ending or 'without ending'}" for ending, count in found)


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
        out[:] = np.asarray(square(Image.fromarray(plane), size))
    images = torch.from_numpy(squares).view(len(dataset), channels, size, size)
    made = Dataset.of(dataset.name, images, dataset.labels, dataset.classes)
    return replace(made, notes=dataset.notes)
