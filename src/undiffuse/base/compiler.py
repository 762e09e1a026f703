"""The C++ compiler that torch.compile uses, and the cache of what it made."""

from __future__ import annotations

import atexit
import os
import shlex
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def compiler() -> str | None:
    """The C++ compiler that torch.compile finds: $CXX, g++ or clang++. None where there is none."""
    return next(filter(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++")), None)


def compiler_version() -> str | None:
    """The first line of the C++ compiler's --version; None without a compiler or without a line."""
    name = compiler()
    try:
        output = (
            subprocess.run([name, "--version"], capture_output=True, text=True, timeout=20).stdout
            if name
            else ""
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return next(iter(output.splitlines()), None)


@contextmanager
def prepared_compiler(folder: Path | None) -> Iterator[None]:
    """A context in which torch.compile keeps its cache in `folder`, where only this user may write.

    None: the cache is of this process only. Where $TORCHINDUCTOR_CACHE_DIR names another folder,
    that is used. The cache holds pickles and libraries, which are code. By default torch keeps it
    in a folder that all users share, under a name that others can guess. Afterwards the variable
    and torch's settings are as before.

    It also skips torch's test of each set of vector instructions, which compiles for 8 seconds
    before a first run. The CPU says which it has. A compiler that is too old for them fails on the
    network itself, and training reports it."""
    from torch._inductor import codecache, config

    chosen = os.environ.get(VARIABLE)
    if chosen is None or chosen == torchs_own_cache():
        cache = private_folder(folder)
    else:
        cache = Path(chosen)
    # torch 2.13 keeps the headers elsewhere, whatever the variable says. It names them by openssl.
    headers = cache / "precompiled_headers"
    kept = codecache._HEADER_DIR, codecache._HEADER_LOCK_DIR
    precompiled = config.cpp_cache_precompile_headers and shutil.which("openssl") is not None
    vectors = True if config.cpp.vec_isa_ok is None else config.cpp.vec_isa_ok
    changes = {"cpp_cache_precompile_headers": precompiled, "cpp.vec_isa_ok": vectors}
    try:
        os.environ[VARIABLE] = str(cache)
        codecache._HEADER_DIR, codecache._HEADER_LOCK_DIR = str(headers), str(headers / "locks")
        with config.patch(changes):
            yield
    finally:
        codecache._HEADER_DIR, codecache._HEADER_LOCK_DIR = kept
        if chosen is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = chosen


def torchs_own_cache() -> str | None:
    """The folder that torch.compile takes by default; None for a user without a name.

    Torch itself sets the variable to it."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    try:
        return default_cache_dir()
    except (KeyError, OSError):  # torch asks for the user's name
        return None


def private_folder(folder: Path | None) -> Path:
    """`folder`, made where only this user may write to it, as an absolute path.

    A folder for this process only where there is none, where it belongs to another user, where the
    disk is full, and, with a warning, where its path has a blank or a quote: torch gives it to the
    compiler as a part of a line."""
    if folder is not None and (path := str(folder.absolute())) != shlex.quote(path):
        warnings.warn(
            f"the compiled network is not kept in {path}, because a compiler takes no path "
            "with blanks or quotes; set UNDIFFUSE_CACHE to another folder",
            stacklevel=2,
        )
        folder = None
    with suppress(OSError):
        if folder is not None:
            folder = folder.absolute()
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
            if os.access(folder, os.W_OK):
                return folder
    folder = Path(tempfile.mkdtemp(prefix="undiffuse-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
