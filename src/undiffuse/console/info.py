"""What the terminal shows of a session: a live line where there is a terminal, a line now and then where there is none."""

from __future__ import annotations

from rich import box
from rich.console import Group
from rich.table import Table

from undiffuse.runs.folder import Run


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
