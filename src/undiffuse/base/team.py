"""A team of threads that compute pieces of work side by side.

torch divides every operation among its threads, and they wait for one another at its end. Where
another program needs a core, one of them is late, and all wait: hundreds of times in a training
step. A thread of the team computes a whole piece of work, such as half of a batch, with torch
threads of its own. So the members wait once for each piece. The result does not depend on the
number of members.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections import deque
from queue import SimpleQueue  # a signal may interrupt it at any moment, and it stays whole
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from undiffuse.base.lazy import lazy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import torch
else:
    torch = lazy("torch")

T = TypeVar("T")
R = TypeVar("R")

MEMBERS = 2
"""The most members of a team.

Python runs one member at a time between the operations, so many members would wait for it."""


class Member(threading.local):
    """What a thread knows of itself. team: the team that it is a member of."""

    team: Team | None = None


MEMBER = Member()


class Team:
    """Threads that take jobs from a queue. They share torch's `threads` threads evenly."""

    def __init__(self, members: int, threads: int) -> None:
        self.jobs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self.threads = [
            threading.Thread(target=self.work, args=(threads // members,), daemon=True)
            for _ in range(members)
        ]
        ready = threading.Barrier(members + 1)
        for thread in self.threads:
            thread.start()
            self.jobs.put(ready.wait)
        ready.wait()
        torch.set_num_threads(threads)  # the members have set it, for threads that begin later
        atexit.register(self.dismiss)

    def work(self, threads: int) -> None:
        """What a member does: one job after the other, until there is None."""
        torch.set_num_threads(threads)
        torch.get_num_threads()  # the first use adopts that number; without it, a later one
        MEMBER.team = self
        while job := self.jobs.get():
            job()

    def dismiss(self) -> None:
        """End the members, each after the piece of work that it has begun."""
        for _ in self.threads:
            self.jobs.put(None)
        for thread in self.threads:
            thread.join(timeout=5)


TEAMS: dict[tuple[int, int], Team] = {}
MAKING = threading.Lock()


def team() -> Team:
    """The team for the caller's number of torch threads. A forked process makes its own."""
    key = os.getpid(), torch.get_num_threads()
    with MAKING:
        if key not in TEAMS:
            TEAMS[key] = Team(min(MEMBERS, key[1]), key[1])
        return TEAMS[key]


class Work(Generic[T, R]):
    """Pieces of work that members share: function(item) of each item."""

    def __init__(self, function: Callable[[T], R], items: Iterable[T]) -> None:
        self.function = function
        self.left = deque(enumerate(items))
        self.count = len(self.left)
        self.done: SimpleQueue[tuple[int, R | None, BaseException | None]] = SimpleQueue()

    def help(self) -> None:
        """Compute items until none is left. After an error none is."""
        while True:
            try:
                index, item = self.left.popleft()
            except IndexError:  # another member was quicker
                return
            try:
                self.done.put((index, self.function(item), None))
            except BaseException as error:  # raised by `results`
                self.done.put((index, None, error))
                self.abandon(error)

    def abandon(self, error: BaseException) -> None:
        """Begin no further item."""
        while True:
            try:
                index, _ = self.left.popleft()
            except IndexError:
                return
            self.done.put((index, None, error))

    def results(self) -> list[R]:
        """The result of each item, in order. Waits for those that have begun.

        Raises the first error."""
        found: dict[int, Any] = {}
        errors = []
        for _ in range(self.count):
            index, found[index], error = self.done.get()
            errors += [error] if error is not None else []
        if errors:
            raise errors[0]
        return [found[index] for index in range(self.count)]


def side_by_side(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """[function(item) for item in items], in which the members of the team share the items.

    Where the function raises, or the caller is interrupted, no further item is begun, and the first
    error is raised. A member that calls it computes items too. So it never waits for members that
    are busy with something else."""
    work, own = Work(function, items), MEMBER.team
    try:
        crew = own or team()
        free = len(crew.threads) - bool(own)
        for _ in range(min(free, work.count)):
            crew.jobs.put(work.help)
        if own:
            work.help()
        return work.results()
    except BaseException as error:  # KeyboardInterrupt too
        work.abandon(error)
        raise


def by_a_member(function: Callable[..., R], *arguments: Any) -> R:
    """function(*arguments), computed by a member of the team while the caller waits.

    A member calls it itself. Where the caller is interrupted, the member goes on to the end."""
    if MEMBER.team:
        return function(*arguments)
    (found,) = side_by_side(lambda _: function(*arguments), (None,))
    return found
