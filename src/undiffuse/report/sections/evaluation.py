"""How quality, likelihood and novelty are measured."""

from __future__ import annotations

from collections.abc import Iterator

from undiffuse.measuring import distances, novelty
from undiffuse.report.blocks import Block, Heading, Text
from undiffuse.report.sections._shared import code
from undiffuse.report.source import Source


def section(source: Source) -> Iterator[Block]:
    yield Heading(1, "How it is measured")
    yield Text(
        "_Quality._ Images are compared by the 64 features of a small classifier. The Fréchet "
        "distance compares the means and covariances of the features of sampled and of real "
        "images; the kernel distance compares all of their polynomial moments of third degree, by "
        "an estimate without bias, which may fall below 0. Precision is the share of samples that "
        "lie among real images (no farther from one than its k-th neighbour), recall the share of "
        "real images that lie among samples; density counts among how many, coverage is the share "
        "of real images that have a sample among their neighbours. Class balance is the largest "
        "difference in probability, over all sets of classes, between sampled and real images: "
        "their total variation. The classifier's confidence tells how many images look like "
        "nothing. The _classification accuracy score_ is the accuracy, on real images, of a second "
        "classifier, which was trained on samples only. None of these has a meaning by itself, so "
        "each result stands beside the same measure of real images that the model was not trained "
        "on, and beside its 95% interval.\n\n"
        "_Likelihood._ Bits per dimension are how many bits a perfect code made from the model "
        "needs for a value of a pixel; the variational bound is an upper limit of that.\n\n"
        "_Novelty._ A sample should be like the training images, and not be one of them. For "
        "each, its two nearest training images are found; a copy is near one and far from all "
        "others, so the ratio of the two distances tells it."
    )
    yield from code(distances.frechet, novelty.audit)
