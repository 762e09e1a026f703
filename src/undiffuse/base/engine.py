"""What this machine can do, and in which precision a network computes on it."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import sys
import time
from dataclasses import dataclass
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


def fastest() -> Literal["bf16", "fp32"]:
    """The precision that is faster on this CPU."""
    return "bf16" if has_bf16() else "fp32"


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
