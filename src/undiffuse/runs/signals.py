"""Ctrl-C and SIGTERM during training."""

from __future__ import annotations

import signal
import threading
from typing import Any


class Interrupted(BaseException):
    """A signal ended the session before the run was finished. The run can be resumed.

    signal: its number. This is a BaseException, like KeyboardInterrupt, because it may be raised
    inside of torch's compiler, which catches every Exception."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number


class Signals:
    """A context that handles Ctrl-C and SIGTERM during training.

    While there is nothing to save, the first signal raises Interrupted. Once something_to_save is
    True, the signal's number is kept in `received`, and training saves and stops. Further signals
    change nothing."""

    def __init__(self) -> None:
        self.something_to_save = False
        self.received = 0
        self.handlers: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            numbers = (signal.SIGINT, signal.SIGTERM)
            self.handlers = {number: signal.signal(number, self.receive) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def receive(self, number: int, frame: object) -> None:
        """The signal handler."""
        first, self.received = not self.received, self.received or number
        if first and not self.something_to_save:
            raise Interrupted(number)
