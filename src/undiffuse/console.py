"""What the terminal shows of a session: a live line where there is a terminal, a line now and then where there is none."""

from __future__ import annotations

import time
from collections import deque
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from undiffuse.clock import Decision
from undiffuse.run import Run
from undiffuse.session import Began
from undiffuse.training import Decided, Ended, Event, Scored, SetBack, Snapshot, Stepped, Uncompiled, Validated

if TYPE_CHECKING:
    from pathlib import Path

    from undiffuse.config import Config

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


FIGURES = {
    "frechet": "Frechet distance to the training images",
    "frechet_to_test": "Frechet distance to the test images",
    "kid": "kernel distance (KID)",
    "precision": "precision (k = 3)",
    "recall": "recall (k = 3)",
    "density": "density (k = 5)",
    "coverage": "coverage (k = 5)",
    "class_balance": "class balance: total variation from the data's",
    "confidence": "classifier's mean confidence",
    "unsure": "share of images it is less than 90% sure of",
    "label_agreement": "share with the label that was asked for",
    "train_on_synthetic": "accuracy of a classifier trained on them",
}


def scores(found: dict[str, Any]) -> Group:
    """The content of metrics.json for the terminal: each figure, its 95% interval, and the same of real images."""
    table = Table("figure", "value", "95% interval", f"real ({found['reference']['control']})", box=box.SIMPLE_HEAD)

    def number(x: float | None) -> str:
        return "-" if x is None else f"{x:.4g}"

    def row(name: str, figure: dict[str, Any], control: float | None) -> None:
        interval = f"{number(figure['low'])} to {number(figure['high'])}"
        table.add_row(name, number(figure["value"]), interval, number(control))

    for key, name in FIGURES.items():
        if key in found:
            row(name, found[key], found[key].get("floor", found[key].get("control")))
        if key == "frechet" and key in found:
            ratio = {
                name: found[key][f"ratio{part}"] for name, part in (("value", ""), ("low", "_low"), ("high", "_high"))
            }
            row("  over that of real images, its floor", ratio, 1)
    lines = []
    bits = found.get("bits_per_dim")
    if bits:
        row(f"bits/dim, test: bound of the {bits['chain']}-step chain", {**bits, "value": bits["test"]}, None)
        row("  training images", bits["training"], None)
        row(
            f"  continuous-time bound, {bits['continuous']['n']:,} test images",
            {**bits["continuous"], "value": bits["continuous"]["test"]},
            None,
        )
        if "ode" in bits:
            row("  probability-flow ODE, test (another model)", {**bits["ode"], "value": bits["ode"]["test"]}, None)
        lines.append(f"the bound is that of {bits['assumes']}")
        if "ode" in bits:
            lines.append(f"the ODE's is that of {bits['ode']['assumes']}: neither bounds the other")
    audit = found.get("novelty")
    if audit:
        for what in ("pixels", "features"):
            if what in audit:
                near, c_t = audit[what]["nearer"], audit[what]["c_t"]
                row(f"share nearer to training images than 99% of real ones, {what}", near, near["control"])
                table.add_row(f"C_T, {what} (far below 0: copies)", number(c_t["value"]), "", number(c_t["control"]))
        verdict = (
            "ALARM: some images are copies of training images"
            if audit["alarm"]
            else f"no copies found; {audit['detectable']:.2%} of them would have been"
        )
        lines.append(
            f"novelty: {verdict} (d1/d2 below {audit['threshold']:.3f}: {audit['share']:.2%} of them, {audit['expected']:.2%} of real ones; p = {audit['p_value']:.2g})"
        )
    lines += [f"note: {warning}" for warning in found["warnings"]]
    lines += [f"not given: {name}, as {why}" for name, why in found["missing"].items()]
    return Group(table, *lines)


def describe(run: Run) -> Group:
    """A run's state, data and hyperparameters, for the terminal."""
    about = run.about()
    config, facts = about.config, about.facts
    steps, end = run.events("step"), run.finished()
    spent = max((event["time"] for event in run.log()), default=0.0)
    state = "finished" if end else "unfinished; the same command goes on with it"
    shape = "x".join(str(n) for n in (*facts.shape[1:], facts.shape[0]))
    lines = {
        "state": f"{state}; {len(steps):,} steps in {spent / 60:.1f} minutes",
        "data": f"{facts.name}, {facts.training:,} images of {shape} to train on, {facts.validation:,} held out",
        "classes": ", ".join(facts.classes) or "none",
        "groups": f"{len(facts.groups)} of similar images" + (", parts of the classes" * bool(facts.class_of))
        if facts.groups
        else "none",
        "loss": f"{steps[-1]['loss']:.4f} at the last step" if steps else "none yet",
    }
    for event in run.events("validation")[-1:]:
        lines["held-out loss"] = f"{event['loss']:.4f} at step {event['step']:,}"
    for event in run.events("session")[-1:]:
        lines["machine"] = ", ".join(f"{key} {value}" for key, value in event["machine"].items())
    if about.replay_of:
        lines["replays"] = about.replay_of
    summary = Table(box=None, show_header=False, title=str(run.path), title_justify="left", title_style="bold")
    for key, value in lines.items():
        summary.add_row(key, value)
    table = Table("hyperparameter", "value", "why", box=box.SIMPLE_HEAD)
    drawing = config.drawing(steps[-1]["step"] if steps else 0, about.told)
    for name, why in about.reasons.items():
        value = drawing.get(name, getattr(config, name))
        table.add_row(name.replace("_", "-"), "-" if value is None else str(value), why)
    return Group(summary, table)
