"""The forward process: one step of noise (1)-(2), the jump (3), and the noise schedule."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from undiffuse.diffusion import process
from undiffuse.diffusion.schedule import SCHEDULES, chain, noise_level
from undiffuse.report.blocks import Block, Equation, Figure, Heading, Table, Text, coded
from undiffuse.report.listing import explained
from undiffuse.report.sections._shared import code, with_examples
from undiffuse.report.source import Source

NOTATION = Table(
    ("handout", "code", "meaning"),
    (
        (
            "$sqrt(macron(alpha)_t)$",
            "`alpha_t`, also $alpha(t)$",
            "what is left of the image at $t$",
        ),
        (
            "$sqrt(1 - macron(alpha)_t)$",
            "`sigma_t`, also $sigma(t)$",
            "the standard deviation of the noise at $t$",
        ),
        ("$sqrt(alpha_t)$", "`alpha_ts`", "what one step from $s$ to $t$ leaves of $x_s$"),
        ("$1 - alpha_t$", "`var_ts`", "the variance of the noise of that step"),
        ("$epsilon$", "`eps`", "standard normal noise"),
        ("$hat(x)_theta (x_t, t)$", "`x_0`", "the denoised image, the network's estimate of $x_0$"),
    ),
    "The handout's symbols, and their names in the code.",
)
"""The two notations."""


def section(source: Source) -> Iterator[Block]:
    yield Heading(1, "The forward process: from image to noise")
    yield from one_step()
    yield from jump(source)
    yield from schedule(source.config.schedule)


def one_step() -> Iterator[Block]:
    yield Heading(2, "One step of noise")
    yield Text(
        "Each step scales the image down and adds noise. The share $alpha_t$ of the variance that "
        "is kept lies between 0 and 1. The noise schedule fixes it; it is not learned. Where the "
        "pixels of the images have variance 1, those of $x_t$ have variance 1 too."
    )
    yield Equation("q(x_t | x_(t-1)) = cal(N)(sqrt(alpha_t) x_(t-1), (1 - alpha_t) bold(I))", "1")
    yield Text(
        "To sample from it, a standard normal $epsilon$ is scaled to that standard deviation:"
    )
    yield Equation("x_t = sqrt(alpha_t) x_(t-1) + sqrt(1 - alpha_t) epsilon", "2")
    yield Text(
        "The handout prints $(1 - alpha_t) epsilon$ here, without the root. That would be noise of "
        "variance $(1 - alpha_t)^2$, which contradicts (1). The code has its own names for these "
        "quantities, because it also takes steps of any length, from a time $s$ to a later time "
        "$t$. One step of the chain is $s = t - 1$. Take care: the handout's $alpha_t$ is of one "
        "step and of variances, while $alpha(t)$ and `alpha_t` in the code are of the whole way "
        "and of standard deviations."
    )
    yield NOTATION
    yield from code(process.step_kernel, process.step)


def jump(source: Source) -> Iterator[Block]:
    yield Heading(2, "The jump")
    yield Text(
        "Two steps of (2) make $x_t = sqrt(alpha_t alpha_(t-1)) x_(t-2) + sqrt(alpha_t (1 - "
        "alpha_(t-1))) epsilon' + sqrt(1 - alpha_t) epsilon$. The two noises are independent, so "
        "their sum is normal, and the variances add: $alpha_t (1 - alpha_(t-1)) + 1 - alpha_t = 1 "
        "- alpha_t alpha_(t-1)$. Step by step, all of them make one jump. With the "
        "product $macron(alpha)_t = alpha_1 alpha_2 dots.h.c alpha_t$ it is"
    )
    yield Equation("x_t = sqrt(macron(alpha)_t) x_0 + sqrt(1 - macron(alpha)_t) epsilon_0", "3")
    yield Text(
        "The handout prints $x_(t-1)$ for $x_0$, and $(1 - macron(alpha)_t)$ without its root. The "
        "jump is what makes training cheap: any $x_t$ comes from the image in one line, without "
        "the steps before it."
    )
    yield from code(process.jump)
    yield from with_examples(
        source,
        Figure(
            "noising",
            "Training images on their way to noise, by (3) and this run's schedule.",
            "Rows of training images that become noisier from left to right until nothing of them "
            "is left.",
        ),
    )


def schedule(name: str) -> Iterator[Block]:
    """name: the run's schedule, as a spec."""
    other_variance = (
        " This schedule's $alpha(t)^2 + sigma(t)^2$ is not 1, so (1) to (8) hold for $x_t slash "
        "sqrt(alpha(t)^2 + sigma(t)^2)$, with $macron(alpha) = alpha^2 slash (alpha^2 + sigma^2)$; "
        "the code takes $alpha$ and $sigma$ as they are."
    )
    yield Heading(2, "The noise schedule")
    yield Text(
        "A schedule is a pair of functions of the time $t$ from 0 (image) to 1 (noise): "
        "$alpha(t)$, what is left of the image, and $sigma(t)$, how much noise there is. A chain "
        "of $T$ steps reads them at $t_i = i slash T$, and then $alpha(t_i) = "
        "sqrt(macron(alpha)_i)$. What a network sees of it is their ratio, the signal-to-noise "
        "ratio SNR $= alpha^2 slash sigma^2$."
        + ("" if keeps_variance(name) else other_variance)
        + f" This run uses the schedule {coded(name)}: {explained(SCHEDULES, name)}"
    )
    yield Figure(
        "schedules",
        f"The schedules to choose from; {coded(name)} is this run's. Left: the share of the "
        "image's variance that is left. Right: the logarithm of the signal-to-noise ratio, which "
        "the software cuts off at ±15.",
        "Two charts of falling curves, one for each noise schedule.",
    )
    yield from code(SCHEDULES[name.partition(":")[0]], chain)


def keeps_variance(name: str) -> bool:
    """Whether alpha^2 + sigma^2 = 1 at all times."""
    level = noise_level(SCHEDULES[name], torch.linspace(0, 1, 11, dtype=torch.float64))
    return bool(((level.alpha**2 + level.sigma**2 - 1).abs() < 1e-9).all())
