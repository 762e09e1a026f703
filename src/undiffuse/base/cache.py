"""The cache: tensors that can be computed again, kept for the next time.

A missing or damaged entry costs time, never a result.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from undiffuse.base.errors import UserError
from undiffuse.base.tensors import load_tensors, save_tensors

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


def cache_folder() -> Path | None:
    """The folder of the cache: $UNDIFFUSE_CACHE, or else undiffuse/ in the user's cache folder.

    The user's cache folder is $XDG_CACHE_HOME, or else ~/.cache. None for a user without a home."""
    chosen, own = os.environ.get("UNDIFFUSE_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if chosen:
        return Path(chosen)
    if own:
        return Path(own) / "undiffuse"
    try:
        return Path.home() / ".cache" / "undiffuse"
    except RuntimeError:
        return None


Stored: TypeAlias = "tuple[dict[str, Tensor], dict[str, str]]"
"""An entry of the cache: (tensors by name, metadata)."""


def from_cache(name: str, read: Callable[[dict[str, Tensor], dict[str, str]], T]) -> T | None:
    """The entry `name` of the cache, as read(tensors, metadata) returns it.

    None where the entry is missing, or where it cannot be read."""
    folder = cache_folder()
    if folder is None:
        return None
    try:
        path = folder / name
        return read(*load_tensors(path)) if path.is_file() else None
    except (UserError, LookupError, ValueError, RuntimeError, OSError):
        return None


def to_cache(name: str, stored: Stored) -> None:
    """Write the entry `name` of the cache. Where that fails, a warning says so."""
    try:
        folder = cache_folder()
        if folder is None:
            raise UserError("this user has no home folder; set UNDIFFUSE_CACHE to a folder")
        save_tensors(folder / name, *stored)
    except (UserError, RuntimeError, OSError) as error:
        warnings.warn(
            f"the cache can't be used, so this is computed anew each time: {error}", stacklevel=2
        )
