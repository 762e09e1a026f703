"""For instructors: what to look for in a report that is handed in, and how mistakes look."""

from __future__ import annotations

from collections.abc import Iterator

from undiffuse.report.blocks import Block, Figure, Heading, Table, Text
from undiffuse.report.source import Source

POINTS = (
    (
        "Explanations",
        "Each of (1) to (8) is said in words. The three misprints are found, or (1) to (8) are "
        "used in a corrected form. (7) is not called DDIM.",
    ),
    (
        "Code",
        "The code of each part is attached: data, noising, network, loss, training loop, both "
        "samplers. It computes what the equations say.",
    ),
    (
        "Hyperparameters",
        "Each value has a reason: a source, an experiment, or the honest sentence that it was not "
        "tuned. At least one other schedule was tried.",
    ),
    (
        "Evaluation",
        "Images at several steps of training, from the same noise. A loss on images that were not "
        "trained on. Images that failed are shown. The question about both ways of sampling is "
        "answered from the student's own images.",
    ),
)
"""The four points of the handout, and what a full answer has."""

MISTAKES = (
    (
        "(2) as printed: no root over $1 - alpha_t$",
        "The image fades to grey, with hardly any noise on the way. Only a last step with "
        "$alpha_T = 0$ makes noise. So the network sees no noisy images, and cannot start from "
        "noise.",
        "halfway, the noise in $x_t$ must have the variance $1 - macron(alpha)_t$",
    ),
    (
        "(8) as printed: no root",
        "Clean, thin, similar images. With finer steps they become those of (7).",
        "the standard deviation of the noise in a step must be a square root",
    ),
    (
        "(7) instead of DDIM",
        "Nearly the same image from every noise.",
        "show images from 20 noises side by side",
    ),
    (
        "A wrong time",
        "Images with speckle where the network is told too early a time, and smooth ones where it "
        "is told too late a time.",
        "the $t$ of the loop must be the $t$ of the network's input; off by one at $t = 1$",
    ),
    (
        "No clipping",
        "Pixels outside the range of images, which wrap around in 8-bit values. With few steps, "
        "images of too much contrast.",
        "the denoised image must stay in the range -1 to 1, or at least the last one",
    ),
    (
        "Data from 0 to 1 in place of -1 to 1",
        "Grey grounds, images of low contrast.",
        "the mean of the training data should be near the middle of its range",
    ),
    (
        "An average of the weights that is too slow",
        "Good loss, but the images look like those of a much earlier step.",
        "sample with the weights themselves and compare",
    ),
    (
        "Test images were trained on",
        "The held-out loss is as low as the loss of training for ever, and more training always "
        "helps.",
        "ask how the test images were kept apart, and for the gap between both losses",
    ),
)
"""Mistake, what one sees, and how to check; marked-up."""


def section(source: Source) -> Iterator[Block]:
    yield Heading(1, "For the instructor: grading")
    yield Text(
        "This part is not for students. It says what a full answer to each of the handout's four "
        "points has, and how common mistakes look."
    )
    yield Table(("point", "a full answer"), POINTS, "The four points of the handout.")
    yield Table(
        ("mistake", "what one sees", "how to check"), MISTAKES, "Common mistakes, and their looks."
    )
    if source.has_weights:
        yield Figure(
            "mistakes",
            "This run's model, sampled with 25 steps of (8) from the same noises: correctly, and "
            "with mistakes of the table.",
            "Rows of samples, a row for each mistake.",
        )
    if "data.png" in source.pictures:
        yield Figure(
            "noising-printed",
            "An image on its way to noise. Upper row: by (2). Lower row: by (2) as printed, which "
            "fades to grey. Where $alpha_T = 0$, the last step alone makes noise of any image.",
            "Two rows of images. The upper row becomes noise, and the lower row fades to grey.",
        )
