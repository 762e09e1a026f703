"""Sampling new images: the handout's ways (7) and (8), DDIM, the ODE's solvers, and guidance."""

from __future__ import annotations

from collections.abc import Iterator

from undiffuse.diffusion import samplers, sampling, walk
from undiffuse.diffusion.guidance import classifier_free
from undiffuse.report.blocks import Block, Equation, Figure, Heading, Text, coded
from undiffuse.report.sections._shared import code
from undiffuse.report.source import Source
from undiffuse.report.words import number

ALWAYS_SHOWN = (
    samplers.posterior_mean,
    samplers.ddpm,
    samplers.ddpm_printed,
    samplers.ddim,
    samplers.euler,
    samplers.heun,
    samplers.dpmpp_2m,
    samplers.second_order,
)
"""Every report shows the code of these samplers. It also shows the run's own sampler."""


def section(source: Source) -> Iterator[Block]:
    yield Heading(1, "Sampling new images")
    yield from handout()
    yield from ddim()
    if "denoising.png" in source.pictures:
        yield Figure(
            "denoising",
            "Three images on their way, by (8) in 50 steps without guidance, from noise on the "
            "left. Upper rows: $x_t$. Lower rows: the denoised image $hat(x)_theta (x_t, t)$, at "
            "first blurred, as a mean of what it might become is, at last the image.",
            "Pairs of rows: noise that becomes a clear image, and below it a blurred denoised "
            "image that becomes the same image.",
        )
    yield from solvers(source.config.sampler)
    if source.about.conditioning.guidable:
        yield from guidance(source)


def handout() -> Iterator[Block]:
    yield Text(
        "One starts from pure noise, $x_T tilde.op cal(N)(0, bold(I))$, and goes back step by "
        "step. The handout has two ways:"
    )
    yield Equation("x_(t-1) = mu_theta (x_t, t)", "7")
    yield Equation(
        "x_(t-1) = mu_theta (x_t, t) + "
        "sqrt(frac((1 - alpha_t) (1 - macron(alpha)_(t-1)), 1 - macron(alpha)_t)) epsilon_t",
        "8",
    )


def ddim() -> Iterator[Block]:
    yield Text(
        "The handout prints (8) without the root: that adds the posterior's variance where its "
        'standard deviation belongs, and so too little noise. And it calls the two "DDIM and DDPM '
        'sampling". (8) is DDPM (Ho et al. 2020). (7) is _not_ DDIM (Song et al. 2021): the '
        "posterior's mean, repeated, shrinks the noise faster than the chain does, and the "
        "samples collapse onto few shapes. DDIM takes away exactly as much noise as there is less "
        "of at the next time, and keeps the direction of the rest:"
    )
    yield Equation(
        "x_(t-1) = sqrt(macron(alpha)_(t-1)) hat(x)_theta + "
        "sqrt(1 - macron(alpha)_(t-1)) hat(epsilon), quad hat(epsilon) = "
        "frac(x_t - sqrt(macron(alpha)_t) hat(x)_theta, sqrt(1 - macron(alpha)_t))",
        "",
        "DDIM",
    )


def solvers(name: str) -> Iterator[Block]:
    """Samplers as solvers of a differential equation. name: the run's own sampler, as a spec."""
    yield Text(
        "In the code a `Step` holds $x_t$, the two times, and the denoised image; a sampler is the "
        "line of mathematics that leads to the next $x_t$. In many small steps DDIM follows a "
        "differential equation, the probability-flow ODE:"
    )
    yield Equation("dif (x_t / alpha(t)) = hat(epsilon) dif (sigma(t) / alpha(t))", "", "ODE")
    yield Text(
        "of which a step of DDIM is Euler's. Heun's method and DPM-Solver++ 2M are of second "
        "order: they err less where steps are small enough. The stochastic DPM-Solver++ 2M is (8) "
        f"with a denoised image of second order. This run's own is {coded(name)}."
    )
    own = samplers.SAMPLERS.function(name.partition(":")[0])
    others = [] if own in ALWAYS_SHOWN else [own]
    yield from code(*ALWAYS_SHOWN, *others, walk.walk, sampling.trajectory)


def guidance(source: Source) -> Iterator[Block]:
    config = source.config
    scale = config.sampling(source.steps, source.about.conditioning).guidance
    what = source.condition
    yield Text(
        f"In training, {config.condition_dropout:.0%} of the images were without their {what}, so "
        "the network also learned the unconditional denoised image. _Guidance_ (Ho & Salimans "
        f"2022) goes from that one through the one conditioned on the {what}, by a factor: above 1 "
        "the images are clearer, and of less variety. "
        + (
            "This run's are sampled without."
            if scale == 1
            else f"This run's are sampled with {number(scale)}."
        )
    )
    yield from code(classifier_free)
