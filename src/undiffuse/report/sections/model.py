"""The model: the posterior (4)-(5), the loss (6), what the network predicts, and the network."""

from __future__ import annotations

from collections.abc import Iterator

from undiffuse.data.clusters import k_means, k_means_within, mean_images
from undiffuse.diffusion import process, times
from undiffuse.diffusion.denoiser import PREDICTIONS, Denoiser
from undiffuse.diffusion.objectives import OBJECTIVES, denoising
from undiffuse.diffusion.times import TIMES
from undiffuse.diffusion.weightings import WEIGHTINGS
from undiffuse.nets import NETWORKS
from undiffuse.report.blocks import Block, Equation, Figure, Heading, Text, coded
from undiffuse.report.sections._shared import code
from undiffuse.report.source import Source
from undiffuse.training.config import Config


def section(source: Source) -> Iterator[Block]:
    yield Heading(1, "The model: from noise to image")
    yield from posterior()
    yield from loss(source.config)
    yield from prediction(source)
    yield from network(source)
    if source.about.conditioning.clusters:
        yield from clusters(source)


def posterior() -> Iterator[Block]:
    yield Heading(2, "The posterior")
    yield Text(
        "If the image were known, the step back would be known too. By Bayes' rule "
        "$q(x_(t-1) | x_t, x_0)$ is normal, its mean a weighted sum of where one is and where one "
        "is going:"
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
    chain = f"from a chain of $T = {config.chain}$ steps."
    continuous = "in continuous time, so that any number of steps can be sampled."
    yield Heading(2, "The loss")
    yield Text(
        "The model is good where its step back is near the posterior's, and that is where the "
        "denoised image is near the image. So what is minimised is, for each image,"
    )
    yield Equation(
        'EE_(t tilde.op "Uniform"{2..T}) EE_(x_t tilde.op q(x_t | x_0)) '
        "norm(hat(x)_theta (x_t, t) - x_0)^2",
        "6",
    )
    yield Text(
        "averaged over the data set. Here the squared error is weighted by $w$ of the "
        f"signal-to-noise ratio, {coded(config.weighting)}, and the times are sampled from "
        f"{coded(config.times)}, {chain if config.chain else continuous}"
    )
    own = OBJECTIVES.function(config.objective.partition(":")[0])
    yield from code(
        denoising.denoising_loss,
        denoising.denoising_batch,
        *([] if own is denoising.denoising else [own]),
        times.sample_times,
        WEIGHTINGS.function(config.weighting.partition(":")[0]),
        TIMES.function(config.times.partition(":")[0]),
    )


def prediction(source: Source) -> Iterator[Block]:
    name = source.config.predict
    yield Heading(2, "What the network predicts")
    yield Text(
        f"The network $F$ need not give the image itself. Its prediction here is {coded(name)}: "
        'the denoised image is $c_"skip" x_t + c_"out" F(c_"in" x_t, log "SNR")$, with '
        "coefficients that make what the network sees, and what it has to give, of about unit size "
        "at every noise level. All predictions differ by these three coefficients only."
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
            "Where little of the image is left, the best denoised image is a mean of many.",
            "Pairs of rows: an image that becomes noise, and below it denoised images that go from "
            "clear to a blurred mean.",
        )


def network(source: Source) -> Iterator[Block]:
    config = source.config
    weights = sum(parameter.numel() for parameter in source.network.parameters())
    yield Heading(2, "The network")
    yield Text(
        f"The network is {coded(config.net)}. Its options are among the hyperparameters below. "
        f"It is conditioned on the noise level{''.join(conditions(source))}. It has {weights:,} "
        "weights."
    )
    yield from code(NETWORKS.function(config.net.partition(":")[0]))


def clusters(source: Source) -> Iterator[Block]:
    """What the network is told about an image beside x_t, and what that brings."""
    conditioning = source.about.conditioning
    within = " within each class" if conditioning.class_of_cluster else ""
    yield Heading(2, "Clusters and their mean images")
    yield Text(
        "This part is not in the handout. Before training, k-means divides the training images"
        f"{within} into {len(conditioning.clusters)} clusters of similar images. In training the "
        "network is told the cluster of each image. In sampling a cluster is chosen at random, in "
        "proportion to its size. So the network has to learn the images of one cluster at a time, "
        "which is easier, and the samples have the data's proportions."
    )
    yield from code(k_means_within if conditioning.class_of_cluster else k_means)
    if getattr(source.network, "prototypes", None) is None:
        return
    yield Text(
        "The network also sees the mean image of the cluster, its _prototype_, as a second input. "
        "That is the best answer where $x_t$ is pure noise. A short training need not spend its "
        "first steps on learning it. But pictures of early steps must be read with care: what "
        "they show after a few steps is the mean image, which was given, and not what was learned."
    )
    yield from code(mean_images)
    yield Text(
        "Both were tried on MNIST, one run each, with three minutes of training on two CPU cores "
        "or as many steps on a GPU. "
        "Without labels, the Fréchet distance (1,500 samples, bias removed) was 4.26 without "
        "clusters, 1.38 with 64 clusters, and 0.65 with 64 clusters and guidance of 1.25. With "
        "labels and 200 clusters (30,000 samples), it was 0.232 without mean images as input, and "
        "0.125 and 0.162 with them, for two seeds."
    )


def conditions(source: Source) -> Iterator[str]:
    """What the network sees besides the noise level. The parts complete a sentence."""
    conditioning = source.about.conditioning
    if conditioning.kind == "class":
        yield " and on the class"
    if conditioning.clusters:
        yield (
            f" and on the cluster that the image is in, one of {len(conditioning.clusters)} "
            "clusters of similar images, found by k-means"
        )
    if conditioning.class_of_cluster:
        yield (
            ". Each cluster is a part of a class. For an image of a class, one of its clusters is "
            "sampled in proportion to its size"
        )
    if getattr(source.network, "prototypes", None) is not None:
        yield (
            f". Beside $x_t$ it sees the prototype of that {source.condition}, which is its mean "
            "training image; where it is unconditional, the mean of all training images"
        )
