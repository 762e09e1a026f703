"""The first paragraphs: what was trained, how long it took, how good it is, and its images."""

from __future__ import annotations

from collections.abc import Iterator

from undiffuse import __version__
from undiffuse.measuring.summary import sentences
from undiffuse.report.blocks import Block, Figure, Missing, Text, coded, plain
from undiffuse.report.source import Source
from undiffuse.report.words import accented, data_name, sampler_name


def section(source: Source) -> Iterator[Block]:
    facts = source.about.facts
    channels, height, width = facts.shape
    kind = f"${height} times {width}$ pixels, {'grey' if channels == 1 else f'{channels} colours'}"
    interrupted = " The run was interrupted, so all of this is of an unfinished model."
    state = "" if source.finished else interrupted
    begin = (
        f"A diffusion model was trained on {facts.training:,} images of "
        f"{plain(data_name(facts.name))} ({kind}) for {source.steps:,} steps, in "
        f"{source.minutes:.1f} minutes on a CPU.{state}"
    )
    yield Text(" ".join([begin, *findings(source)]))
    name = coded(source.run.path.resolve().name)
    yield Text(
        f"_Written by undiffuse {__version__} from the run {name}. All figures are the run's own, "
        "and all code is what ran._"
    )
    yield from images(source)


def findings(source: Source) -> Iterator[str]:
    """What was found about the images and the samplers, a sentence each."""
    if source.evaluation:
        step = source.evaluation["of"]["step"]
        if step != source.steps:
            yield f"What follows was measured after step {step:,}."
        for sentence in sentences(source.evaluation):
            yield plain(accented(sentence))
    if study := source.comparison:
        scored = [row for row in study["rows"] if row["guidance"] == 1 and "frechet" in row]
        if scored:
            best = min(scored, key=lambda row: float(row["frechet"]))
            close = sum(row["frechet_low"] <= best["frechet_high"] for row in scored) - 1
            doubt = (
                f", though {study['n']:,} images each cannot tell {close} others from it"
                if close
                else ""
            )
            yield (
                f"Of {len(scored)} ways of sampling without guidance, "
                f"{plain(sampler_name(best['sampler']))} with {best['calls']} network calls has "
                f"the smallest distance{doubt}."
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
            0.5,
            here=True,
        )
    else:
        yield Missing(
            "There are no images of this run yet.",
            run.command_for("sample") if source.has_weights else run.command(),
        )
