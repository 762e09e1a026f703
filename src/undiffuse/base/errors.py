"""The one error that a user can cause.

The library raises it as an exception with a clear sentence. The command prints that sentence in
place of a traceback.
"""

from __future__ import annotations

from collections.abc import Iterable


class UserError(ValueError):
    """One sentence: what is wrong, where, and what to do.

    The command prints it and ends with exit code 2."""


def listed(names: Iterable[object], most: int = 10) -> str:
    """Names in a sentence: the first ones, and how many more there are."""
    every = list(map(str, names))
    more = f" and {len(every) - most:,} more" if len(every) > most else ""
    return f"{', '.join(every[:most])}{more}"
