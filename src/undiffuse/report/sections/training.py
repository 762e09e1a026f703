"""How training went: the losses, what went wrong, and the code of one step."""

from __future__ import annotations

from collections.abc import Iterator

from undiffuse.report.blocks import Block, Figure, Heading, Missing, Text, plain
from undiffuse.report.sections._shared import code
from undiffuse.report.source import Source
from undiffuse.report.words import number
from undiffuse.training.averages import ema_decay
from undiffuse.training.step import descend, problem_of


def section(source: Source) -> Iterator[Block]:
    yield Heading(1, "Training")
    yield from progress(source)
    yield from figures(source)
    yield from mishaps(source)
    yield Text(
        "A step of training draws a batch with its noise and times, goes down the gradient of (6), "
        "and takes the new weights into their average, which is what draws. All of its randomness "
        "is a function of the seed and the step, so that a stopped run goes on to the same end. "
        "(The loop around it, `fit` in the same file, decides when to look at samples, when to "
        "save and when to stop.)"
    )
    yield from code(problem_of, descend, ema_decay)


def progress(source: Source) -> Iterator[Block]:
    """The losses of held-out images, and the quality of quick samples: the first and the last."""
    validations, scores = source.of("validation"), source.of("score")
    if not validations:
        return
    first, last = validations[0], validations[-1]
    untrained = number(first["loss"])
    words = f"On images that were held out, the untrained network's loss was {untrained}"
    if last is first:
        words += "."
    else:
        words += (
            f"; at step {last['step']:,} it was {number(last['loss'])}. It is that of the averaged "
            "weights, and so may lie below the loss of the steps."
        )
    if scores:
        words += (
            f" Quick samples came from a Fréchet distance of {number(scores[0]['frechet'])} at "
            f"step {scores[0]['step']:,} to {number(scores[-1]['frechet'])} at step "
            f"{scores[-1]['step']:,}; as many real images have {number(scores[-1]['floor'])}."
        )
    yield Text(words)


def figures(source: Source) -> Iterator[Block]:
    if "loss.png" in source.pictures:
        quality = "; the quality of quick samples" if source.of("score") else ""
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
            "The same noise, drawn at different steps of training, the untrained network first.",
            "Rows of images, from noise at the top to clear images at the bottom.",
            0.66,
        )


def mishaps(source: Source) -> Iterator[Block]:
    """What went wrong: no compilation, a step back to earlier weights, an unfinished run."""
    uncompiled = [(event["step"], event["reason"]) for event in source.of("uncompiled")]
    for step, reason in dict.fromkeys(uncompiled):
        yield Text(
            f"From step {step:,} the network was trained without being compiled: {plain(reason)}."
        )
    for event in source.of("clock"):
        if event.get("cut"):
            yield Text(
                f"At step {event['of']:,} training went wrong, as {plain(event['reason'])}; it was "
                f"set back to step {event['step']:,}, and went on with half of the learning rate."
            )
    if not source.finished:
        yield Missing(
            "This run is unfinished; figures of the whole of it are drawn at its end.",
            source.run.command(),
        )
