"""What the command prints, in the help too, and how it ends."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import tyro

from undiffuse.base.lazy import lazy

if TYPE_CHECKING:
    from rich import console as rich_console
    from rich.console import Console

    from undiffuse.console import live
else:
    rich_console, live = lazy("rich.console"), lazy("undiffuse.console.live")

STOPPED = 128
"""The exit code after a signal, less the signal's number: 130 after Ctrl-C, 143 after SIGTERM."""


def by_default(text: str) -> Any:
    """For a flag whose value is None unless it is given: what the help says instead of None."""
    return tyro.conf.arg(help_behavior_hint=f"(default: {text})")


def stdout() -> Console:
    """The terminal. Brackets and colons in a text have no meaning there."""
    return rich_console.Console(markup=False, emoji=False)


def say(line: str) -> None:
    """Print a line without breaking it."""
    live.say(stdout(), line)


def leave(number: int, sentence: str = "") -> NoReturn:
    """Print the sentence and end with the exit code for a signal. Further signals are ignored.

    Only the main thread may call it: Python delivers signals to that thread."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    if sentence:
        say(sentence)
    raise SystemExit(STOPPED + number) from None


def fail(sentence: str) -> NoReturn:
    """Print the sentence about a user's mistake to stderr and end with exit code 2."""
    print(f"undiffuse: {sentence}", file=sys.stderr)
    raise SystemExit(2)
