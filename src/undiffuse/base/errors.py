"""The one error that a user can cause: a clear sentence instead of a traceback, and exit code 2."""

from __future__ import annotations


class UserError(ValueError):
    """What is wrong, where, and what to do, in one sentence. The command prints it and exits with code 2."""
