"""One session of training: begins or resumes a run folder, and writes into it what `fit` yields.

A run is what the same command makes, in however many sessions. A session ends when the budget is used up, or on
Ctrl-C or SIGTERM, after which the same command goes on.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, TypeAlias

import torch
from pydantic import Field, NonNegativeInt

from undiffuse import nets
from undiffuse.base.errors import UserError
from undiffuse.base.tensors import LARGEST, LARGEST_HEADER
from undiffuse.data.clusters import k_means, k_means_within, mean_images
from undiffuse.data.loading import load_dataset
from undiffuse.data.splits import split_dataset, subset
from undiffuse.diffusion.denoiser import Denoiser
from undiffuse.training.config import Config

if TYPE_CHECKING:
    from torch import Tensor, nn

    from undiffuse.data.dataset import Dataset


def prepare(config: Config, dataset: Dataset | None = None) -> tuple[Dataset, Dataset, DataFacts]:
    """(training set, held-out set, their facts) of a configuration, from its whole data set, which is loaded unless it
    is given. Raises UserError for unusable data."""
    dataset = dataset if dataset is not None else load_dataset(config.data, config.size)
    if config.subset is not None:
        dataset = subset(dataset, config.subset, config.seed)
    if config.conditional and not dataset.classes:
        raise UserError(f"--conditional needs class labels, and '{config.data}' has none")
    training, held_out = split_dataset(dataset, config.seed)
    digest = hashlib.sha256()
    for part in (training, held_out):
        digest.update(part.images.numpy().tobytes())
        if part.labels is not None:
            digest.update(part.labels.numpy().tobytes())
    return (
        training,
        held_out,
        DataFacts(dataset.name, dataset.shape, dataset.classes, len(training), len(held_out), digest.hexdigest()),
    )


def grouped(
    config: Config, training: Dataset, held_out: Dataset, facts: DataFacts
) -> tuple[Dataset, Dataset, DataFacts]:
    """(training set, held-out set, their facts): with groups for labels, where the configuration asks for them and there are enough
    images; else as they are."""
    if not config.groups:
        return training, held_out, facts
    everything = torch.cat([training.images, held_out.images])
    class_of: tuple[int, ...] = ()
    if config.conditional:
        assert training.labels is not None
        assert held_out.labels is not None
        label = torch.cat([training.labels, held_out.labels])
        group, class_of = k_means_within(everything, label, len(facts.classes), config.groups, config.seed)
    else:
        group = k_means(everything, config.groups, config.seed)
    own, others = group[: len(training)], group[len(training) :]
    sizes = torch.bincount(own, minlength=len(class_of) or int(group.max()) + 1)
    if len(sizes) < 2 or len(sizes) == len(set(class_of)):  # they would say nothing, or nothing that the classes do not
        return training, held_out, facts
    facts = replace(facts, groups=tuple(sizes.tolist()), class_of=class_of)
    return replace(training, labels=own), replace(held_out, labels=others), facts


def show_pictures(network: nn.Module, training: Dataset) -> None:
    """Fill the network's `pictures`, where it has some, with the mean images of the labels that it is told."""
    pictures = getattr(network, "pictures", None)
    if pictures is not None:
        pictures.copy_(mean_images(training, len(pictures) - 1))


def refuse_too_large(checkpoint: dict[str, Tensor]) -> None:
    """UserError for tensors of a checkpoint that would be larger than what is read back."""
    size = sum(value.nbytes for value in checkpoint.values())
    if size > LARGEST - LARGEST_HEADER:
        raise UserError(
            f"the network's checkpoints would take {size / 2**30:.1f} GiB, and {LARGEST / 2**30:.0f} is the most; take fewer --channels, "
            "a smaller --size, or fewer classes"
        )


def total_steps(config: Config, training: int) -> int | None:
    """The number of steps that --steps or --epochs asks for; None with a budget of minutes."""
    if config.steps is not None:
        return config.steps
    if config.epochs is not None:
        return max(1, round(config.epochs * training / config.batch_size))
    return None


Side: TypeAlias = Annotated[int, Field(ge=1, le=4096)]


@dataclass(frozen=True)
class DataFacts:
    """What a run must know of its data: its name, an image's shape, the class names, how many images it trains on
    and holds out, and the SHA-256 of them, so that another data set in the same place is noticed.

    groups: how many training images there are in each group, where there are some; class_of: the class of each, where it is within one."""

    name: str
    shape: tuple[Side, Side, Side]
    classes: tuple[str, ...]
    training: NonNegativeInt
    validation: NonNegativeInt
    sha256: str
    groups: tuple[NonNegativeInt, ...] = ()
    class_of: tuple[NonNegativeInt, ...] = ()

    def same_images(self, other: DataFacts) -> bool:
        """Whether these are facts of the same images. Groups do not count: on another machine rounding may move an image into another."""
        return replace(self, groups=(), class_of=()) == replace(other, groups=(), class_of=())


def shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def build_network(config: Config, facts: DataFacts, device: str = "cpu") -> nn.Module:
    """The configured network for images like the data's, with the seed's random weights. On the device "meta" it takes no memory."""
    import torch

    torch.manual_seed(config.seed)
    with torch.device(device):
        network: nn.Module = nets.NETWORKS[config.net](
            shape=facts.shape,
            classes=len(facts.groups or (facts.classes if config.conditional else ())),
            channels=config.channels,
            blocks=config.blocks,
            attention=config.attention,
            heads=config.heads,
            dropout=config.dropout,
        )
    only = getattr(network, "predicts", None)
    if only is not None and config.predict != only:
        raise UserError(f"network '{config.net}' goes with --predict {only} only, not with '{config.predict}'")
    return network


def make_denoiser(network: nn.Module, config: Config, facts: DataFacts) -> Denoiser:
    classes = facts.classes if config.conditional else ()
    return Denoiser(network, config.schedule, config.predict, facts.shape, classes, facts.groups, facts.class_of)
