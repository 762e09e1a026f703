"""Tables: functions by name, so that one new schedule, sampler or network is added in one place.

A spec is one string such as `cosine:s=0.008`. It is the value of a flag, it is what the
configuration of a run saves, and it stands for the call.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn, TypeVar

from undiffuse.base.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])


class Table:
    """Functions by name. A spec may set the keyword-only parameters that have defaults.

    @SCHEDULES.add
    def cosine(t, *, s=0.008): ...

    SCHEDULES["cosine:s=0.01"]  # partial(cosine, s=0.01)

    Parameters are numbers, or tuples of numbers, which are written 64/128. A bool is written 0 or
    1."""

    def __init__(self, kind: str, *modules: str) -> None:
        """kind: what the functions are, for error messages, such as "schedule".

        modules: whose functions register themselves. They are imported, in this order, when the
        table is first asked for a name, unless they have been imported before."""
        self.kind = kind
        self._modules = list(modules)
        self._functions: dict[str, Callable[..., Any]] = {}

    @property
    def _known(self) -> dict[str, Callable[..., Any]]:
        """The functions by name, those of all modules among them."""
        while self._modules:
            importlib.import_module(self._modules.pop(0))
        return self._functions

    def add(self, function: F) -> F:
        """Decorator: register `function` under its own name, in lower case, with "-" for "_"."""
        return self.named(own_name(function))(function)

    def named(self, name: str) -> Callable[[F], F]:
        """Decorator: register a function under `name`."""

        def register(function: F) -> F:
            if name in self._functions:
                raise ValueError(f"two {self.kind} functions are called {name}")
            self._functions[name] = function
            return function

        return register

    @contextmanager
    def added(self, function: Callable[..., Any], name: str | None = None) -> Iterator[None]:
        """Within this context `function` is in the table, as for a test or an experiment."""
        name = name or own_name(function)
        self.named(name)(function)
        try:
            yield
        finally:
            del self._functions[name]  # and no other: a module is imported only once

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __contains__(self, name: object) -> bool:
        return name in self._known

    def check(self, spec: str) -> None:
        """Raises UserError unless `spec` is a known name with known parameters."""
        name, colon, _ = spec.partition(":")
        if name not in self:
            self.unknown(name)
        if colon:
            self[spec]

    def unknown(self, name: str) -> NoReturn:
        """Raises UserError, which lists the names that there are."""
        raise UserError(f"there is no {self.kind} called '{name}'; there are: {', '.join(self)}")

    def function(self, name: str) -> Callable[..., Any]:
        """The function registered under `name`, its parameters not set.

        Raises UserError for an unknown name."""
        if name not in self._known:
            self.unknown(name)
        return self._known[name]

    def defaults(self, name: str) -> dict[str, Any]:
        """The parameters that a spec of `name` may set, with their default values."""
        parameters = inspect.signature(self.function(name)).parameters.values()
        return {
            p.name: p.default
            for p in parameters
            if p.kind is p.KEYWORD_ONLY and p.default is not p.empty
        }

    def options(self, spec: str) -> dict[str, Any]:
        """The parameters that a spec sets, with their values. Raises as `table[spec]` does."""
        name, _, arguments = spec.partition(":")
        known = self.defaults(name)
        chosen: dict[str, Any] = {}
        for argument in filter(None, arguments.split(",")):
            key, equals, value = argument.partition("=")
            if not equals or key not in known:
                listed = ", ".join(f"{k}={written(v)}" for k, v in known.items()) or "none"
                raise UserError(
                    f"{self.kind} '{name}' has no parameter '{key}' (in '{spec}'); it has: {listed}"
                )
            try:
                chosen[key] = parsed(value, known[key])
            except ValueError as error:
                raise UserError(
                    f"{self.kind} '{spec}': {key} must be {error}, not '{value}'"
                ) from None
        return chosen

    def canonical(self, spec: str) -> str:
        """The spec with only those parameters that differ from their defaults, in fixed order."""
        name = spec.partition(":")[0]
        chosen = self.options(spec)
        changed = {k: chosen[k] for k, v in self.defaults(name).items() if chosen.get(k, v) != v}
        arguments = ",".join(f"{k}={written(v)}" for k, v in changed.items())
        return f"{name}:{arguments}" if changed else name

    def __getitem__(self, spec: str) -> Callable[..., Any]:
        """The function that a spec `name` or `name:k=v,k=v` stands for.

        Raises UserError for an unknown name or parameter, or for a value of another type."""
        function = self.function(spec.partition(":")[0])
        chosen = self.options(spec)
        return partial(function, **chosen) if chosen else function


def own_name(function: Callable[..., Any]) -> str:
    """The name of a function as a table has it."""
    return function.__name__.lower().replace("_", "-")


def parsed(text: str, default: Any) -> Any:
    """The value of a parameter, of the type of its default.

    Raises ValueError, which says what the value must be."""
    if isinstance(default, tuple):
        if not text:
            raise ValueError("numbers with / between them")
        return tuple(parsed(part, default[0]) for part in text.split("/"))
    if isinstance(default, bool):
        if text.lower() not in ("0", "1", "false", "true"):
            raise ValueError("0 or 1")
        return text.lower() in ("1", "true")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError("a finite number")
    if isinstance(default, int):
        if value != int(value):
            raise ValueError("a whole number")
        return int(value)
    return value


def written(value: Any) -> str:
    """The value of a parameter as it is written in a spec."""
    if isinstance(value, (tuple, list)):
        return "/".join(map(written, value))
    return str(int(value)) if isinstance(value, bool) else str(value)
