"""IDX files, the format of MNIST.

An IDX file holds two zero bytes, the element type (8: unsigned byte), the number of dimensions,
each dimension as a big-endian 32-bit number, and then the elements, the last index fastest. It may
be compressed with gzip. No file is trusted: the size that its header promises is compared with its
length before memory is taken.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undiffuse.base.errors import UserError
from undiffuse.base.lazy import lazy
from undiffuse.data.dataset import check_bytes

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

TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
"""The element types: the third byte of a file -> NumPy's name."""

NAMED = re.compile(r"[-.]idx([1-4])(?:-\w+)?(?:\.gz)?$")
"""How the names of IDX files end, such as "train-images-idx3-ubyte.gz" or "digits.idx3"."""


def _open(path: Path) -> gzip.GzipFile | BufferedReader:
    """The bytes of a file, decompressed if its first two bytes are those of gzip.

    The name does not decide: a browser may decompress a file and keep its name."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.GzipFile(path) if packed else path.open("rb")


def idx_dimensions(path: Path) -> int:
    """The number of dimensions of an IDX file. 0 for other files.

    It is read from the name, where that is an IDX file's, or else from the first bytes."""
    if name := NAMED.search(path.name):
        return int(name[1])
    try:
        with _open(path) as file:
            magic = file.read(4)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return 0
    known = len(magic) == 4 and magic[:2] == b"\0\0" and magic[2] in TYPES
    return magic[3] if known and 1 <= magic[3] <= 4 else 0


def read_idx(path: Path, *dimensions: int) -> NDArray[Any]:
    """The array in an IDX file, in its shape and with its element type.

    dimensions: the numbers of dimensions that it may have. Raises UserError for another file, and
    for one that is damaged or too large."""
    stored = path.stat().st_size
    try:
        with _open(path) as file:
            dtype, shape = _header(file.read, path, dimensions)
            promised = math.prod(shape) * dtype.itemsize
            check_bytes(path, *shape, dtype.itemsize)
            if promised > stored * (MAX_DEFLATE if isinstance(file, gzip.GzipFile) else 1):
                raise UserError(
                    f"{path} promises {promised} bytes, more than a file of {stored} can hold; "
                    "get it again"
                )

            content, filled = np.empty(promised, np.uint8), 0
            while chunk := file.read(min(CHUNK, promised - filled)):
                content[filled : filled + len(chunk)] = np.frombuffer(chunk, np.uint8)
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
    return content.view(dtype).reshape(shape)


def _header(
    read: Any, path: Path, dimensions: tuple[int, ...]
) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """(the element type, the shape) that the header of an IDX file gives. read: reads n bytes."""
    magic = read(4)
    if not (
        len(magic) == 4 and magic[:2] == b"\0\0" and magic[2] in TYPES and magic[3] in dimensions
    ):
        wanted = " or ".join(f"0000080{d}" for d in dimensions)
        raise UserError(
            f"{path} starts with '{magic.hex()}', an IDX file of bytes with {wanted}; get it again"
        )
    header = read(4 * magic[3])
    if len(header) < 4 * magic[3]:
        raise UserError(f"{path} ends within its header; get it again")
    shape = struct.unpack(f">{magic[3]}I", header)
    if math.prod(shape) == 0:
        raise UserError(
            f"{path} is empty: its header says {' x '.join(map(str, shape))}; get it again"
        )
    return np.dtype(TYPES[magic[2]]), shape
