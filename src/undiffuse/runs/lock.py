"""The lock of a run folder: only one process trains in it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

NO_LOCK = (
    "this disk cannot lock folders, so nothing keeps a second process from training in the same "
    "folder; start only one"
)


def lock_folder(folder: Path) -> int | None:
    """Lock a folder. Returns the open file that holds the lock until it is closed.

    Network disks lock only files that are open for writing: there a hidden file is locked. None
    where nothing can be locked, and on Windows. Raises BlockingIOError where another process holds
    the lock."""
    if sys.platform == "win32":
        return None
    import fcntl

    for path, how in ((folder, os.O_RDONLY), (folder / ".lock", os.O_RDWR | os.O_CREAT)):
        held = None
        try:
            held = os.open(path, how, 0o666)
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return held
        except OSError as error:
            if held is not None:
                os.close(held)
            if isinstance(error, BlockingIOError):
                raise
    return None
