"""Whole files: written so that what has a name is complete; tensors as data, never as code; the cache."""

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
        warnings.warn(
            f"the cache can't be used, so this is computed anew each time: {error}", stacklevel=2
        )
