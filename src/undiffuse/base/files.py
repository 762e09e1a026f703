"""Files that are written whole: a name holds the old content or the new, never a part of it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from undiffuse.base.errors import UserError


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that its name holds the old content or the new, whatever happens meanwhile.

    It makes the folders above that are missing. When it returns, the content is on the disk. Raises
    UserError where the file cannot be written."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        if os.name == "posix":  # elsewhere a folder cannot be opened, and so not synced
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
    """The UserError that says that a file could not be written, and why."""
    return UserError(
        f"{path} could not be written ({error.strerror}); make room there, or choose another folder"
    )
