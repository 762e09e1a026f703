"""What the command prints, in the help too, and how it ends."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import tyro

from undiffuse.base.lazy import lazy
from undiffuse.runs.signals import heeded

if TYPE_CHECKING:
    from rich import console as rich_console
    from rich.console import Console

    from undiffuse.console import live
else:
    rich_console, live = lazy("rich.console"), lazy("undiffuse.console.live")

STOPPED = 128
"""The exit code after a signal, less its number: 130 after Ctrl-C, 143 after SIGTERM."""


NARROW = 40  # columns
UNCUT = 4096
"""Columns where there is no terminal, so that every value is whole."""


def by_default(text: str) -> Any:
    """For a flag whose value is None unless it is given: what the help says instead of None."""
    return tyro.conf.arg(help_behavior_hint=f"(default: {text})")


def prepare_streams() -> None:
    """Let stdout and stderr take any text: letters that they lack are escaped.

    A stream that is closed takes everything and shows nothing. Of a terminal of fewer columns than
    a help can be laid out in, 40 are assumed."""
    if shutil.get_terminal_size().columns < NARROW:
        os.environ["COLUMNS"] = str(NARROW)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - to the end
            setattr(sys, name, nowhere)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def flush_all() -> OSError | None:
    """Write out what stdout holds. Returns the error where that fails; then stdout is dropped."""
    try:
        sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):  # so that Python's own flush is silent
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None


class Forgiving:
    """stdout for a training, which must not end because a line cannot be shown.

    failed: the first error, after which nothing more is written."""

    def __init__(self) -> None:
        self.stream = sys.stdout
        self.failed: OSError | None = None

    def write(self, text: str) -> int:
        if self.failed is None:
            try:
                return self.stream.write(text)
            except OSError as error:
                self.failed = error
        return len(text)

    def flush(self) -> None:
        if self.failed is None:
            try:
                self.stream.flush()
            except OSError as error:
                self.failed = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def stdout(stream: Any = None) -> Console:
    """The terminal. Brackets and colons in a text have no meaning there.

    stream: where it writes; None for sys.stdout. In a pipe or a file no line is broken or cut, or
    written over. Variables such as FORCE_COLOR give colours to a pipe, and make no terminal of it.
    A terminal has at least 40 columns, whatever it says."""
    usual = rich_console.Console(file=stream)
    console = rich_console.Console(
        file=stream,
        force_terminal=None if usual.file.isatty() else False,
        color_system=usual.color_system,  # type: ignore[arg-type]  # one of its own
        markup=False,
        emoji=False,
    )
    console.width = max(console.width, NARROW) if console.is_terminal else UNCUT
    return console


def say(line: str, console: Console | None = None) -> None:
    """Print a line without breaking it."""
    live.say(console or stdout(), line)


def leave(number: int, sentence: str = "", console: Console | None = None) -> NoReturn:
    """Print the sentence and end with the exit code for a signal. Further signals are ignored.

    Only the main thread may call it: Python delivers signals to that thread."""
    for each in heeded():
        signal.signal(each, signal.SIG_IGN)
    if sentence:
        say(sentence, console)
    raise SystemExit(STOPPED + number) from None


def fail(sentence: str) -> NoReturn:
    """Print the sentence about a user's mistake to stderr and end with exit code 2."""
    print(f"undiffuse: {sentence}", file=sys.stderr)
    raise SystemExit(2)
