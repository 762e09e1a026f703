"""How training went: the losses, samples over time, and what went wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from undiffuse.report.blocks import Block, Figure, Heading, Missing, Text, plain
from undiffuse.report.source import Source
from undiffuse.report.words import interval, number, sampler_name
from undiffuse.training.records import (
    CompileFallback,
    Projection,
    Quality,
    Rollback,
    Snapshot,
    Validation,
)


def section(source: Source) -> Iterator[Block]:
    yield Heading(1, "How training went")
    if start := source.about.start:
        yield Text(
            f"This run is longer than its own budget says. It began at step {start.step:,} of "
            f"the run `{plain(start.run)}`, with the state that it had before its learning rate "
            "fell."
        )
    yield from progress(source)
    yield from figures(source)
    if source.over_time:
        yield from quality(source.over_time)
    yield from mishaps(source)


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
        words += levels(source)
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
            f"the held-out loss by noise level, at some of the steps{quality}.",
            "Charts of the falling loss against the step, and of the held-out loss against the "
            "log-SNR.",
        )
    if "timeline.png" in source.pictures:
        yield Figure(
            "timeline",
            "Samples from the same noise at different steps of training, those of the untrained "
            f"network first.{minutes_of(source)}{given_means(source)}{guided(source)}",
            "Rows of images, from noise at the top to clear images at the bottom.",
            0.66,
        )


def quality(study: dict[str, Any]) -> Iterator[Block]:
    """The study `progress`: its figure, and when most of the gain was made."""
    rows = study["rows"]
    first, last = rows[0], rows[-1]
    guidance = f", guidance {study['guidance']:g}" if study["guidance"] != 1 else ""
    real = study["real_frechet"]
    as_real = f" As many real test images have {number(real)}." if real is not None else ""
    near = next(row for row in rows if row["frechet"] <= 1.5 * last["frechet"])
    gain = "It still fell much at the end, so more training would help."
    if near is not last:
        gain = (
            f"It was within 1.5 times of its last value at step {near['step']:,}, after "
            f"{near['minutes']:.1f} minutes."
        )
    gain += (
        " All rows start from the same noises, so neighbouring points compare better than their "
        "intervals suggest, which are for other noises."
    )
    yield Text(
        f"After training, {study['n']:,} images were sampled from the averaged weights of each of "
        f"{len(rows)} steps, all in the same way: {plain(sampler_name(study['sampler']))} in "
        f"{study['steps']} steps{guidance}. Their Fréchet distance to the training images fell "
        f"from {number(first['frechet'])} at step {first['step']:,} to {number(last['frechet'])} "
        f"({interval(last['frechet_low'], last['frechet_high'])}) at step {last['step']:,}."
        f"{as_real} {gain}"
    )
    yield Figure(
        "quality",
        "The Fréchet distance of samples as training went on, with 95% intervals. Where an "
        "interval reaches down to 0, the logarithmic axis cuts it off.",
        "A falling curve with error bars against the step, the epochs and the minutes.",
        0.75,
    )


def minutes_of(source: Source) -> str:
    """After how many minutes the rows of the timeline were sampled, in a sentence."""
    times = [f"{record.time / 60:.1f}" for record in source.of(Snapshot)]
    if len(times) < 2:
        return ""
    return f" The rows are of {', '.join(times[:-1])} and {times[-1]} minutes of training."


def given_means(source: Source) -> str:
    """A warning about early pictures of a network that sees mean images."""
    if getattr(source.network, "prototypes", None) is None or not source.about.conditioning.kind:
        return ""
    return (
        " The network was given the mean image of each "
        f"{source.condition}. So what the first rows after step 0 show was not yet learned."
    )


def levels(source: Source) -> str:
    """At which noise levels the held-out loss fell most and least, in a sentence."""
    found = [record for record in source.of(Validation) if record.step > 0 and record.levels]
    if len(found) < 2:
        return ""
    pairs = zip(sorted(found[0].levels), sorted(found[-1].levels), strict=True)
    changes = [(last / first, level) for (level, first), (_, last) in pairs if first > 0]
    if not changes:
        return ""
    (least_left, most), (most_left, least) = min(changes), max(changes)
    return (
        f" Since step {found[0].step:,} the loss fell most at a log SNR of {most:.1f}, to "
        f"{least_left:.0%} of what it was, and least at {least:.1f}, to {most_left:.0%}. Where "
        "there is much noise, little can be known of the image, so little can be learned."
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
