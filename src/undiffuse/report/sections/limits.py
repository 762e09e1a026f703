"""What the results do not say, and how to repeat the run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from undiffuse.report.blocks import Block, Command, Heading, Missing, Text
from undiffuse.report.source import Source


def section(source: Source) -> Iterator[Block]:
    yield Heading(1, "Limits, and how to repeat it")
    yield Text(
        "The features by which images are compared come from a classifier: what it does not see, "
        "these figures do not measure. Intervals say what other samples would give, not "
        "what another training would. The bound and the ODE's likelihood are of different models, "
        "and no order holds between them."
    )
    yield from absent(source)
    if source.finished:
        yield Command(
            "This command repeats the run to the same weights, on the same machine and versions:",
            shlex.join(["undiffuse", "train", "--replay", str(source.run.path), "--out", "NEW"]),
        )


def absent(source: Source) -> Iterator[Missing]:
    """What was not measured, each with the command that measures it."""
    run, metrics, samplers = source.run, source.metrics, source.samplers
    if source.evaluation is None:
        what = "The quality, likelihood and novelty of this run were not measured."
        if metrics is not None:
            step = metrics["of"]["step"]
            what = f"There is no evaluation of the finished run, only one of step {step:,}."
        yield Missing(what, run.command_for("evaluate"))
    elif not source.evaluation.get("bits_per_dim"):
        parts = ("--no-quality", "--no-novelty")
        yield Missing(
            "Bits per dimension were not measured.", run.command_for("evaluate", after=parts)
        )
    if source.comparison is None:
        what = "The samplers were not compared on this run."
        if samplers is not None:
            step = samplers["step"]
            what = (
                f"There is no comparison of the finished run's samplers, only one of step {step:,}."
            )
        yield Missing(what, run.command_for("study", "samplers"))
    if source.over_time is None and source.averages and source.about.facts.classes:
        yield Missing(
            "The quality of samples over training was not measured.",
            run.command_for("study", "progress"),
        )
    if not source.trainings:
        yield Missing(
            "Other schedules were not tried on this run, nor other predictions or amounts of data "
            "(the studies `predictions` and `subset`).",
            run.command_for("study", "schedules"),
        )
