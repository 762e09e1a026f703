"""Tables: how one new schedule, sampler, weighting, ... is added in one place.

A table maps a name to a function. One string such as `cosine:s=0.008` is at once the flag's value, what the
run's configuration saves, and the call that it stands for.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NoReturn, TypeVar

from undiffuse.base.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])


class Table:
    """Functions by name. A function's keyword-only parameters, all numbers, are what a spec may set.

    @SCHEDULES.add
    def cosine(t, *, s=0.008): ...

    SCHEDULES["cosine:s=0.01"]  # partial(cosine, s=0.01)
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._functions: dict[str, Callable[..., Any]] = {}

    def add(self, function: F) -> F:
        """Decorator: register `function` under its own name, in lower case and with dashes for underscores."""
        return self.named(function.__name__.lower().replace("_", "-"))(function)

    def named(self, name: str) -> Callable[[F], F]:
        """Decorator: register a function under `name`."""

        def register(function: F) -> F:
            if name in self._functions:
                raise ValueError(f"two {self.kind} functions are called {name}")
            self._functions[name] = function
            return function

        return register

    def __iter__(self) -> Iterator[str]:
        return iter(self._functions)

    def __contains__(self, name: object) -> bool:
        return name in self._functions

    def check(self, spec: str) -> None:
        """UserError unless `spec` is a known name with known parameters. Imports nothing."""
        name, colon, _ = spec.partition(":")
        if name not in self:
            self.unknown(name)
        if colon:
            self[spec]

    def unknown(self, name: str) -> NoReturn:
        raise UserError(f"there is no {self.kind} called '{name}'; there are: {', '.join(self)}")

    def defaults(self, name: str) -> dict[str, float]:
        """The parameters that a spec of `name` may set, with their default values."""
        parameters = inspect.signature(self._functions[name]).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def __getitem__(self, spec: str) -> Callable[..., Any]:
        """The function that a spec `name` or `name:k=v,k=v` stands for.

        Raises UserError for an unknown name or parameter, or a value that is no finite number."""
        name, _, arguments = spec.partition(":")
        if name not in self._functions:
            self.unknown(name)
        known = self.defaults(name)
        chosen: dict[str, float] = {}
        for argument in filter(None, arguments.split(",")):
            key, equals, value = argument.partition("=")
            if not equals or key not in known:
                listed = ", ".join(f"{k}={v}" for k, v in known.items()) or "none"
                raise UserError(f"{self.kind} '{name}' has no parameter '{key}' (in '{spec}'); it has: {listed}")
            try:
                chosen[key] = float(value)
            except ValueError:
                chosen[key] = math.nan
            if not math.isfinite(chosen[key]):
                raise UserError(f"{self.kind} '{spec}': {key} must be a finite number, not '{value}'")
        return partial(self._functions[name], **chosen) if chosen else self._functions[name]
