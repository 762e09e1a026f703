"""The content of metrics.json: quality, likelihood and novelty."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from undiffuse.measuring.quality import METRICS, metric_of
from undiffuse.report.blocks import Block, Figure, Heading, Table, Text, coded, plain
from undiffuse.report.source import Source
from undiffuse.report.words import accented, interval, number


def section(source: Source) -> Iterator[Block]:
    found = source.evaluation
    if found is None:
        return
    yield Heading(1, "Results")
    step = found["of"]["step"]
    if step != source.steps:
        yield Text(f"All of this is of the weights after step {step:,}.")
    yield from quality(found, source)
    for name, why in found["missing"].items():
        words = metric_of(name).caption if name in METRICS else name.replace("_", " ")
        yield Text(f"Not given: {plain(accented(words))}, as {plain(why)}.")
    yield from likelihood(found, source)
    if found.get("novelty"):
        yield from novelty(found["novelty"], source)


def quality(found: dict[str, Any], source: Source) -> Iterator[Block]:
    """The table of image quality, and the images that fail."""
    measured = {metric_of(name).heading: found[name] for name in METRICS if name in found}
    if not measured:
        return
    sampling = found["sampling"]
    yield Heading(2, "Quality")
    yield Text(
        f"{sampling['n']:,} images were sampled for the evaluation. The last column has the same "
        "measures of as many real images."
    )
    yield Table(
        ("measure", "value", "95% interval", f"real ({plain(found['reference']['control'])})"),
        [
            (
                plain(accented(heading)),
                number(figure["value"]),
                interval(figure["low"], figure["high"]),
                number(figure.get("floor", figure.get("control"))),
            )
            for heading, figure in measured.items()
        ],
        f"Of {sampling['n']:,} images sampled by {coded(sampling['sampler'])} in "
        f"{sampling['steps']} steps, {sampling['network_calls']} network calls each.",
        (1, 2, 3),
    )
    if "unsure.png" in source.pictures:
        yield Figure(
            "unsure",
            "The failures: of all samples, those that the classifier is least sure of.",
            "A grid of the worst samples, many of them malformed.",
            0.7,
        )


def likelihood(found: dict[str, Any], source: Source) -> Iterator[Block]:
    bits = found.get("bits_per_dim")
    if not bits:
        return
    gap, control = bits["gap"], plain(found["reference"]["control"])
    assumed = plain(bits["assumes"]).replace(plain("x_0_hat"), "$hat(x)_0$")
    none_shown = "no overfitting that these images could show."
    overfitting = "the overfitting." if gap["low"] > 0 else none_shown
    yield Heading(2, "Likelihood")
    yield Text(
        f"The bound of the chain of {bits['chain']:,} steps is {bits['test']:.3f} bits per "
        f"dimension on the {control} ({bits['low']:.3f} to {bits['high']:.3f}), and "
        f"{bits['training']['value']:.3f} on training images. The gap is {gap['value']:+.3f} "
        f"({gap['low']:+.3f} to {gap['high']:+.3f}): {overfitting} The bound holds for "
        f"{assumed}.{ode_sentence(bits)}"
    )
    if "bits.png" in source.pictures:
        yield Figure(
            "bits",
            "Where on the noise axis the bits of the diffusion are spent; the "
            f"{bits['reconstruction']['value']:.3f} of the last step, to 8-bit values, are not in "
            "it.",
            "A chart of bits per dimension against the log-SNR.",
            0.7,
        )


def ode_sentence(bits: dict[str, Any]) -> str:
    """A sentence about the likelihood by the ODE, if it was computed."""
    if "ode" not in bits:
        return ""
    ode = bits["ode"]
    return (
        f" The probability-flow ODE, which is another model of the data, has {ode['test']:.3f} "
        f"({ode['low']:.3f} to {ode['high']:.3f}) on {ode['n']:,} of the images."
    )


def novelty(audit: dict[str, Any], source: Source) -> Iterator[Block]:
    yield Heading(2, "Novelty")
    verdict = (
        "The audit found copies of training images among the samples."
        if audit["alarm"]
        else "The audit found no copies of training images among the samples."
    )
    yield Text(
        f"{verdict} Of {audit['n']:,} images {audit['share']:.2%} have a ratio of distances below "
        f"{audit['threshold']:.3f}, where {audit['expected']:.2%} of real ones have (p = "
        f"{audit['p_value']:.2g}; with these many images the audit sees copies from a share of "
        f"{audit['detectable']:.2%} on)."
    )
    if "novelty.png" in source.pictures:
        yield Figure(
            "novelty",
            "The likeliest copies: each sample with its nearest training image to its right.",
            "Pairs of similar images side by side.",
            0.8,
        )
