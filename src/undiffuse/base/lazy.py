"""Modules that are imported when they are first used, so that `undiffuse --help` does not wait for torch.

    if TYPE_CHECKING:
        import torch
    else:
        torch = lazy("torch")

Nothing of the interpreter is changed: other programs' imports stay as they are.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any


class Lazy(ModuleType):
    """Stands for a module. The module is imported when an attribute is first read."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


def lazy(name: str) -> Any:
    """The module `name`, imported when an attribute of it is first read."""
    return Lazy(name)
