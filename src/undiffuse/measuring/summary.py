"""What an evaluation found, in a few sentences that people read first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def sentences(found: dict[str, Any]) -> Iterator[str]:
    """The findings about quality, recognisable images and copies. Each has its control.

    found: the content of metrics.json."""
    real = found["reference"]["control"]
    if (frechet := found.get("frechet")) and frechet["ratio"] is not None:
        count = frechet.get("floor_n", frechet["n"])  # the ratio is of equally many images
        yield (
            f"The Frechet distance of {count:,} samples to the training images is "
            f"{frechet['ratio']:.1f} times (95% interval {frechet['ratio_low']:.1f} to "
            f"{frechet['ratio_high']:.1f}) that of as many real images ({real})."
        )
    if unsure := found.get("unsure"):
        sure, of_real = 1 - unsure["value"], unsure["control"]
        beside = "" if of_real is None else f", and of {1 - of_real:.1%} of the real images"
        yield f"A classifier is at least 90% sure of {sure:.1%} of the samples{beside}."
    if audit := found.get("novelty"):
        yield (
            f"Among {audit['n']:,} samples the audit found copies of training images."
            if audit["alarm"]
            else f"Among {audit['n']:,} samples the audit found no copies of training images. It "
            f"would find them from a share of {audit['detectable']:.1%} on."
        )
