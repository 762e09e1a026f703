"""Sampling new images: the handout's ways (7) and (8), DDIM, the ODE's solvers, and guidance."""

from __future__ import annotations

from collections.abc import Iterator

from undiffuse.diffusion import samplers, sampling
from undiffuse.diffusion.denoiser import Denoiser
from undiffuse.diffusion.guidance import classifier_free, in_interval
from undiffuse.diffusion.step import SAMPLERS
from undiffuse.report.blocks import Block, Equation, Figure, Heading, Text, coded
from undiffuse.report.listing import explained
from undiffuse.report.sections._shared import code
from undiffuse.report.source import Source
from undiffuse.report.words import number

SHOWN = (
    samplers.posterior_mean,
    samplers.ddpm,
    samplers.ddpm_printed,
    samplers.ddim,
    samplers.heun,
    samplers.dpmpp_2m,
)
"""The samplers whose code every report shows. It also shows the run's own sampler."""


def section(source: Source) -> Iterator[Block]:
    yield Heading(1, "Sampling new images")
    yield from handout()
    yield from ddim()
    if "denoising.png" in source.pictures:
        yield Figure(
            "denoising",
            "Three images on their way, by (8) in 50 steps without guidance, from noise on the "
            "left. Upper rows: $x_t$. Lower rows: the denoised image $hat(x)_theta (x_t, t)$. It "
            "is blurred at first, because it is a mean of what the image may become.",
            "Pairs of rows: noise that becomes a clear image, and below it a blurred denoised "
            "image that becomes the same image.",
        )
    yield from solvers(source)
    if source.about.conditioning.guidable:
        yield from guidance(source)


def handout() -> Iterator[Block]:
    yield Text(
        "One starts from pure noise, $x_T tilde.op cal(N)(0, bold(I))$, and goes back step by "
        "step. The handout has two ways. One takes the mean of (5):"
    )
    yield Equation("x_(t-1) = mu_theta (x_t, t)", "7")
    yield from code(samplers.posterior_mean)
    yield Text("The other adds noise to it:")
    yield Equation(
        "x_(t-1) = mu_theta (x_t, t) + "
        "sqrt(frac((1 - alpha_t) (1 - macron(alpha)_(t-1)), 1 - macron(alpha)_t)) epsilon_t",
        "8",
    )
    yield from code(samplers.ddpm)
    yield Text(
        "Here a `step` holds $x_t$, the two times, the noise levels at both, and the denoised "
        "image (`step.x_0`), for which it calls the network. The handout prints (8) without the "
        "root. That adds the posterior's variance where its standard deviation belongs, and so too "
        "little noise:"
    )
    yield from code(samplers.ddpm_printed)


def ddim() -> Iterator[Block]:
    yield Text(
        'The handout calls the two ways "DDIM and DDPM sampling". (8) is DDPM (Ho et al. 2020). '
        "(7) is _not_ DDIM (Song et al. 2021). Write $x_t = sqrt(macron(alpha)_t) hat(x)_theta + "
        "sqrt(1 - macron(alpha)_t) hat(epsilon)$. Then (7) leaves $sqrt(alpha_t) (1 - "
        "macron(alpha)_(t-1)) slash sqrt(1 - macron(alpha)_t)$ times $hat(epsilon)$, and $x_(t-1)$ "
        "must have $sqrt(1 - macron(alpha)_(t-1))$ times it. The ratio of the two is the root of "
        "$alpha_t (1 - macron(alpha)_(t-1)) slash (1 - macron(alpha)_t)$. It is below 1, because "
        "the denominator is larger by $1 - alpha_t$. These ratios multiply from step to step: the "
        "noise vanishes too soon, and the samples collapse onto few shapes. DDIM keeps the noise "
        "that is in $x_t$, and scales it to the amount that $x_(t-1)$ must have:"
    )
    yield Equation(
        "x_(t-1) = sqrt(macron(alpha)_(t-1)) hat(x)_theta + "
        "sqrt(1 - macron(alpha)_(t-1)) hat(epsilon), quad hat(epsilon) = "
        "frac(x_t - sqrt(macron(alpha)_t) hat(x)_theta, sqrt(1 - macron(alpha)_t))",
        "",
        "DDIM",
    )
    yield from code(samplers.ddim)
    yield Text(
        "The option `eta` puts a part of that noise anew: with 0 it is DDIM, and with 1 it is (8)."
    )


def solvers(source: Source) -> Iterator[Block]:
    """Samplers as solvers of a differential equation, and the run's own sampler."""
    yield Text(
        "In many small steps DDIM follows a differential equation, the probability-flow ODE (Song "
        "et al. 2020):"
    )
    yield Equation("dif (x_t / alpha(t)) = hat(epsilon) dif (sigma(t) / alpha(t))", "", "ODE")
    yield Text(
        "Where a schedule ends in pure noise, $alpha(1) = 0$ and both quotients are infinite. With "
        "$y = x_t slash (alpha + sigma)$ and $tau = sigma slash (alpha + sigma)$ the same equation "
        "is $dif y = (hat(epsilon) - hat(x)_theta) dif tau$, which is finite everywhere. The code "
        "uses this form. A step of DDIM is Euler's method for both. Heun's method (Karras et al. "
        "2022) and DPM-Solver++ 2M (Lu et al. 2022) are of second order: with half of the step "
        "size their error is a quarter, where steps are small enough. Heun's method takes Euler's "
        "step, looks at the direction at its end, and then goes along the mean of both directions:"
    )
    yield from code(samplers.euler, samplers.heun)
    yield Text(
        "DPM-Solver++ 2M calls the network only once a step. It puts a straight line through the "
        "denoised images of this step and of the step before, as a function of the log SNR, and "
        "takes its value at the middle of the step:"
    )
    yield from code(samplers.second_order, samplers.dpmpp_2m)
    name = source.config.sampler
    own = SAMPLERS.function(name.partition(":")[0])
    usual = source.config.sampling(source.steps, source.about.conditioning)
    steps = steps_of(source, usual)
    begin = f"The images on the first page were sampled with $T = {steps}$ steps of"
    if own in SHOWN:
        yield Text(f"{begin} {coded(name)}.")
    else:
        yield Text(f"{begin} another way. {explained(SAMPLERS, name)}")
        yield from code(own)


def steps_of(source: Source, usual: sampling.Sampling) -> int:
    """The number of steps of the run's usual sampling."""
    config, about = source.config, source.about
    denoiser = Denoiser(
        source.network, config.schedule, config.predict, about.facts.shape, about.conditioning
    )
    return sampling.steps_within(usual.calls, denoiser, usual)


def guidance(source: Source) -> Iterator[Block]:
    config = source.config
    scale = config.sampling(source.steps, source.about.conditioning).guidance
    what = source.condition
    yield Text(
        f"In training, {config.condition_dropout:.0%} of the images were without their {what}, so "
        "the network also learned the unconditional denoised image. _Guidance_ (Ho & Salimans "
        f"2022) goes from that one through the one conditioned on the {what}, by a factor: above 1 "
        "the images are clearer, and of less variety. With the factor $g$ it is "
        "$hat(x) = hat(x)_u + g (hat(x)_c - hat(x)_u)$. "
        + (
            "This run's are sampled without."
            if scale == 1
            else f"This run's are sampled with {number(scale)}."
        )
    )
    low, high = config.guidance_interval
    if scale != 1 and (low, high) != sampling.EVERYWHERE:
        yield Text(
            f"Guidance is used at log SNRs from {low:g} to {high:g} only (Kynkäänniemi et al. "
            "2024). With more noise it takes variety away, with less it changes little. A step "
            "without guidance takes one network call in place of two."
        )
    yield from code(classifier_free, in_interval)
    yield Text(
        "The denoised image is clipped to the range of images, -1 to 1, before it is used. In "
        f"sampling, a {what} is drawn for each image in proportion to the number of training "
        "images that have it, within the class where a class is asked for."
    )
