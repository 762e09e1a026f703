"""NumPy's files: .npy, which holds one array, and .npz, which holds several. Nothing is unpickled.

No file is trusted: the size in an array's header is checked before memory is taken.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from undiffuse.base.errors import UserError
from undiffuse.base.lazy import lazy
from undiffuse.data.dataset import MAX_BYTES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    np = lazy("numpy")

NUMPY = (".npz", ".npy")
"""How the names of NumPy's files end."""


@contextmanager
def members(file: Path) -> Iterator[dict[str, Callable[[], IO[bytes]]]]:
    """The arrays in a file: name -> a function that opens it. That of an .npy file has its name.

    Raises UserError where the file, or what is read of it inside, is damaged."""
    try:
        if file.suffix.lower() == ".npy":
            with file.open("rb") as whole:
                yield {file.stem: lambda: whole}
        else:
            with zipfile.ZipFile(file) as archive:
                yield {
                    name.removesuffix(".npy"): partial(archive.open, name)
                    for name in archive.namelist()
                    if name.endswith(".npy")
                }
    except (UserError, FileNotFoundError):
        raise
    except Exception as error:  # a broken file can raise almost anything
        raise UserError(
            f"{file} can't be read as an {file.suffix or '.npz'} file "
            f"({error or type(error).__name__})"
        ) from error


def dimensions_of(file: Path) -> dict[str, int]:
    """The number of dimensions of each array in a file. Raises UserError as `members` does."""
    with members(file) as arrays:
        found = {}
        for name, opened in arrays.items():
            with opened() as member:
                found[name] = len(header(member)[0])
        return found


def read_member(file: Path, name: str) -> NDArray[Any]:
    """The array called `name` of a file.

    Raises UserError where it is damaged, too large, or holds Python objects."""
    with members(file) as arrays, arrays[name]() as member:
        return read_array(member, f"{file}: {name}")


def header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """(the shape, whether the first index is the fastest, the element type) of an array."""
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(member)
    return np.lib.format.read_array_header_2_0(member)


def read_array(member: IO[bytes], what: str) -> NDArray[Any]:
    """One array. what: its name in errors. Raises UserError as `read_member` does."""
    shape, fortran, dtype = header(member)
    if dtype.hasobject:
        raise UserError(f"{what} holds Python objects; save an array of numbers")
    size = math.prod(shape) * dtype.itemsize
    if size > MAX_BYTES:
        raise UserError(
            f"{what} needs {size:,} bytes, more than the limit of {MAX_BYTES:,} bytes; give fewer "
            "images"
        )
    content = member.read(size + 1)
    if len(content) != size:
        raise UserError(f"{what} does not have the length that its header gives; save it again")
    array = np.frombuffer(bytearray(content), dtype).reshape(shape[::-1] if fortran else shape)
    return array.T if fortran else array
