"""Images that start from images: what was inpainted, varied, walked or restored, and how well."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from undiffuse.diffusion import inverse
from undiffuse.report.blocks import Block, Equation, Figure, Heading, Table, Text, coded
from undiffuse.report.sections._shared import code, unfinished
from undiffuse.report.source import Source
from undiffuse.report.words import interval, number

Note = dict[str, Any]


def section(source: Source) -> Iterator[Block]:
    """Nothing, where the run folder has no such picture and no such study."""
    notes = {verb: source.edited(verb) for verb in CAPTIONS}
    study = source.restored
    if study is None and not any(notes.values()):
        return
    yield Heading(1, "Images that start from images")
    if study or notes["inpaint"] or notes["restore"]:
        yield from method()
    for verb, note in notes.items():
        if note is not None:
            yield Figure(verb, CAPTIONS[verb](note), ALT[verb])
    if study is not None:
        yield from restoration(study, source)


def method() -> Iterator[Block]:
    yield Text(
        "The same model completes and restores images. Where $y = A x_0 + $ noise is known of an "
        "image, the denoised image is moved towards it. By Bayes' rule and Tweedie's formula,"
    )
    yield Equation(
        "EE[x_0 | x_t, y] = hat(x)_theta + V A^top (sigma_y^2 bold(I) + A V A^top)^(-1) "
        "(y - A hat(x)_theta), quad "
        "V = frac(1 - macron(alpha)_t, sqrt(macron(alpha)_t)) "
        "frac(partial hat(x)_theta, partial x_t)"
    )
    yield Text(
        "if $x_0$ is normal given $x_t$ (Rozet et al. 2024). Any sampler of this report then uses "
        "this mean in place of $hat(x)_theta$. The matrix is never formed: conjugate gradients "
        "need products with it only, and the network's gradient gives these."
    )
    yield from code(inverse.fitted)


def inpainted(note: Note) -> str:
    return (
        "Completed images. First row: an image, and the part of it that is kept. Below: samples "
        f"by the method {coded(note['method'])} in {note['steps']} steps."
    )


def varied(note: Note) -> str:
    return (
        "Variations. First row: an image. Below: the image with noise up to time "
        f"{note['strength']:g}, denoised in {note['steps']} steps."
    )


def walked(note: Note) -> str:
    return (
        f"A walk from {coded(note['from'])} to {coded(note['to'])} through the noises, each of "
        f"which leads to its image by {coded(note['sampler'])} in {note['steps']} steps."
    )


def restored(note: Note) -> str:
    return (
        "Restored images. The first row ends with what is measured of an image: "
        f"{coded(note['operator'])}, noise {note['noise']:g} of the distance from black to white. "
        f"Below: samples by the method {coded(note['method'])} in {note['steps']} steps."
    )


CAPTIONS = {
    "inpaint": inpainted,
    "edit": varied,
    "interpolate": walked,
    "restore": restored,
}
"""verb -> the caption of its picture, from the picture's note."""

ALT = {
    "inpaint": "An image, the kept part of it, and rows of completed images.",
    "edit": "An image, and rows of images that resemble it.",
    "interpolate": "Rows of images that change from one into another.",
    "restore": "A degraded image, and rows of restored images.",
}


def restoration(study: dict[str, Any], source: Source) -> Iterator[Block]:
    rows = study["rows"]
    yield from unfinished(study, "restoration", "The study of restoration", "measured", source)
    yield Text(
        f"{study['n']:,} images that the run was not trained on were measured, and each was "
        f"restored {study['draws']} times by each method, in {study['steps']} steps. The "
        "pseudo-inverse knows no images: it is the control."
    )
    judged = all("agreement" in row for row in rows)
    agreement = ("class kept",) if judged else ()
    real = study["real_agreement"]
    control = (
        f" The classifier gives {real:.1%} of the images themselves their class." if real else ""
    )
    yield Table(
        ("measured", "noise", "method", "PSNR, dB", "95% interval", "of the mean", *agreement,
         "spread", "s an image"),
        [
            (
                coded(row["operator"]),
                f"{row['noise']:g}",
                coded(row["method"]),
                f"{row['psnr']:.1f}",
                interval(row["psnr_low"], row["psnr_high"]),
                f"{row['psnr_mean']:.1f}",
                *((f"{row['agreement']:.1%}",) if judged else ()),
                f"{row['spread']:.1f}",
                number(row["seconds_per_image"]),
            )
            for row in rows
        ],
        "Restoration. PSNR: $10 log_10$ of 1 over the mean squared error, where white less black "
        "is 1; of one answer, and of the mean of an image's answers. The mean is nearer to the "
        "truth and blurred. Spread: the standard deviation between the answers to one measurement, "
        "in 8-bit values: what the measurement leaves open." + control,
        tuple(range(3, 8 + judged)),
    )  # fmt: skip
    first = next((row for row in rows if row["method"] == "mmps"), None)
    if first is not None:
        yield Figure(
            f"study-{first['picture'].removesuffix('.png')}",
            f"Some of these images, measured by {coded(first['operator'])}. In each row: the "
            "image, what was measured, and the answers.",
            "Rows of an image, its measured part, and four completions.",
        )
