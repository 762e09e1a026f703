"""What the terminal shows during training and during long measurements.

In a terminal it is one live line. Elsewhere, such as in a log file, training prints a line every 20
seconds and a measurement a line for each stage.
"""

from __future__ import annotations

import time
from itertools import accumulate
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from undiffuse.runs.folder import Run
from undiffuse.runs.progress import Progress
from undiffuse.training.records import (
    CompileFallback,
    Cooldown,
    PictureFailed,
    Quality,
    Record,
    Rollback,
    SessionStarted,
    StepTaken,
    Validation,
)

if TYPE_CHECKING:
    from pathlib import Path

    from undiffuse.training.config import Config

LINE_SECONDS = 20.0  # seconds between lines where there is no terminal


def duration(seconds: float) -> str:
    """Seconds as minutes:seconds."""
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    return f"{minutes}:{seconds:02d}"


def say(console: Console, line: str, style: str | None = None) -> None:
    """Print a line without breaking it, so that a path in it can be copied."""
    console.print(line, style=style, highlight=False, soft_wrap=True)


class Watcher:
    """Shows the records of one session. Use it as a context manager. Call it with each record."""

    def __init__(self, config: Config, path: Path, console: Console) -> None:
        self.config, self.path, self.console = config, path, console
        self.progress = Progress(config, images=1)
        self.printed = time.monotonic()
        self.cooling = False
        self.wide = 30 if console.width >= 120 else 10
        self.bar = Bar(
            BarColumn(bar_width=self.wide),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[words]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("", total=1.0, words="starting")

    def __enter__(self) -> Watcher:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def say(self, line: str, style: str | None = None) -> None:
        say(self.console, f"  {line}", style)

    def __call__(self, record: Record) -> None:
        self.progress(record)
        match record:
            case SessionStarted():
                self.started(record)
            case StepTaken():
                self.stepped()
            case Validation():
                self.say(f"step {record.step:>6,}  held-out loss {record.loss:.4f}")
            case Quality():
                times = record.frechet / record.floor if record.floor else 0
                over = f", {times:.0f} times the floor" if record.floor else ""
                self.say(
                    f"step {record.step:>6,}  Frechet distance {record.frechet:.2f}{over} "
                    f"({record.n:,} quick samples)"
                )
            case CompileFallback():
                self.say(
                    f"note: torch.compile failed ({record.reason}); training continues without "
                    "it and is slower",
                    style="yellow",
                )
            case PictureFailed():
                self.say(f"note: {record.file} is missing: {record.reason}", style="yellow")
            case Rollback():
                self.say(
                    f"step {record.failed:>6,}  {record.reason}: back to step {record.step:,}, "
                    "with half of the learning rate",
                    style="yellow",
                )
            case Cooldown() if not self.cooling:
                self.cooling = True
                self.say(
                    f"the learning rate falls from step {record.start:,} on, to 0 at about step "
                    f"{record.end:,}"
                )

    def started(self, record: SessionStarted) -> None:
        """Show what is trained on what, and the session's notes."""
        about = Run(self.path).about()
        facts, start = about.facts, about.start
        self.progress.images = facts.training
        self.progress.begin = start.step if start else 0
        c, h, w = facts.shape
        machine = record.machine
        compiled = ", compiled" if machine.get("compiled") else ""
        say(
            self.console,
            f"{self.path}: {facts.training:,} images of '{facts.name}' ({h}x{w}x{c}), "
            f"{facts.validation:,} held out; {self.config.net}, "
            f"{record.parameters / 1e6:.2f} million parameters, "
            f"{machine.get('precision')}{compiled}",
        )
        if facts.classes:
            more = f" and {len(facts.classes) - 12} more" if len(facts.classes) > 12 else ""
            named = ", ".join(facts.classes[:12])
            self.say(f"{len(facts.classes)} classes: {named}{more}")
        for note in record.notes:
            self.say(f"note: {note}", style="yellow")
        if start and record.step == start.step:
            self.say(f"begins at step {start.step:,} of {start.run}, before its learning rate fell")
        elif record.step:
            self.say(f"resumed at step {record.step:,}, after {duration(record.time)} min")
        words = "compiling the network, up to a minute" if compiled else "starting"
        self.bar.update(self.task, words=words)

    def stepped(self) -> None:
        """Show the progress after a step."""
        words = "  ".join(self.fitting(self.words()))
        self.bar.update(self.task, completed=self.progress.share, words=words)
        if not self.console.is_terminal and time.monotonic() - self.printed > LINE_SECONDS:
            self.printed = time.monotonic()
            self.say(words)

    def words(self) -> list[str]:
        """The parts of the progress line, the most important first."""
        now = self.progress
        held_out = [] if now.held_out is None else [f"held-out {now.held_out:.4f}"]
        return [
            *([] if now.left is None else [f"{duration(now.left)} to go"]),
            f"step {now.step:,}{f'/{now.end:,}' if now.end else ''}",
            f"{now.images_per_second or 0:,.0f} images/s",
            f"loss {now.loss or 0:.4f}",
            *held_out,
            f"epoch {now.epoch:.2f}",
            f"{duration(now.elapsed)} min",
        ]

    def fitting(self, words: list[str]) -> list[str]:
        """The first of the parts, as many as fit the terminal."""
        room = self.console.width - self.wide - len(" 100% ")
        lengths = accumulate(len(word) + 2 for word in words)
        return [word for word, length in zip(words, lengths, strict=True) if length <= room]


class Stages:
    """Shows the stages of a long measurement. Call it with (stage, share done).

    It shows a bar in a terminal. Elsewhere it prints a line for each stage. Use it as a context
    manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.begin = time.monotonic()
        self.stage = ""
        self.bar = Bar(
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("starting", total=1.0)

    def __enter__(self) -> Stages:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, stage: str, done: float) -> None:
        if stage != self.stage and not self.console.is_terminal:
            say(self.console, f"  {duration(time.monotonic() - self.begin)} min  {stage}")
        self.stage = stage
        self.bar.update(self.task, description=stage, completed=min(1.0, done))
