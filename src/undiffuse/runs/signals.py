"""Ctrl-C and SIGTERM while a run trains."""

from __future__ import annotations

import signal
import threading
from typing import Any


class Interrupted(BaseException):
    """A signal ended the session before the run was finished. The run can go on.

    signal: its number. It is a BaseException, like KeyboardInterrupt, since it may be raised inside
    of the compiler, which catches others."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number


class Signals:
    """Within: Ctrl-C and SIGTERM raise Interrupted while there is nothing to save.

    Once there is, they are remembered. All but the first change nothing."""

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
        first, self.received = not self.received, self.received or number
        if first and not self.something_to_save:
            raise Interrupted(number)
