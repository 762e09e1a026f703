"""Files that are written whole: a name holds the old content or the new, never a part of it."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import tempfile
import time
import unicodedata
from pathlib import Path

from undiffuse.base.errors import UserError

CLUTTER = frozenset({
    "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "#recycle",
    "@recycle", "$recycle.bin", "system volume information", "lost+found",
})  # fmt: skip
"""Files and folders that systems leave behind, in lower case."""


def is_clutter(path: Path) -> bool:
    """Whether a file or folder is hidden, or one that a system leaves behind. It never counts."""
    return path.name.startswith(".") or path.name.lower() in CLUTTER


def readable(name: str) -> str:
    """The name of a file as text. Bytes that are not UTF-8 are written as \\x and two digits."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def composed(name: str) -> str:
    """A name with each letter and its accents as one character, where there is one.

    Macs store the names of files the other way."""
    return unicodedata.normalize("NFC", name)


def safe_name(name: str) -> str:
    """A class name as part of a file name: at most 60 letters, digits, "-", "." and "_"."""
    return "".join(c if c.isalnum() or c in "-." else "_" for c in composed(name))[:60]


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that its name holds the old content or the new, whatever happens meanwhile.

    It makes the folders above that are missing. When it returns, the content is on the disk, where
    the file system has a way to say so. Several processes may write the same file at once. Where
    the name is a link, the file that it leads to is written. Raises UserError where the file cannot
    be written."""
    path = followed(path)
    temporary = path.with_name(temporary_name(path.name))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            sync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise cannot_write(path, error) from error


def followed(path: Path) -> Path:
    """The file that a path leads to, where it is a link; else the path itself."""
    return path.resolve() if path.is_symlink() else path


def refuse_unwritable(path: Path) -> None:
    """Raises UserError where a file or folder cannot be made at `path`. Nothing is left there."""
    path = followed(path)
    folder = path if path.is_dir() else next(above for above in path.parents if above.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        raise cannot_write(path, error) from error


def temporary_name(name: str) -> str:
    """A hidden name for a file while it is written. Each call gives another one."""
    return f".{name[:60]}.{os.getpid()}-{secrets.token_hex(4)}.tmp"


def remove_left_over(folder: Path) -> None:
    """Remove the files that killed processes were writing in a folder, an hour ago or more."""
    for file in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > 3600:
                file.unlink()


UNSUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF}
"""What a file system answers that has no such operation. Network disks do."""


def sync(descriptor: int) -> None:
    """Have the system write an open file to the disk, where the file system can."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def sync_folder(folder: Path) -> None:
    """Have the system write the names in a folder to the disk, where the file system can.

    Elsewhere a power cut may bring back the old content of a file, and never a part of one."""
    if os.name != "posix":  # there a folder cannot be opened
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno not in {*UNSUPPORTED, errno.EACCES, errno.EPERM}:
            raise
        return
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def as_path(where: str | os.PathLike[str]) -> Path:
    """A path that a user gave. ~ stands for the home folder.

    Raises UserError where that has no home folder."""
    path = Path(where)
    if not path.parts or not path.parts[0].startswith("~"):
        return path
    try:
        return path.expanduser()
    except RuntimeError:
        raise UserError(f"{path}: there is no home folder here; give the whole path") from None


def from_here(path: Path) -> Path:
    """A path from the working folder on. Raises UserError where that was removed."""
    try:
        return path.absolute()
    except FileNotFoundError:
        raise UserError("the working folder was removed; change to one that exists") from None


def cannot_write(path: Path, error: OSError) -> UserError:
    """The UserError that says that a file could not be written, and why."""
    return UserError(
        f"{path} could not be written ({error.strerror}); make room there, or choose another folder"
    )
