"""The one error that a user can cause.

The library raises it as an exception with a clear sentence. The command prints that sentence in
place of a traceback.
"""

from __future__ import annotations


class UserError(ValueError):
    """One sentence: what is wrong, where, and what to do.

    The command prints it and ends with exit code 2."""
