"""What this machine can do, and how the network's arithmetic is run on it."""

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
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from undiffuse.base.lazy import lazy

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    import torch
    from torch import Tensor
else:
    torch = lazy("torch")

STARTED = time.monotonic()
"""When the package was imported: the start of the process, to within its first tenth of a second."""


def keep_freed_memory() -> None:
    """Have glibc keep the memory that tensors of 32 MB and more leave, in place of giving it back to the system each time.

    It would come back zeroed, page by page: a third of a step of the network `categorical`. For whole processes, so the
    command does it, and the library leaves it to its user. Where there is no glibc it does nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold = -1, -3  # of malloc.h
        mallopt(m_mmap_threshold, 2**30)
        mallopt(m_trim_threshold, 2**31 - 1)


def has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 itself (AVX512-BF16, AMX), so that it is the faster of the two."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(
        probe()
        for probe in (getattr(torch.cpu, name, None) for name in probes)
        if probe is not None
    )


def compiler() -> str | None:
    """The C++ compiler that torch.compile finds, $CXX, g++ or clang++; None where there is none."""
    return next(filter(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++")), None)


def compiler_version() -> str | None:
    """What the C++ compiler calls itself, in a line; None where there is none, or where it does not say."""
    name = compiler()
    try:
        said = (
            subprocess.run([name, "--version"], capture_output=True, text=True, timeout=20).stdout
            if name
            else ""
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return next(iter(said.splitlines()), None)


def prepare_compiler(folder: Path) -> None:
    """Have torch.compile keep its cache in this folder, which only this user may write to, unless $TORCHINDUCTOR_CACHE_DIR says
    otherwise. The cache holds pickles and libraries, which are code, and torch's own places for it are guessable names in a folder that all
    users share.

    And spare a first run the compilation of a test for each set of vector instructions, 8 seconds, since the processor says which it has: a
    compiler too old for them fails on the network itself, and `fit` says so."""
    from torch._inductor import codecache, config
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    variable = "TORCHINDUCTOR_CACHE_DIR"
    torchs_own = default_cache_dir()  # to which torch itself sets the variable, as soon as it looks
    if os.environ.get(variable, torchs_own) == torchs_own:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
        except OSError:  # of another user, or no room: a folder for this process only, in which all is compiled anew
            folder = Path(tempfile.mkdtemp(prefix="undiffuse-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ[variable] = str(folder)
    # torch 2.13 has the headers elsewhere, whatever the variable says, and needs openssl to name them.
    headers = Path(os.environ[variable], "precompiled_headers")
    codecache._HEADER_DIR, codecache._HEADER_LOCK_DIR = str(headers), str(headers / "locks")
    config.cpp_cache_precompile_headers = (
        config.cpp_cache_precompile_headers and shutil.which("openssl") is not None
    )
    if config.cpp.vec_isa_ok is None:
        config.cpp.vec_isa_ok = True


def arithmetic(precision: str) -> AbstractContextManager[Any]:
    """The context in which the network computes: autocast to bfloat16, or nothing."""
    return (
        torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
    )


def in_precision(network: Callable[..., Tensor], precision: str) -> Callable[..., Tensor]:
    """The network, computing in `precision` ("bf16" or "fp32").

    Its input and output are float32 either way."""

    def call(x: Tensor, log_snr: Tensor, condition: Tensor | None) -> Tensor:
        with arithmetic(precision):
            out = network(x, log_snr, condition)
        return out.float()

    return call


@dataclass(frozen=True)
class Engine:
    """How the network's arithmetic is run: in which precision, and whether compiled."""

    precision: Literal["bf16", "fp32"] = "fp32"
    compiled: bool = False

    def arithmetic(self) -> AbstractContextManager[Any]:
        """The context in which the network computes."""
        return arithmetic(self.precision)


def machine_facts() -> dict[str, Any]:
    """What a resumed run compares, because bits depend on it; and what a reader of the run wants to know."""
    from undiffuse import __version__

    return {
        "undiffuse": __version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "platform": platform.platform(),
    }
