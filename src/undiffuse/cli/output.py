"""What the command prints, and how it ends."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from undiffuse.base.lazy import lazy

if TYPE_CHECKING:
    from rich import console as rich_console
    from rich.console import Console

    from undiffuse.console import live
else:
    rich_console, live = lazy("rich.console"), lazy("undiffuse.console.live")

STOPPED = 128  # plus the signal's number: 130 after Ctrl-C, 143 after SIGTERM


def stdout() -> Console:
    return rich_console.Console(markup=False, emoji=False)


def say(line: str) -> None:
    """Print a line as one line."""
    live.say(stdout(), line)


def leave(number: int, sentence: str = "") -> NoReturn:
    """End after a signal, which only the main thread gets; more of them change nothing."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    if sentence:
        say(sentence)
    raise SystemExit(STOPPED + number) from None


def fail(sentence: str) -> NoReturn:
    """Print a user's mistake and end with exit code 2."""
    print(f"undiffuse: {sentence}", file=sys.stderr)
    raise SystemExit(2)
