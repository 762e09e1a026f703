"""Whole files: written so that what has a name is complete; tensors as data, never as code; the cache."""

from __future__ import annotations

import contextlib
import os
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


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors by name, safetensors."""
    from safetensors.torch import save

    write_atomic(path, save({k: v.contiguous() for k, v in tensors.items()}, metadata=metadata))


def load_tensors(path: Path, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, str]]:
    """(the tensors whose names begin with `prefix`, without it; the file's metadata). UserError for a damaged file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - no mapping
            return {name.removeprefix(prefix): file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except (SafetensorError, TypeError, ValueError, OSError) as error:
        raise UserError(f"{path} is damaged or no checkpoint: {error}") from error


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
