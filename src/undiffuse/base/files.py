"""Whole files: written so that what has a name is complete; tensors as data, never as code; the cache."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from undiffuse.base.errors import UserError


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
    return UserError(
        f"{path} could not be written ({error.strerror}); make room there, or choose another folder"
    )
