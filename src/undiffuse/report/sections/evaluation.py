"""How quality, likelihood and novelty are measured: the measures that this run has."""

from __future__ import annotations

from collections.abc import Iterator

from undiffuse.report.blocks import Block, Heading, Text
from undiffuse.report.source import Source

MEASURES = {
    "frechet": "The *Fréchet distance* compares the means and the covariances of the features of "
    "two sets of images (Heusel et al. 2017). It is 0 for equal ones. It grows where there are few "
    "images, so distances of different numbers of images cannot be compared.",
    "kid": "The *kernel distance* compares the moments of the features up to the third degree "
    "(Bińkowski et al. 2018). Its estimate has no bias, so it may fall below 0.",
    "precision": "*Precision* is the share of samples that are near a real image: no farther from "
    "it than its third nearest real image. *Recall* is the share of real images that are near a "
    "sample in the same sense (Kynkäänniemi et al. 2019). Low precision means malformed images, "
    "low recall means missing variety.",
    "density": "*Density* counts in how many neighbourhoods of real images a sample lies. "
    "*Coverage* is the share of real images with a sample in their neighbourhood (Naeem et al. "
    "2020). Both are made to bear outliers better than precision and recall.",
    "class_balance": "*Class balance* is half of the sum of the differences between the class "
    "frequencies of the samples and those of the data: their total variation.",
    "confidence": "The classifier's *confidence* in an image is the probability of its most "
    "probable class. It is low for images that look like nothing.",
    "classification_accuracy_score": "The *classification accuracy score* is the accuracy, on "
    "real images, of a classifier that was trained on samples only (Ravuri & Vinyals 2019). It "
    "falls where samples are wrong, and where kinds of images are missing.",
}
"""What each measure is, by the metric's name."""


def section(source: Source) -> Iterator[Block]:
    found = source.evaluation
    if found is None:
        return
    yield Heading(1, "How it is measured")
    measures = [words for name, words in MEASURES.items() if name in found]
    if measures:
        yield Heading(2, "Quality")
        features = "the 64 features of a small classifier"
        yield Text(
            f"Images are compared by {features}, which is trained to tell the classes apart. A "
            "difference of features is closer to what people see than a difference of pixels."
        )
        yield Text("\n".join(f"- {words}" for words in measures))
        yield Text(
            "None of these numbers has a meaning by itself. Beside each stands the same measure of "
            "real images that the model was not trained on, and a 95% interval. The interval is "
            "for other samples of the same model."
        )
    if found.get("bits_per_dim"):
        yield Heading(2, "Likelihood")
        yield Text(
            "A model that gives an image the probability $p$ can be made into a code that needs "
            "$-log_2 p$ bits for it. *Bits per dimension* are these bits, divided by the number of "
            "values of an image, as an average over images. A diffusion model does not give $p$ "
            "itself, but a lower limit of it, the variational bound. So the bits are an upper "
            "limit. The bound is a sum over the steps of the chain: of each step, how far the "
            "model's step back is from the posterior (4)."
        )
    if found.get("novelty"):
        yield Heading(2, "Novelty")
        yield Text(
            "A sample should be like the training images, and not be one of them. For each sample "
            "its two nearest training images are found. A copy is near one image and far from all "
            "others. So the ratio of the two distances is small for a copy (Meehan et al. 2020 "
            "compare distances in a similar way). The audit compares how often the ratio is small "
            "with how often it is small for real images."
        )
