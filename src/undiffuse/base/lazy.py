"""Modules that are imported when they are first used. So `undiffuse --help` need not load torch.

    if TYPE_CHECKING:
        import torch
    else:
        torch = lazy("torch")

Nothing of the interpreter is changed: imports of other programs stay as they are.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any


class Lazy(ModuleType):
    """A stand-in for a module, which is imported when one of its attributes is first read."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


def lazy(name: str) -> Any:
    """The module `name`, imported when one of its attributes is first read."""
    return Lazy(name)
