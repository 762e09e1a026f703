"""Loading a data set: one that comes with the package, by name, or a folder of images.

To add one: a function split -> Dataset with `@DATASETS.add`; split is "train" or "test".
"""

from __future__ import annotations

import hashlib
import struct
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from undiffuse.base.errors import UserError
from undiffuse.base.lazy import lazy
from undiffuse.base.table import Table
from undiffuse.data.dataset import Dataset, dataset_from_arrays
from undiffuse.data.idx import NoTestSet, idx_dimensions, read_idx, read_idx_folder
from undiffuse.data.pictures import read_pictures, resized

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray
else:
    np = lazy("numpy")

DATASETS = Table("data set")


ENDINGS = (".png", ".jpg", ".jpeg")
"""How the names of image files end; upper case is read too."""

SIZES = range(4, 1025)
"""The sizes that images may be resized to, in pixels a side."""

MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""The published SHA-256 of the uncompressed files."""


def load_dataset(spec: str, size: int | None = None, split: str = "train") -> Dataset:
    """Load a data set. Nothing is written.

    spec: the name of a data set, or a folder; write ./mnist for a folder called mnist. size: crop
    each image to its central square and resize it (Lanczos) to size x size pixels; without it all
    images must have one size already. split: "train" or "test".

    A folder holds images in one of three ways. Hidden files and files of other kinds are ignored.

    - the four MNIST files, or another data set under their names: train-images-idx3-ubyte or
      train-images.idx3-ubyte, and so on
    - one IDX file of images, (N, H, W) or (N, H, W, C) with C = 1 or 3, and at most one IDX file of
      labels, (N,)
    - PNG or JPEG files: in sub-folders, each of which is a class with the folder's name, or all
      directly in the folder, without classes

    IDX files may be compressed with gzip. The different numbers in the file of labels are the names
    of the classes. In rising order they become the labels 0..K-1. The labels of a test set are
    numbered as those of its training set.

    Image files have C = 1 if all of them are grey, else C = 3. A palette counts as colour.
    Transparent pixels are laid on black. 16 bits are reduced to 8. The EXIF orientation is applied.

    Raises UserError for anything that cannot be read as described."""
    if split not in ("train", "test"):
        raise UserError(f"split must be 'train' or 'test', not '{split}'")
    if size is not None and size not in SIZES:
        raise UserError(f"size must be from {SIZES[0]} to {SIZES[-1]} pixels a side, not {size}")
    if spec in DATASETS:
        return resized(DATASETS[spec](split), size)
    folder = Path(spec)
    try:
        if not spec or not folder.is_dir():
            known = ", ".join(DATASETS)
            raise UserError(
                f"'{spec}' is neither a data set (there are: {known}) nor a folder of images; "
                "give either"
            )
        return _read_folder(folder, size, split)
    except OSError as error:
        raise UserError(
            f"{error.filename or spec} cannot be read: {error.strerror or error}"
        ) from error


@DATASETS.add
def mnist(split: str) -> Dataset:
    """MNIST, by LeCun, Cortes & Burges: handwritten digits, grey, 28 x 28 pixels.

    There are 60,000 images to train on and 10,000 to test with."""
    part = {"train": "train", "test": "t10k"}[split]
    labels = _packaged(f"{part}-labels-idx1-ubyte", 1)
    images = _packaged(f"{part}-images-idx3-ubyte", 3)
    return dataset_from_arrays("mnist", images, labels, labels)


def _packaged(file: str, dimensions: int) -> NDArray[np.uint8]:
    """One of the MNIST files inside the package, checked against its published SHA-256.

    Raises UserError where it is damaged or missing."""
    try:
        with resources.as_file(resources.files("undiffuse.data") / "mnist" / f"{file}.gz") as path:
            array = read_idx(path, dimensions)
        digest = hashlib.sha256(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape))
        digest.update(array.data)
        intact = digest.hexdigest() == MNIST_SHA256[file]
    except (OSError, UserError):
        intact = False
    if not intact:
        raise UserError(
            f"the installed package is damaged ({file}.gz is not as published); install it again"
        )
    return array


def _read_folder(folder: Path, size: int | None, split: str) -> Dataset:
    """The data set in a folder, as `load_dataset` describes it."""
    files = list(_files(folder))
    pictures = [file for file in files if file.suffix.lower() in ENDINGS]
    others = [
        file for file in files if file.parent == folder and file.suffix.lower() not in ENDINGS
    ]
    idx = {file: dimensions for file in others if (dimensions := idx_dimensions(file))}
    if idx and pictures:
        raise UserError(
            f"{folder} holds both IDX files ({next(iter(idx)).name}) and images ({pictures[0]}); "
            "keep one kind"
        )
    if idx:
        return resized(read_idx_folder(folder, idx, split), size)
    if not pictures:
        raise UserError(
            f"{folder} holds no images; files that are read: {', '.join(ENDINGS)} and IDX"
        )
    if split == "test":
        raise NoTestSet(f"{folder} has no test set: only a folder of the four MNIST files has one")
    return read_pictures(folder, pictures, size)


def _files(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The files in `folder` and below, sorted, without hidden ones.

    Links are followed, but no circle of links. above: the folders above this one."""
    here = folder.resolve()
    if here in above:
        return
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _files(entry, above | {here})
        # A link to nothing is a file too: reading it gives an error, skipping it would hide it.
        elif entry.is_file() or not entry.exists():
            yield entry
