"""Ctrl-C, SIGTERM and SIGHUP during training."""

from __future__ import annotations

import signal
import threading
from typing import Any

ENDING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""The signals that ask a program to end. SIGHUP comes when a terminal closes; Windows lacks it."""


def heeded() -> list[int]:
    """Those of the signals that this process does not ignore. nohup has it ignore SIGHUP.

    None is the handler of a program that has Python inside: Python could not put it back."""
    return [number for number in ENDING if signal.getsignal(number) not in (signal.SIG_IGN, None)]


class Interrupted(BaseException):
    """A signal ended the session before the run was finished. The run can be resumed.

    signal: its number. This is a BaseException, like KeyboardInterrupt, because it may be raised
    inside of torch's compiler, which catches every Exception."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number


class Signals:
    """A context that handles Ctrl-C, SIGTERM and SIGHUP during training.

    While there is nothing to save, the first signal raises Interrupted. Once something_to_save is
    True, the signal's number is kept in `received`, and training saves and stops. Further signals
    change nothing."""

    def __init__(self) -> None:
        self.something_to_save = False
        self.received = 0
        self.handlers: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self.handlers = {number: signal.signal(number, self.receive) for number in heeded()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def receive(self, number: int, frame: object) -> None:
        """The signal handler."""
        first, self.received = not self.received, self.received or number
        if first and not self.something_to_save:
            raise Interrupted(number)
