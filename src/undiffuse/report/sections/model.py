"""The model: the posterior (4)-(5), the loss (6), and what the network predicts."""

from __future__ import annotations

from collections.abc import Iterator

from undiffuse.diffusion import process, times
from undiffuse.diffusion.denoiser import PREDICTIONS, Denoiser
from undiffuse.diffusion.objectives import OBJECTIVES, denoising
from undiffuse.diffusion.times import TIMES
from undiffuse.diffusion.weightings import WEIGHTINGS
from undiffuse.report.blocks import Block, Equation, Figure, Heading, Text
from undiffuse.report.listing import explained
from undiffuse.report.sections._shared import code
from undiffuse.report.source import Source
from undiffuse.training.config import Config


def section(source: Source) -> Iterator[Block]:
    yield Heading(1, "The model: from noise to image")
    yield from posterior()
    yield from loss(source.config)
    yield from prediction(source)


def posterior() -> Iterator[Block]:
    yield Heading(2, "The posterior")
    yield Text(
        "If the image were known, the step back would be known too. By Bayes' rule $q(x_(t-1) | "
        "x_t, x_0)$ is proportional to $q(x_t | x_(t-1)) q(x_(t-1) | x_0)$. With (1) and (3) its "
        "logarithm is, but for constants, $-1 slash 2$ of"
    )
    yield Equation(
        "frac((x_t - sqrt(alpha_t) x_(t-1))^2, 1 - alpha_t) + "
        "frac((x_(t-1) - sqrt(macron(alpha)_(t-1)) x_0)^2, 1 - macron(alpha)_(t-1))"
    )
    yield Text(
        "That is a square in $x_(t-1)$, so the posterior is normal. The coefficient of "
        "$x_(t-1)^2$ is one over the variance, $alpha_t slash (1 - alpha_t) + 1 slash (1 - "
        "macron(alpha)_(t-1))$. The linear terms, times the variance, are the mean: a weighted sum "
        "of where one is and where one is going:"
    )
    yield Equation(
        "mu_q (x_t, x_0, t) = frac(sqrt(alpha_t) (1 - macron(alpha)_(t-1)) x_t + "
        "sqrt(macron(alpha)_(t-1)) (1 - alpha_t) x_0, 1 - macron(alpha)_t)",
        "4",
    )
    yield Text(
        "and its variance is $(1 - alpha_t)(1 - macron(alpha)_(t-1)) slash (1 - macron(alpha)_t)$. "
        "At $t = 1$ the mean is exactly $x_0$ and the variance 0: the last step adds no noise."
    )
    yield from code(process.posterior)
    yield Text(
        "The image is not known, so a network estimates it from $x_t$. This _denoised image_ "
        "$hat(x)_theta (x_t, t)$ in place of $x_0$ gives the model's mean:"
    )
    yield Equation("mu_theta (x_t, t) = mu_q (x_t, hat(x)_theta (x_t, t), t)", "5")


def loss(config: Config) -> Iterator[Block]:
    yield Heading(2, "The loss")
    yield Text(
        "A good model gives the images a high probability. $-log p_theta (x_0)$ is at most a sum "
        "(Ho et al. 2020), in which each step but the last has the term "
        "$K L(q(x_(t-1) | x_t, x_0) || p_theta (x_(t-1) | x_t))$. Both are normal with the same "
        "variance $sigma_q^2 (t)$, that of (4). So the term is $norm(mu_q - mu_theta)^2 slash (2 "
        "sigma_q^2 (t))$, and with (4) and (5)"
    )
    yield Equation(
        'K L = frac(1, 2) ("SNR"(t - 1) - "SNR"(t)) norm(hat(x)_theta (x_t, t) - x_0)^2, quad '
        '"SNR"(t) = frac(macron(alpha)_t, 1 - macron(alpha)_t)'
    )
    yield Text(
        "The factor does not depend on the network. The handout drops it, so all times count "
        "alike. What is minimised then is, for each image,"
    )
    yield Equation(
        'EE_(t tilde.op "Uniform"{2..T}) EE_(x_t tilde.op q(x_t | x_0)) '
        "norm(hat(x)_theta (x_t, t) - x_0)^2",
        "6",
    )
    yield Text(
        "averaged over the data set. The handout leaves $t = 1$ out: there the variance of (4) is "
        "0, and the step back is the denoised image itself."
    )
    yield from weighting(config)
    yield from times_of(config)
    yield Text(
        "So what this run minimises, on average over the images of a batch, is (6) with a weight, "
        "divided by the number $d$ of values of an image:"
    )
    yield Equation(
        'EE_t EE_(x_t tilde.op q(x_t | x_0)) w("SNR"(t)) norm(hat(x)_theta (x_t, t) - x_0)^2 '
        "slash d"
    )
    own = OBJECTIVES.function(config.objective.partition(":")[0])
    yield Text(
        "The network $F$ gives a shifted and scaled denoised image, $hat(x)_theta = "
        'c_"skip" x_t + c_"out" F$ (see below). So the error of $hat(x)_theta$ is $c_"out"$ times '
        'that of $F$, if the target of $F$ is $(x_0 - c_"skip" x_t) slash c_"out"$, and the weight '
        'of its square is $w c_"out"^2$. With $x_t = alpha x_0 + sigma epsilon$ the target is a '
        "sum "
        "of $x_0$ and $epsilon$ (`of_x_0` and `of_noise` in the code):"
    )
    yield from code(
        denoising.denoising_batch,
        denoising.denoising_loss,
        *([] if own is denoising.denoising else [own]),
    )


def weighting(config: Config) -> Iterator[Block]:
    """The weight of each noise level, in words and as code."""
    yield Text(
        "The squared error may count more at some noise levels than at others. Its weight $w$ is a "
        f"function of the signal-to-noise ratio. Here: {explained(WEIGHTINGS, config.weighting)}"
    )
    yield from code(WEIGHTINGS.function(config.weighting.partition(":")[0]))


def times_of(config: Config) -> Iterator[Block]:
    """Which times are trained, in words and as code."""
    if config.chain:
        how = f"The chain has $T = {config.chain}$ steps, so $t$ is one of $2 slash T, ..., 1$."
    else:
        how = (
            "Time is continuous: $t$ is any number from 0 (image) to 1 (noise). That is a chain of "
            "as many steps as one likes, so the number of steps $T$ can be chosen when images are "
            "sampled."
        )
    spread = (
        " The times of a batch are spread evenly over their distribution, which makes the loss of "
        "a batch less noisy (Kingma et al. 2021)."
        if config.stratified
        else ""
    )
    yield Text(
        f"{how} The handout samples it uniformly. Here: {explained(TIMES, config.times)}{spread}"
    )
    yield from code(TIMES.function(config.times.partition(":")[0]), times.sample_times)


def prediction(source: Source) -> Iterator[Block]:
    name = source.config.predict
    yield Heading(2, "What the network predicts")
    yield Text(
        "The network $F$ need not give the image itself. The denoised image is "
        '$c_"skip" x_t + c_"out" F(c_"in" x_t, log "SNR")$, with coefficients that depend on the '
        "noise level. They make what the network sees, and what it has to give, of about unit size "
        f"at every noise level. In this run: {explained(PREDICTIONS, name)} All predictions differ "
        "by these three coefficients only."
    )
    yield from code(PREDICTIONS.function(name.partition(":")[0]), Denoiser.__call__)
    if "denoised.png" in source.pictures:
        images = "held out" if source.about.facts.validation else "trained on"
        unconditional = "unconditional " if source.about.conditioning.kind else ""
        yield Figure(
            "denoised",
            f"What the network sees at each noise level: images that were {images}, with more "
            "noise from left to right (t = 0, 0.1, ..., 1). Upper rows: $x_t$. Lower rows: the "
            f"{unconditional}denoised image $hat(x)_theta (x_t, t)$; at $t = 0$ the image itself. "
            "From the middle on, the denoised image is smoother than a real one: it is a mean of "
            "the images that $x_t$ may have come from. At the right end nothing of the image is "
            "left. There a perfect network would give the mean of all images. What differs from a "
            "smooth grey shape there, such as speckle, is this network's error.",
            "Pairs of rows: an image that becomes noise, and below it denoised images that go from "
            "clear to a blurred mean.",
        )
