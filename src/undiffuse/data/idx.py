"""IDX files, the format of MNIST.

An IDX file of bytes holds two zero bytes, the element type (8: unsigned byte), the number of
dimensions, each dimension as a big-endian 32-bit number, and then the elements, the last index
fastest. It may be compressed with gzip. No file is trusted: the size that its header promises is
compared with its length before memory is taken.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from undiffuse.base.errors import UserError
from undiffuse.base.lazy import lazy
from undiffuse.data.dataset import Dataset, check_bytes, dataset_from_arrays

if TYPE_CHECKING:
    from io import BufferedReader

    import numpy as np
    from numpy.typing import NDArray
else:
    np = lazy("numpy")

MAX_DEFLATE = 1100
"""A bound on the bytes that one compressed byte can hold: deflate reaches 1032 (zlib's notes)."""

CHUNK = 1 << 20
"""Bytes that are read at a time."""


class NoTestSet(UserError):
    """The data set has no test set."""


def read_idx_folder(folder: Path, files: dict[Path, int], split: str) -> Dataset:
    """The data set of the IDX files in `folder`.

    files: each with its number of dimensions. split: "train" or "test". Raises NoTestSet where a
    test set is asked for and there is none, and UserError for files that cannot be read or do not
    fit together."""
    named = {re.split(r"[-.]idx", file.name)[0]: file for file in files}
    roles = [f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images", "labels")]
    missing = [role for role in roles if role not in named]
    if split == "test" and missing:
        raise NoTestSet(
            f"{folder} has no test set: of the four MNIST files it lacks {', '.join(missing)}"
        )
    labels: Path | None
    known: Path | None  # the classes are the numbers in this file
    if "train-images" in named and "train-labels" in named:
        part = {"train": "train", "test": "t10k"}[split]
        images, labels, known = (
            named[f"{part}-images"],
            named[f"{part}-labels"],
            named["train-labels"],
        )
    else:
        of_images = [file for file, dimensions in files.items() if dimensions > 1]
        of_labels = [file for file, dimensions in files.items() if dimensions == 1]
        if len(of_images) != 1 or len(of_labels) > 1:
            held = f"IDX files, {len(of_images)} of images and {len(of_labels)} of labels"
            raise UserError(
                f"{folder} holds {held}; it must hold one of images and at most one of labels"
            )
        images, labels = of_images[0], of_labels[0] if of_labels else None
        known = labels

    pixels = read_idx(images, 3, 4)
    if pixels.ndim == 4 and pixels.shape[3] not in (1, 3):
        raise UserError(
            f"{images} has {pixels.shape[3]} channels; images (N, H, W, C) must have 1 or 3, C last"
        )
    name = folder.resolve().name
    if labels is None or known is None:
        return dataset_from_arrays(name, pixels, None, None)
    numbers, known_numbers = read_idx(labels, 1), read_idx(known, 1)
    if len(numbers) != len(pixels):
        raise UserError(
            f"{labels} has {len(numbers)} labels for the {len(pixels)} images of {images}; "
            "get both again"
        )
    strange = np.setdiff1d(numbers, known_numbers)
    if len(strange):
        raise UserError(
            f"{labels} has the label {strange[0]}, which {known} lacks; give both the same classes"
        )
    return dataset_from_arrays(name, pixels, numbers, known_numbers)


def _open(path: Path) -> gzip.GzipFile | BufferedReader:
    """The bytes of a file, decompressed if its first two bytes are those of gzip.

    The name does not decide: a browser may decompress a file and keep its name."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.GzipFile(path) if packed else path.open("rb")


def idx_dimensions(path: Path) -> int:
    """The number of dimensions of an IDX file: 1 for labels, 3 or 4 for images. 0 for other files.

    It is read from the name, or else from the first bytes."""
    if name := re.search("idx([134])", path.name):
        return int(name[1])
    try:
        with _open(path) as file:
            magic = file.read(4)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return 0
    return magic[3] if magic[:3] == b"\0\0\x08" and magic[3:] in (b"\1", b"\3", b"\4") else 0


def read_idx(path: Path, *dimensions: int) -> NDArray[np.uint8]:
    """The array in an IDX file, in its shape.

    dimensions: the numbers of dimensions that it may have. Raises UserError for another file, and
    for one that is damaged or too large."""
    stored = path.stat().st_size
    try:
        with _open(path) as file:
            magic = file.read(4)
            if magic not in [bytes((0, 0, 8, d)) for d in dimensions]:
                wanted = " or ".join(f"0000080{d}" for d in dimensions)
                raise UserError(
                    f"{path} starts with '{magic.hex()}', an IDX file of bytes with {wanted}; "
                    "get it again"
                )
            header = file.read(4 * magic[3])
            if len(header) < 4 * magic[3]:
                raise UserError(f"{path} ends within its header; get it again")
            shape = struct.unpack(f">{magic[3]}I", header)
            promised = math.prod(shape)
            if promised == 0:
                raise UserError(
                    f"{path} is empty: its header says {' x '.join(map(str, shape))}; get it again"
                )
            check_bytes(path, *shape)
            if promised > stored * (MAX_DEFLATE if isinstance(file, gzip.GzipFile) else 1):
                raise UserError(
                    f"{path} promises {promised} bytes, more than a file of {stored} can hold; "
                    "get it again"
                )

            array, filled = np.empty(promised, np.uint8), 0
            while chunk := file.read(min(CHUNK, promised - filled)):
                array[filled : filled + len(chunk)] = np.frombuffer(chunk, np.uint8)
                filled += len(chunk)
            if filled < promised:
                raise UserError(
                    f"{path} is cut short: {filled} of {promised} bytes are there; get it again"
                )
            if file.read(1):  # at the end of a gzip stream this also compares its checksum
                raise UserError(
                    f"{path} goes on after the {promised} bytes that its header promises; "
                    "get it again"
                )
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is a damaged gzip file ({error}); get it again") from error
    return array.reshape(shape)
