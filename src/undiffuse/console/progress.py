"""What the terminal shows of a session: a live line where there is a terminal, a line now and then where there is none."""

from __future__ import annotations

import time
from collections import deque
from itertools import accumulate
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from undiffuse.runs.session import Began
from undiffuse.training.clock import Decision
from undiffuse.training.events import Decided, Ended, Event, Scored, SetBack, Snapshot, Stepped, Uncompiled, Validated

if TYPE_CHECKING:
    from pathlib import Path

    from undiffuse.training.config import Config

LINE_SECONDS = 20.0  # between lines where there is no terminal


def duration(seconds: float) -> str:
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    return f"{minutes}:{seconds:02d}"


def say(console: Console, line: str, style: str | None = None) -> None:
    """Print a line as one line, however long, so that a path in it can be copied, and a file of lines be searched."""
    console.print(line, style=style, highlight=False, soft_wrap=True)


class Watcher:
    """Shows the events of one session. Call it with each; use it as a context manager."""

    def __init__(self, config: Config, path: Path, console: Console, started: float) -> None:
        self.config, self.path, self.console, self.started = config, path, console, started
        self.spent = 0.0
        self.losses: deque[float] = deque(maxlen=50)
        self.seconds: deque[float] = deque(maxlen=50)
        self.validation: float | None = None
        self.printed = time.monotonic()
        self.epoch_images = 1
        self.decaying = False
        self.bar = 30 if console.width >= 120 else 10
        self.progress = Progress(
            BarColumn(bar_width=self.bar),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[words]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task("", total=1.0, words="starting")

    def __enter__(self) -> Watcher:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def __call__(self, event: Began | Event) -> None:
        match event:
            case Began():
                self.began(event)
            case Stepped():
                self.stepped(event)
            case Validated():
                self.validation = event.loss
                say(self.console, f"  step {event.step:>6,}  held-out loss {event.loss:.4f}")
            case Scored():
                over = f", {event.frechet / event.floor:.0f} times the floor" if event.floor else ""
                say(
                    self.console,
                    f"  step {event.step:>6,}  Frechet distance {event.frechet:.2f}{over} ({event.n:,} quick samples)",
                )
            case Uncompiled():
                say(
                    self.console,
                    f"  note: torch.compile failed ({event.reason}); training goes on without it, more slowly",
                    style="yellow",
                )
            case SetBack():
                say(
                    self.console,
                    f"  step {event.of:>6,}  {event.reason}: back to step {event.step:,}, with half of the learning rate",
                    style="yellow",
                )
            case Decided(decision=Decision() as decision) if not self.decaying:
                self.decaying = True
                say(
                    self.console,
                    f"  the learning rate falls from step {decision.step:,} on, to 0 at about step {decision.end:,}",
                )
            case Snapshot() | Ended() | Decided():
                pass

    def began(self, event: Began) -> None:
        self.spent = event.seconds
        facts = event.facts
        self.epoch_images = facts.training
        c, h, w = facts.shape
        what = f"{facts.training:,} images of '{facts.name}' ({h}x{w}x{c}), {facts.validation:,} held out"
        how = f"{self.config.net}, {event.parameters / 1e6:.2f} million parameters, {event.precision}{', compiled' if event.compiled else ''}"
        say(self.console, f"{self.path}: {what}; {how}")
        for note in event.notes:
            say(self.console, f"  note: {note}", style="yellow")
        if event.step:
            say(self.console, f"  resumed at step {event.step:,}, after {duration(event.seconds)} min")
        self.progress.update(self.task, words="compiling the network, up to a minute" if event.compiled else "starting")

    def stepped(self, event: Stepped) -> None:
        self.losses.append(event.loss)
        self.seconds.append(event.seconds)
        elapsed = self.spent + time.monotonic() - self.started
        pace = sorted(self.seconds)[len(self.seconds) // 2]
        if self.config.minutes is not None:
            share, left = elapsed / (60 * self.config.minutes), 60 * self.config.minutes - elapsed
        else:
            end = event.end or event.step
            share, left = event.step / end, (end - event.step) * pace
        words = [  # the most wanted first: a narrow terminal has room for some only
            f"{duration(left)} to go",
            f"step {event.step:,}{f'/{event.end:,}' if event.end else ''}",
            f"{self.config.batch_size / pace:,.0f} images/s",
            f"loss {sum(self.losses) / len(self.losses):.4f}",
            *([f"held-out {self.validation:.4f}"] if self.validation is not None else []),
            f"epoch {event.step * self.config.batch_size / self.epoch_images:.2f}",
            f"{duration(elapsed)} min",
        ]
        room = self.console.width - self.bar - len(" 100% ")
        fitting = [
            word
            for word, length in zip(words, accumulate(len(word) + 2 for word in words), strict=True)
            if length <= room
        ]
        self.progress.update(self.task, completed=min(1.0, share), words="  ".join(fitting))
        if not self.console.is_terminal and time.monotonic() - self.printed > LINE_SECONDS:
            self.printed = time.monotonic()
            say(self.console, "  " + "  ".join(words))


class Stages:
    """Shows the stages of a long measurement: a bar where there is a terminal, else a line for each. Call it with (stage, share done)."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.begin = time.monotonic()
        self.stage = ""
        self.progress = Progress(
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task("starting", total=1.0)

    def __enter__(self) -> Stages:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def __call__(self, stage: str, done: float) -> None:
        if stage != self.stage and not self.console.is_terminal:
            say(self.console, f"  {duration(time.monotonic() - self.begin)} min  {stage}")
        self.stage = stage
        self.progress.update(self.task, description=stage, completed=min(1.0, done))
