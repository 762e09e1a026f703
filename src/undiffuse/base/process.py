"""The caller's process: contexts in which its settings do not reach in, and stay as they are."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from undiffuse.base.lazy import lazy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import torch
else:
    torch = lazy("torch")

T = TypeVar("T")

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


class Arithmetic:
    """A context in which float32 is computed as float32, by oneDNN, whatever the caller has chosen.

    The choices belong to the process. Of several threads the first one inside makes them, and the
    last one restores the caller's."""

    def __init__(self) -> None:
        self.lock, self.inside = threading.Lock(), 0
        self.enabled, self.precisions = True, dict[Any, str]()

    def __enter__(self) -> None:
        with self.lock:
            self.inside += 1
            if self.inside > 1:
                return
            onednn: Any = torch.backends.mkldnn
            self.enabled = onednn.set_flags(True, _fp32_precision=None)[0]
            kinds = {kind: kind.fp32_precision for kind in (onednn.matmul, onednn.conv)}
            self.precisions = {k: was for k, was in kinds.items() if was not in ("none", "ieee")}
            for kind in self.precisions:
                kind.fp32_precision = "ieee"

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                torch.backends.mkldnn.set_flags(self.enabled, _fp32_precision=None)
                for kind, was in self.precisions.items():
                    kind.fp32_precision = was


ARITHMETIC = Arithmetic()


PROCESS = os.getpid()  # that imported the package


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """A context, and a decorator, for what computes with torch, whatever the caller has set.

    The caller's autocast, default device and choice of arithmetic do not reach in. A process that
    was forked after torch had used several threads would wait for them for ever; in such a process
    one thread computes. Afterwards everything is as before."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(ARITHMETIC)
        if torch.is_autocast_enabled("cpu"):
            stack.enter_context(torch.autocast("cpu", enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if os.getpid() != PROCESS:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)
        yield


def each_undisturbed(items: Iterable[T]) -> Iterator[T]:
    """The items, each of which is computed in the context `undisturbed`.

    Between two items the caller's settings hold."""
    each = iter(items)
    while True:
        with undisturbed():
            try:
                item = next(each)
            except StopIteration:
                return
        yield item
