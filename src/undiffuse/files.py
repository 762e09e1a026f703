"""Whole files: written so that what has a name is complete; tensors as data, never as code; the cache."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from undiffuse.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that under its name there is the old or the new content, never a part. UserError if it can't be."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        if os.name == "posix":  # others can't open a folder
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} could not be written ({error.strerror}); make room there, or choose another folder")


METADATA = b'{"__metadata__":{'
UNSEALED = b'"sha256":"' + b"0" * 64 + b'"'
SEAL = re.compile(rb'"sha256":"([0-9a-f]{64})"')
LARGEST, LARGEST_HEADER = 2**30, 2**22  # bytes


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors by name, safetensors, with a seal in the metadata: the SHA-256 of the whole file, in which the seal itself is zeros."""
    from safetensors.torch import save

    content = save({k: v.contiguous() for k, v in tensors.items()}, metadata=metadata or {"format": "pt"})
    end = 8 + int.from_bytes(content[:8], "little")
    # Put there by hand: the library writes several metadata in a new order each time.
    header = content[8:end].rstrip().replace(METADATA, METADATA + UNSEALED + b",", 1)
    header += b" " * (-len(header) % 8)
    content = len(header).to_bytes(8, "little") + header + content[end:]
    seal = f'"sha256":"{hashlib.sha256(content).hexdigest()}"'.encode()
    write_atomic(path, content.replace(UNSEALED, seal, 1))


def load_tensors(path: Path, prefix: str = "", *, sealed: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(the tensors whose names begin with `prefix`, without it; the file's metadata). UserError for a damaged file.

    sealed: whether its seal is checked; not for files that are pinned by another hash."""
    from safetensors import SafetensorError, safe_open

    try:
        if sealed:
            check_seal(path)
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - no mapping
            return {name.removeprefix(prefix): file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except (SafetensorError, TypeError, ValueError, OSError) as error:
        raise UserError(f"{path} is damaged or no checkpoint: {error}") from error


def check_seal(path: Path) -> None:
    """ValueError where a file's seal is not there, or broken by any change of any byte. Reads a piece at a time."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(start := file.read(8), "little")
        if size > LARGEST or length > min(LARGEST_HEADER, size):
            raise ValueError(f"it has {size:,} bytes, and a header of {length:,}")
        header = file.read(length)
        seal = SEAL.search(header)
        if seal is None:
            raise ValueError("it has no checksum")
        digest = hashlib.sha256(start + header[: seal.start()] + UNSEALED + header[seal.end() :])
        while piece := file.read(2**20):
            digest.update(piece)
    if digest.hexdigest().encode() != seal[1]:
        raise ValueError("its content does not match its checksum")


def cache_folder() -> Path:
    """Where what can be computed again is kept: $UNDIFFUSE_CACHE, else undiffuse/ in the user's own cache folder."""
    chosen, own = os.environ.get("UNDIFFUSE_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if chosen:
        return Path(chosen)
    return (Path(own) if own else Path.home() / ".cache") / "undiffuse"


Stored: TypeAlias = "tuple[dict[str, Tensor], dict[str, str]]"


def from_cache(name: str, read: Callable[[dict[str, Tensor], dict[str, str]], T]) -> T | None:
    """What `read` makes of the tensors and metadata kept under `name`; None where there are none, or none that can be read."""
    try:
        path = cache_folder() / name
        return read(*load_tensors(path)) if path.is_file() else None
    except (UserError, LookupError, ValueError, RuntimeError, OSError):
        return None


def to_cache(name: str, stored: Stored) -> None:
    """Keep tensors and metadata under `name`. Where that can't be done it costs time, not results: a warning says so."""
    try:
        save_tensors(cache_folder() / name, *stored)
    except (UserError, RuntimeError, OSError) as error:
        warnings.warn(f"the cache can't be used, so this is computed anew each time: {error}", stacklevel=2)
