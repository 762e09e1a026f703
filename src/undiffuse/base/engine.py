"""What this machine can do, and in which precision a network computes on it."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from undiffuse.base.lazy import lazy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    import torch
    from torch import Tensor
else:
    torch = lazy("torch")

STARTED = time.monotonic()
"""When the package was imported, in seconds of `time.monotonic`.

The process itself started at most 0.1 s earlier."""


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors of 32 MB and more for later tensors.

    By default it returns such memory to the system, which zeroes each page before it hands it out
    again. That takes a third of a training step of the network `categorical`. The setting holds for
    the whole process, so the command makes it and the library does not. Without glibc this does
    nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold = -1, -3  # of malloc.h
        mallopt(m_mmap_threshold, 2**30)
        mallopt(m_trim_threshold, 2**31 - 1)


def has_bf16() -> bool:
    """Whether the CPU itself multiplies bfloat16 (AVX512-BF16 or AMX).

    Without that, bfloat16 is slower than float32."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(
        probe()
        for probe in (getattr(torch.cpu, name, None) for name in probes)
        if probe is not None
    )


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


def prepare_compiler(folder: Path | None) -> None:
    """Let torch.compile keep its cache in `folder`, to which only this user may write.

    None: the cache is of this process only. Where $TORCHINDUCTOR_CACHE_DIR names another folder,
    that is used. The cache holds pickles and libraries, which are code. By default torch keeps it
    in a folder that all users share, under a name that others can guess.

    It also skips torch's test of each set of vector instructions, which compiles for 8 seconds
    before a first run. The CPU says which it has. A compiler that is too old for them fails on the
    network itself, and training reports it."""
    variable = "TORCHINDUCTOR_CACHE_DIR"
    if os.environ.get(variable) in (None, torchs_own_cache()):
        os.environ[variable] = str(private_folder(folder))
    from torch._inductor import codecache, config

    # torch 2.13 keeps the headers elsewhere, whatever the variable says. It names them by openssl.
    headers = Path(os.environ[variable], "precompiled_headers")
    codecache._HEADER_DIR, codecache._HEADER_LOCK_DIR = str(headers), str(headers / "locks")
    config.cpp_cache_precompile_headers = (
        config.cpp_cache_precompile_headers and shutil.which("openssl") is not None
    )
    if config.cpp.vec_isa_ok is None:
        config.cpp.vec_isa_ok = True


def torchs_own_cache() -> str | None:
    """The folder that torch.compile takes by default; None for a user without a name.

    Torch itself sets the variable to it."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    try:
        return default_cache_dir()
    except (KeyError, OSError):  # torch asks for the user's name
        return None


def private_folder(folder: Path | None) -> Path:
    """`folder`, made where only this user may write to it.

    Without one, or where it belongs to another user or the disk is full, a folder for this process
    only."""
    with contextlib.suppress(OSError):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
            if os.access(folder, os.W_OK):
                return folder
    folder = Path(tempfile.mkdtemp(prefix="undiffuse-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def arithmetic(precision: str) -> AbstractContextManager[Any]:
    """The context in which a network computes in `precision`: for "bf16", autocast to bfloat16."""
    return (
        torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
    )


def in_precision(network: Callable[..., Tensor], precision: str) -> Callable[..., Tensor]:
    """The network, made to compute in `precision` ("bf16" or "fp32").

    Its input and output are float32 in both."""

    def call(x: Tensor, log_snr: Tensor, condition: Tensor | None) -> Tensor:
        with arithmetic(precision):
            out = network(x, log_snr, condition)
        return out.float()

    return call


@dataclass(frozen=True)
class Engine:
    """How a network computes: in which precision, and whether it is compiled."""

    precision: Literal["bf16", "fp32"] = "fp32"
    compiled: bool = False

    def arithmetic(self) -> AbstractContextManager[Any]:
        """The context in which a network computes in this precision."""
        return arithmetic(self.precision)


RANDOMNESS = threading.RLock()


@contextlib.contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """A context in which torch's random numbers follow from `seed`, and new tensors are float32.

    The caller's random state and default dtype are as before afterwards, and do not reach in. They
    belong to the process, so of several threads one at a time is inside."""
    before = torch.get_default_dtype()
    with RANDOMNESS, torch.random.fork_rng(devices=[]):
        torch.set_default_dtype(torch.float32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


PROCESS = os.getpid()  # that imported the package


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """A context, and a decorator, for what computes with torch, whatever the caller has set.

    The caller's autocast and default device do not reach in. A process that was forked after torch
    had used several threads would wait for them for ever; in such a process one thread computes.
    Afterwards everything is as before."""
    with contextlib.ExitStack() as stack:
        if torch.is_autocast_enabled("cpu"):
            stack.enter_context(torch.autocast("cpu", enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if os.getpid() != PROCESS:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)
        yield


def machine_facts() -> dict[str, Any]:
    """The versions and settings of this machine, which a run records.

    A resumed run compares them, because the bits of its result depend on them."""
    from undiffuse import __version__

    return {
        "undiffuse": __version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "platform": platform.platform(),
    }
