"""What a diffusion model is: generative models, and the latent variables of this one."""

from __future__ import annotations

from collections.abc import Iterator

from undiffuse.report.blocks import Block, Figure, Heading, Text
from undiffuse.report.sections._shared import with_examples
from undiffuse.report.source import Source


def section(source: Source) -> Iterator[Block]:
    yield Heading(1, "What a diffusion model is")
    yield Heading(2, "Generative models and latent variables")
    yield Text(
        "A data set is a handful of samples from a distribution $q(x)$ that nobody knows: all "
        "images that could have been in it. A _generative model_ learns a distribution "
        "$p_theta (x)$ close to it, and gives new samples, which could have come from the data set "
        "and are not in it. What makes this hard is that the images fill next to nothing of the "
        "space of all pixels: almost every point of it is noise."
    )
    yield Text(
        "Many models explain what is seen by _latent variables_ that are not: as the people in "
        "Plato's cave see shadows, and have to think of what throws them, a model has to think of "
        "causes that make an image likely. In a diffusion model the latents of an image $x_0$ are "
        "its own noisy versions $x_1, ..., x_T$, of the same size as the image. The way to them is "
        "fixed: $x_t$ is $x_0$ with a known amount of noise. The model learns only the way back."
    )
    yield from with_examples(
        source,
        Figure(
            "chain",
            "The chain of latents. To the right, the fixed rule $q$ adds noise. To the left, the "
            "network removes it, step by step.",
            "An image on the left, noisier and noisier copies to the right, with arrows q to the "
            "right and p to the left.",
        ),
    )
    yield Text(
        "The longer derivation of what follows is in Luo (2022). The numbers (1) to (8) are those "
        "of the course handout, three of whose equations are misprinted; this is pointed out where "
        "it matters."
    )
