"""Files that are written whole: a name holds the old content or the new, never a part of it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from undiffuse.base.errors import UserError

CLUTTER = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir"})
"""Files and folders that systems leave behind, in lower case."""


def is_clutter(path: Path) -> bool:
    """Whether a file or folder is hidden, or one that a system leaves behind. It never counts."""
    return path.name.startswith(".") or path.name.lower() in CLUTTER


def readable(name: str) -> str:
    """The name of a file as text. Bytes that are not UTF-8 are written as \\x and two digits."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


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
