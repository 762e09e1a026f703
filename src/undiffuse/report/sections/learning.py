"""How the network is trained: the data, a batch, a step, the optimiser and the average."""

from __future__ import annotations

from collections.abc import Iterator

from undiffuse.base.pixels import to_float, to_uint8
from undiffuse.data.batches import batch_indices
from undiffuse.data.splits import split_dataset
from undiffuse.report.blocks import Block, Figure, Heading, Text, plain
from undiffuse.report.listing import explained
from undiffuse.report.sections._shared import code
from undiffuse.report.source import Source
from undiffuse.report.words import data_name
from undiffuse.training import muon
from undiffuse.training.averages import ema_decay
from undiffuse.training.clock import cooldown_factor, lr_factor
from undiffuse.training.experiment import Experiment, hide
from undiffuse.training.optimizers import OPTIMIZERS
from undiffuse.training.records import StepTaken
from undiffuse.training.step import Gradient, train_step


def section(source: Source) -> Iterator[Block]:
    yield Heading(1, "How the network is trained")
    yield from data(source)
    yield from step(source)
    yield from optimizer(source)
    yield from learning_rate(source)
    yield from average(source)


def data(source: Source) -> Iterator[Block]:
    facts, config = source.about.facts, source.config
    yield Heading(2, "The data")
    held_out = (
        f" {facts.validation:,} others, chosen at random from the same set, are held out. Their "
        "loss shows whether the network has only learned its training images by heart."
        if facts.validation
        else ""
    )
    cited = " (LeCun et al. 1998)" if facts.name == "mnist" else ""
    name = plain(data_name(facts.name))
    yield Text(
        f"The network is trained on {facts.training:,} images of {name}{cited}.{held_out} "
        "Test images are used in the evaluation only. A pixel is a whole number $u$ from 0 to "
        "255. The network sees $x = u slash 127.5 - 1$, a number from -1 to 1, since the noise "
        "that is added has mean 0 and standard deviation 1. Images are not changed in any other "
        "way."
    )
    yield from code(to_float, to_uint8, split_dataset)
    yield Text(
        f"A batch has {config.batch_size} images. An epoch is a random order of all training "
        "images, and batches are cut from one epoch after another. So every image is seen once in "
        "an epoch."
    )
    yield from code(batch_indices)


def step(source: Source) -> Iterator[Block]:
    conditioned = source.about.conditioning.kind is not None
    yield Heading(2, "A batch and a step")
    hidden = (
        f" In {source.config.condition_dropout:.0%} of the images the {source.condition} is "
        "hidden. So the network also learns to do without, which guidance needs."
        if conditioned
        else ""
    )
    yield Text(
        "Each image of a batch gets noise and a time of its own. Both are functions of the seed "
        f"and of the step, so a run can be stopped, resumed and repeated exactly.{hidden}"
    )
    yield from code(Experiment.batch, *([hide] if conditioned else []))
    yield Text(
        "The gradient of the loss (6) is the sum over two halves of the batch, which two threads "
        "compute side by side. Then the gradient is scaled down if it is longer than "
        f"{source.config.grad_clip:g}, the optimiser changes the weights, and the new weights "
        "enter their average. If a number is not finite, an earlier state is restored."
    )
    yield from code(Gradient.__call__, train_step)


def optimizer(source: Source) -> Iterator[Block]:
    config = source.config
    name = config.optimizer.partition(":")[0]
    yield Heading(2, "The optimiser")
    yield Text(
        "AdamW (Loshchilov & Hutter 2019) divides the average gradient of each weight by the root "
        "of the average of its square. So every weight moves by about the learning rate in a step, "
        "however large its gradient is. Besides, it shrinks each weight a little (weight decay)."
    )
    if name == "adamw":
        yield from code(OPTIMIZERS.function(name))
        return
    yield Text(explained(OPTIMIZERS, config.optimizer))
    if name == "muon":
        a, b, c = muon.NEWTON_SCHULZ
        yield Text(
            "Why this helps: the gradient of a weight matrix has a few large directions and many "
            "small ones. AdamW follows the large ones. An orthogonal matrix stretches no direction "
            "more than another, so the rare directions are learned too. It is approached by "
            f"{muon.ITERATIONS} steps of the Newton-Schulz iteration $X arrow.r a X + b (X X^top) "
            f"X + c (X X^top)^2 X$ with $a = {a}$, $b = {b}$, $c = {c}$, which needs only products "
            f"of matrices. They bring a singular value of 0.05 to {enlarged(0.05):.2f}, and one of "
            f"0.001 to {enlarged(0.001):.2f}: the smallest directions stay small."
        )
        yield from code(muon.Muon.update, muon.orthogonal)
    else:
        yield from code(OPTIMIZERS.function(name))


def enlarged(value: float) -> float:
    """What Muon's iteration makes of a singular value."""
    a, b, c = muon.NEWTON_SCHULZ
    for _ in range(muon.ITERATIONS):
        value = a * value + b * value**3 + c * value**5
    return value


def learning_rate(source: Source) -> Iterator[Block]:
    config = source.config
    yield Heading(2, "The learning rate")
    yield Text(
        f"The learning rate rises to {config.lr:g} in the first {config.warmup} steps, because the "
        "optimiser's averages mean little at the beginning. Then it is constant. In the last "
        f"{config.decay:.0%} of the run it falls to 0 along a straight line. Large steps explore; "
        "small steps at the end remove the noise that large steps leave in the weights. When a run "
        "has a budget of minutes, its number of steps is projected from the speed so far."
    )
    yield from code(lr_factor, cooldown_factor)
    if source.of(StepTaken):
        yield Figure(
            "learning-rate",
            "The learning rate of each step of this run. Where its slope changes, the number of "
            "steps that fit into the budget was projected anew.",
            "A curve that rises quickly, stays constant, and falls to 0 at the end.",
            0.6,
        )


def average(source: Source) -> Iterator[Block]:
    width = source.config.ema
    yield Heading(2, "The average of the weights")
    yield Text(
        "The weights jitter from step to step. Their average over the recent steps jitters less "
        "and makes better images, so all images of this report are sampled with averaged weights. "
        "A usual moving average has a fixed length. That is too long at the beginning of a run or "
        "too short at its end. Here the length grows with the run: its width is always "
        f"{width:.0%} of the steps so far (Karras et al. 2024). After step $i$ the average keeps "
        "the share $(1 - 1 slash i)^(gamma + 1)$ of itself, where $gamma$ follows from the width:"
    )
    yield from code(ema_decay)
