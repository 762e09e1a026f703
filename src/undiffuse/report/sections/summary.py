"""The first paragraphs: what was trained, how long it took, how good it is, and its images."""

from __future__ import annotations

from collections.abc import Iterator

from undiffuse.report.blocks import Block, Figure, Missing, Text, plain
from undiffuse.report.source import Source
from undiffuse.report.words import number


def section(source: Source) -> Iterator[Block]:
    facts = source.about.facts
    channels, height, width = facts.shape
    kind = f"${height} times {width}$ pixels, {'grey' if channels == 1 else f'{channels} colours'}"
    interrupted = " The run was interrupted, so all of this is of an unfinished model."
    state = "" if source.finished else interrupted
    yield Text(
        f"A diffusion model was trained on {facts.training:,} images of _{plain(facts.name)}_ "
        f"({kind}) for {source.steps:,} steps, in {source.minutes:.1f} minutes on a CPU.{state} "
        "This report says what it is, how it was made, and how good it is; its results are the "
        "run's own, and its code is taken from the package's files."
    )
    yield from quality(source)
    yield from images(source)


def quality(source: Source) -> Iterator[Block]:
    """The Frechet distance, if the current weights were evaluated."""
    metrics = source.metrics
    if not metrics or "frechet" not in metrics or not source.is_current(metrics["of"]["step"]):
        return
    found, step = metrics["frechet"], metrics["of"]["step"]
    begin = "The" if step == source.steps else f"After step {step:,} the"
    yield Text(
        f"{begin} Fréchet distance of its images to the training images is "
        f"{number(found['ratio'], 2)} times (95% interval {number(found['ratio_low'], 2)} to "
        f"{number(found['ratio_high'], 2)}) that of real images that it was not trained on."
    )


def images(source: Source) -> Iterator[Block]:
    """Samples of the model, or the command that makes them."""
    run = source.run
    if "samples.png" in source.pictures:
        classes = f" A {source.class_lies_in} is a class." if source.class_lies_in else ""
        yield Figure(
            "samples",
            f"New images, sampled from this model. None was picked out.{classes}",
            f"A grid of images sampled from the model, in the manner of {source.about.facts.name}.",
            0.8,
        )
    else:
        weights = source.finished or run.checkpoint_path.is_file()
        yield Missing(
            "There are no images of this run yet.",
            run.command_for("sample") if weights else run.command(),
        )
