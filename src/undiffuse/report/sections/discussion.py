"""What the findings mean: what fails, what surprises, and what one would do next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from undiffuse.report.blocks import Block, Heading, Text, plain
from undiffuse.report.source import Source
from undiffuse.report.words import number, sampler_name
from undiffuse.training.records import Validation

SMALL = 0.01
"""A difference of precision or recall that is not worth a sentence."""


def section(source: Source) -> Iterator[Block]:
    found = [
        *failures(source.evaluation or {}),
        *overfitting(source),
        *surprises(source.comparison or {}),
    ]
    ideas = list(next_steps(source))
    if not found:
        return
    yield Heading(1, "Discussion")
    yield Text("\n\n".join(found))
    if ideas:
        yield Text("What we would try next:\n\n" + "\n".join(f"+ {idea}" for idea in ideas))


def failures(metrics: dict[str, Any]) -> Iterator[str]:
    """Whether images are malformed or variety is missing, and what a classifier learns of them."""
    precision, recall = metrics.get("precision"), metrics.get("recall")
    if precision and recall and None not in (precision.get("control"), recall.get("control")):
        malformed = precision["control"] - precision["value"]
        missing = recall["control"] - recall["value"]
        figures = (
            f"(precision {number(precision['value'])}, real images {number(precision['control'])}; "
            f"recall {number(recall['value'])}, real images {number(recall['control'])})"
        )
        if max(malformed, missing) < SMALL:
            yield f"Neither shape nor variety falls short of real images by over 0.01 {figures}."
        elif missing > malformed:
            yield (
                f"What falls short most is variety {figures}. The model leaves out some kinds of "
                "images that the data have. Guidance, few steps and short training can all be "
                "causes; which it is here was not tested."
            )
        else:
            yield (
                f"What falls short most is shape {figures}. Some images are malformed: strokes end "
                "too soon, or parts of two images are joined. The network did not learn how far "
                "parts of an image must agree. More training usually helps."
            )
    score = metrics.get("classification_accuracy_score")
    if score and None not in (score["value"], score.get("control")):
        yield (
            f"A classifier that sees only samples is right on {score['value']:.1%} of real images; "
            f"one that sees as many real images, on {score['control']:.1%}. The difference is what "
            "the samples lack for this purpose."
        )


def overfitting(source: Source) -> Iterator[str]:
    """Whether the held-out loss rose again."""
    losses = [record.loss for record in source.of(Validation)]
    if len(losses) < 3:
        return
    best = min(losses)
    if losses[-1] > 1.02 * best:
        yield (
            f"The held-out loss rose again, from {number(best)} to {number(losses[-1])}. So the "
            "network began to learn its training images by heart. A shorter run, or dropout, would "
            "be better."
        )
    else:
        yield (
            "The held-out loss did not rise again, so there is no sign that the network began to "
            "learn its training images by heart."
        )


def surprises(study: dict[str, Any]) -> Iterator[str]:
    """Where the samplers did not do what a first guess would say."""
    rows = [row for row in study.get("rows", ()) if row["guidance"] == 1 and "confidence" in row]
    mean = [row for row in rows if row["sampler"] == "posterior-mean"]
    others = [row for row in rows if row["sampler"] in ("ddpm", "ddim")]
    if mean and others:
        clean, usual = mean[-1], max(others, key=lambda row: float(row["confidence"]))
        if clean["confidence"] > usual["confidence"]:
            yield (
                f"The way with the worst distance, (7), has the images of which the classifier is "
                f"most certain ({clean['confidence']:.1%} on average; "
                f"{plain(sampler_name(usual['sampler']))} {usual['confidence']:.1%}). So clean "
                "images are no sign of a good model. A typical image is easy to recognise, and a "
                "thousand copies of it are a bad sample of the data."
            )


def next_steps(source: Source) -> Iterator[str]:
    """Trials that the findings suggest, a sentence each."""
    over_time = source.over_time
    if over_time:
        *before, last = over_time["rows"]
        if before and last["frechet_high"] < before[-1]["frechet_low"]:
            yield "Train longer: the distance was still falling at the end."
        else:
            yield (
                "Measure with more samples and with other seeds of training: at the end, "
                "differences are smaller than what so few samples of one training can show."
            )
    if not source.trainings:
        yield "Train with another noise schedule for the same minutes, and compare."
    if source.about.conditioning.clusters:
        yield ("Train without clusters for the same minutes, to see on these data what they bring.")
    recall = (source.evaluation or {}).get("recall")
    if recall and (recall.get("control") or 0) - recall["value"] > SMALL:
        yield "Sample with less guidance, and see whether variety returns without malformed images."
