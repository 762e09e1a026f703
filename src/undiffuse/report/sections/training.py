"""How training went: the losses, what went wrong, and the code of one step."""

from __future__ import annotations

from collections.abc import Iterator

from undiffuse.report.blocks import Block, Figure, Heading, Missing, Text, plain
from undiffuse.report.sections._shared import code
from undiffuse.report.source import Source
from undiffuse.report.words import number
from undiffuse.training.averages import ema_decay
from undiffuse.training.experiment import Experiment
from undiffuse.training.records import (
    CompileFallback,
    Projection,
    Quality,
    Rollback,
    Validation,
)
from undiffuse.training.step import Gradient, train_step


def section(source: Source) -> Iterator[Block]:
    yield Heading(1, "Training")
    if start := source.about.start:
        yield Text(
            f"This run is longer than its own budget says. It began at step {start.step:,} of "
            f"the run `{plain(start.run)}`, with the state that it had before its learning rate "
            "fell."
        )
    yield from progress(source)
    yield from figures(source)
    yield from mishaps(source)
    yield Text(
        "A step of training samples a batch of images with noise and times. It computes the "
        "gradient of (6) as the sum over two halves of the batch, which two threads compute side "
        "by side. The optimiser changes the weights. Then the new weights enter their average, and "
        "images are sampled with this average. All randomness is a function of the seed and the "
        "step, so a stopped run goes on to the same end. The loop around the step is `fit` in "
        "`undiffuse/training/loop.py`. It decides when to take snapshots and when to stop."
    )
    yield from code(Experiment.batch, Gradient.__call__, train_step, ema_decay)


def progress(source: Source) -> Iterator[Block]:
    """The losses of held-out images, and the quality of quick samples: the first and the last."""
    validations, qualities = source.of(Validation), source.of(Quality)
    if not validations:
        return
    first, last = validations[0], validations[-1]
    untrained = number(first.loss)
    words = f"On images that were held out, the untrained network's loss was {untrained}"
    if last is first:
        words += "."
    else:
        words += (
            f"; at step {last.step:,} it was {number(last.loss)}. It is that of the averaged "
            "weights, and so may lie below the loss of the steps."
        )
    if qualities:
        begin, end = qualities[0], qualities[-1]
        words += (
            f" Quick samples came from a Fréchet distance of {number(begin.frechet)} at step "
            f"{begin.step:,} to {number(end.frechet)} at step {end.step:,}; as many real images "
            f"have {number(end.floor)}."
        )
    yield Text(words)


def figures(source: Source) -> Iterator[Block]:
    if "loss.png" in source.pictures:
        quality = "; the quality of quick samples" if source.of(Quality) else ""
        yield Figure(
            "loss",
            "The loss as training went on; "
            f"the held-out loss by noise level, darker later{quality}.",
            "Charts of the falling loss against the step, and of the held-out loss against the "
            "log-SNR.",
        )
    if "timeline.png" in source.pictures:
        yield Figure(
            "timeline",
            "Samples from the same noise at different steps of training, those of the untrained "
            f"network first.{guided(source)}",
            "Rows of images, from noise at the top to clear images at the bottom.",
            0.66,
        )


def guided(source: Source) -> str:
    """A sentence about the guidance of the snapshots."""
    projections = source.of(Projection)
    if not source.about.conditioning.guidable or not projections:
        return ""
    sampling = source.config.sampling(projections[-1].steps, source.about.conditioning)
    return f" All were sampled with the same guidance, {sampling.guidance:g}."


def mishaps(source: Source) -> Iterator[Block]:
    """What went wrong: no compilation, a rollback to earlier weights, an unfinished run."""
    fallbacks = [(record.step, record.reason) for record in source.of(CompileFallback)]
    for step, reason in dict.fromkeys(fallbacks):
        yield Text(
            f"From step {step:,} the network was trained without being compiled: {plain(reason)}."
        )
    for rollback in source.of(Rollback):
        yield Text(
            f"At step {rollback.failed:,} training went wrong, as {plain(rollback.reason)}; it was "
            f"rolled back to step {rollback.step:,}, and went on with half of the learning rate."
        )
    if not source.finished:
        yield Missing(
            "This run is unfinished; figures of the whole of it are drawn at its end.",
            source.run.command(),
        )
