"""Images to learn from: the embedded MNIST, IDX files, folders of PNG or JPEG images; and the order of the batches.

A data set is one uint8 tensor held whole, (N, C, H, W). A batch is a choice of its rows, and which rows is a function
of (seed, step). Networks see floats in [-1, 1]: x = u / 127.5 - 1 for a byte u, here and nowhere else.

IDX is the format of the MNIST files: two zero bytes, the element type (8: unsigned byte), the number of dimensions,
each dimension as a big-endian 32-bit number, then the elements, the last index fastest. A file is trusted for nothing:
what it promises is compared with its length before memory is asked for.
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
from undiffuse.data.dataset import Dataset, _dataset
from undiffuse.data.idx import NoTestSet, _idx_dimensions, _read_idx, _read_idx_folder
from undiffuse.data.pictures import _read_pictures, _resized

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray
else:
    np = lazy("numpy")

DATASETS = Table("data set")


ENDINGS = (".png", ".jpg", ".jpeg")


SIZES = range(4, 1025)  # what images may be resized to, in pixels a side


# The published SHA-256 of the unpacked files.
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def load_dataset(spec: str, size: int | None = None, split: str = "train") -> Dataset:
    """The data set called `spec`, or that of the folder `spec` (write ./mnist for a folder called mnist).

    A folder holds one of these, and files of other kinds or with hidden names are passed over:

    - the four MNIST files, or another set under their names (train-images-idx3-ubyte or .idx3-ubyte, and so on)
    - one IDX file of images, (N, H, W) or (N, H, W, C) with C = 1 or 3, and at most one of labels, (N,)
    - PNG or JPEG images: in sub-folders, each a class of that name, or all directly in the folder, without labels

    IDX files may be gzipped. Their labels become 0..K-1 in the order of the numbers, which are the class names; those
    of the test set are numbered as in the training set. If all image files are grey, C = 1, else C = 3 (a palette
    counts as colour). Transparent pixels are laid on black, 16 bits become 8, and EXIF orientation is honoured.

    With `size`, in pixels, images are cropped to their central square and resized (Lanczos) to (C, size, size);
    without it, all must be of one size already. `split` is "train" or "test". Nothing is ever written.

    Raises UserError for anything that cannot be read as described."""
    if split not in ("train", "test"):
        raise UserError(f"the split of a data set is 'train' or 'test', not '{split}'")
    if size is not None and size not in SIZES:
        raise UserError(
            f"images can be resized to {SIZES[0]} to {SIZES[-1]} pixels a side, not {size}"
        )
    if spec in DATASETS:
        return _resized(DATASETS[spec](split), size)
    folder = Path(spec)
    try:
        if not spec or not folder.is_dir():
            known = ", ".join(DATASETS)
            raise UserError(
                f"'{spec}' is neither a data set (there are: {known}) nor a folder of images; give either"
            )
        return _read_folder(folder, size, split)
    except OSError as error:
        raise UserError(
            f"{error.filename or spec} cannot be read: {error.strerror or error}"
        ) from error


@DATASETS.add
def mnist(split: str) -> Dataset:
    """LeCun, Cortes & Burges: handwritten digits, 28 x 28, grey; 60,000 to train on, 10,000 to test with."""
    part = {"train": "train", "test": "t10k"}[split]
    labels = _packaged(f"{part}-labels-idx1-ubyte", 1)
    return _dataset("mnist", _packaged(f"{part}-images-idx3-ubyte", 3), labels, labels)


def _packaged(file: str, dimensions: int) -> NDArray[np.uint8]:
    """One of the MNIST files inside the package, checked against its published digest."""
    try:
        with resources.as_file(resources.files("undiffuse.data") / "mnist" / f"{file}.gz") as path:
            array = _read_idx(path, dimensions)
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
    files = list(_files(folder))
    pictures = [file for file in files if file.suffix.lower() in ENDINGS]
    others = [
        file for file in files if file.parent == folder and file.suffix.lower() not in ENDINGS
    ]
    idx = {file: dimensions for file in others if (dimensions := _idx_dimensions(file))}
    if idx and pictures:
        raise UserError(
            f"{folder} holds both IDX files ({next(iter(idx)).name}) and images ({pictures[0]}); keep one kind"
        )
    if idx:
        return _resized(_read_idx_folder(folder, idx, split), size)
    if not pictures:
        raise UserError(
            f"{folder} holds no images; files that are read: {', '.join(ENDINGS)} and IDX"
        )
    if split == "test":
        raise NoTestSet(f"{folder} has no test set: only a folder of the four MNIST files has one")
    return _read_pictures(folder, pictures, size)


def _files(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The files in `folder` and below, sorted; links are followed, except in circles."""
    here = folder.resolve()
    if here in above:
        return
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _files(entry, above | {here})
        elif (
            entry.is_file() or not entry.exists()
        ):  # a link to nothing: to read it says so, to skip it would hide it
            yield entry
