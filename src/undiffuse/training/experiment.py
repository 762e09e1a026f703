"""An experiment: a configuration that is ready to train, without a run folder.

Sessions, plans, studies, benchmarks and tests train through it. It is the only place that puts
data, clusters, network, optimiser and denoiser together.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from pydantic import NonNegativeInt

from undiffuse.base import rng
from undiffuse.base.errors import UserError
from undiffuse.base.pixels import to_float
from undiffuse.base.schema import Side
from undiffuse.base.tensors import LARGEST, LARGEST_HEADER
from undiffuse.data.batches import batch_indices
from undiffuse.data.clusters import k_means, k_means_within, mean_images
from undiffuse.data.dataset import Dataset
from undiffuse.data.loading import load_dataset
from undiffuse.data.splits import split_dataset, subset
from undiffuse.diffusion.conditioning import Conditioning
from undiffuse.diffusion.denoiser import Denoiser
from undiffuse.diffusion.objectives import OBJECTIVES, Objective
from undiffuse.diffusion.times import TIMES, sample_times
from undiffuse.diffusion.weightings import WEIGHTINGS
from undiffuse.nets import build_network
from undiffuse.training.from_data import decided
from undiffuse.training.rehearsal import rehearse
from undiffuse.training.state import State, new_state, stepped_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

    from undiffuse.training.config import Config


@dataclass(frozen=True)
class DataFacts:
    """The facts of a run's data.

    shape: (C, H, W) of an image. classes: their names. training, validation: the numbers of
    training and held-out images. sha256: of all these images and their labels, so that other images
    in the same place are noticed."""

    name: str
    shape: tuple[Side, Side, Side]
    classes: tuple[str, ...]
    training: NonNegativeInt
    validation: NonNegativeInt
    sha256: str

    def same_images(self, others: DataFacts) -> bool:
        """Whether these are facts of the same images. Their folder's name may have changed."""
        return replace(self, name=others.name) == others


@dataclass(frozen=True)
class Part:
    """A part of the data. condition: the condition (N,) of each image, or None."""

    dataset: Dataset
    condition: Tensor | None = None

    def __len__(self) -> int:
        return len(self.dataset)


@dataclass
class Experiment:
    """A configuration that is ready to train. Training changes `state` only.

    config: with a value in place of each "auto". decided: why these values, by field. expected: the
    tensors of a checkpoint after a step, for their names and shapes."""

    config: Config
    facts: DataFacts
    training: Part
    held_out: Part
    state: State
    denoiser: Denoiser
    objective: Objective
    expected: dict[str, Tensor]
    decided: dict[str, str]

    @property
    def conditioning(self) -> Conditioning:
        return self.denoiser.conditioning

    @property
    def steps(self) -> int | None:
        """The configured number of steps; None with a budget of minutes."""
        return total_steps(self.config, len(self.training))

    @property
    def images(self) -> int | None:
        """The number of images over all epochs; None with a budget of minutes."""
        return self.steps and self.steps * self.config.batch_size

    @property
    def parameters(self) -> int:
        """The number of parameters of the network."""
        return sum(p.numel() for p in self.state.network.parameters())

    def batch(self, step: int) -> Any:
        """The batch of step `step` (from 0), as the objective prepares it.

        Each image has noise of a time of its own. The batch is a function of (seed, step) only."""
        config, training = self.config, self.training
        rows = batch_indices(len(training), config.batch_size, step, config.seed)
        x_0 = to_float(training.dataset.read(rows))
        noise = rng.normal_each(range(len(rows)), self.facts.shape, config.seed, "noise", step)
        t = self.times(len(rows), rng.stream(config.seed, "times", step), config.stratified)
        condition = None
        if training.condition is not None:
            condition = hide(training.condition[rows], self.conditioning.count, config, step)
        return self.objective.prepare(x_0, noise, t, condition)

    def times(self, count: int, generator: Any, stratified: bool) -> Tensor:
        """Times (count,), float64, from the configured distribution. generator: of NumPy."""
        distribution = TIMES[self.config.times]
        return sample_times(
            distribution, count, generator, stratified=stratified, steps=self.config.chain
        )


def hide(condition: Tensor, unconditional: int, config: Config, step: int) -> Tensor:
    """The conditions (B,), some of them replaced by `unconditional`.

    The probability is config.condition_dropout. The choice is a function of (seed, step)."""
    uniform = rng.stream(config.seed, "label dropout", step).random(len(condition))
    return condition.masked_fill(
        torch.from_numpy(uniform < config.condition_dropout), unconditional
    )


def total_steps(config: Config, training: int) -> int | None:
    """The number of steps of a budget of steps or epochs; None with a budget of minutes.

    training: the number of training images."""
    if config.steps is not None:
        return config.steps
    if config.epochs is not None:
        return max(1, round(config.epochs * training / config.batch_size))
    return None


# --- Making an experiment ---


def make_experiment(config: Config, whole: Dataset | None = None) -> Experiment:
    """The experiment of a configuration. whole: its data set, loaded unless it is given.

    Raises UserError for a configuration or data that cannot be trained."""
    rehearse(config)
    training, held_out, facts = prepare_data(config, whole)
    config, why = decided(config, training.images)
    build_configured(config, facts, Conditioning(), "meta")  # raises early
    conditioning, own, others = condition_on(config, training, held_out)
    network = build_configured(config, facts, conditioning)
    prototypes = getattr(network, "prototypes", None)
    if prototypes is not None:
        assert own is not None
        prototypes.copy_(mean_images(training, own, len(prototypes) - 1))
    denoiser = Denoiser(network, config.schedule, config.predict, facts.shape, conditioning)
    expected = stepped_tensors(config, network)
    refuse_too_large(expected)
    return Experiment(
        config,
        facts,
        Part(training, own),
        Part(held_out, others),
        new_state(config, network),
        denoiser,
        OBJECTIVES[config.objective](denoiser, WEIGHTINGS[config.weighting]),
        expected,
        why,
    )


def load_configured(config: Config, place: str | None = None) -> Dataset:
    """The whole data set of a configuration. place: where it is now, if not where it was.

    Raises UserError for a data set that cannot be read."""
    return load_dataset(place or config.data, config.size, background=config.background)


def prepare_data(
    config: Config, whole: Dataset | None = None
) -> tuple[Dataset, Dataset, DataFacts]:
    """(training set, held-out set, facts of both) of a configuration.

    whole: its data set, loaded unless it is given. Raises UserError for data that cannot be
    used."""
    whole = whole if whole is not None else load_configured(config)
    if config.subset is not None:
        whole = subset(whole, config.subset, config.seed)
    if config.conditional and not whole.classes:
        raise UserError(f"conditional=True needs class labels, and '{config.data}' has none")
    training, held_out = split_dataset(whole, config.seed)
    digest = hashlib.sha256()
    for part in (training, held_out):
        part.hash_into(digest)
    sizes = len(training), len(held_out)
    facts = DataFacts(whole.name, whole.shape, whole.classes, *sizes, digest.hexdigest())
    return training, held_out, facts


def condition_on(
    config: Config, training: Dataset, held_out: Dataset
) -> tuple[Conditioning, Tensor | None, Tensor | None]:
    """(the conditioning; the conditions (N,) of the training images; those of the held-out ones).

    The conditions are clusters, where the configuration asks for them and there are enough images.
    Otherwise they are the classes of a conditional run. Otherwise they are None."""
    unconditional = config.condition_dropout > 0
    classes = training.classes if config.conditional else ()
    plain = Conditioning(classes, unconditional=unconditional or not classes)
    labels = (training.labels, held_out.labels) if classes else (None, None)
    if not config.clusters:
        return plain, *labels
    everything = torch.cat([training.images, held_out.images])
    class_of_cluster: tuple[int, ...] = ()
    if classes:
        assert training.labels is not None
        assert held_out.labels is not None
        both = torch.cat([training.labels, held_out.labels])
        cluster, class_of_cluster = k_means_within(
            everything, both, len(classes), config.clusters, config.seed
        )
    else:
        cluster = k_means(everything, config.clusters, config.seed)
    own, others = cluster[: len(training)], cluster[len(training) :]
    sizes = torch.bincount(own, minlength=len(class_of_cluster) or int(cluster.max()) + 1)
    if len(sizes) < 2 or len(sizes) == len(set(class_of_cluster)):
        return plain, *labels  # such clusters tell no more than the classes
    found = Conditioning(classes, tuple(sizes.tolist()), class_of_cluster, unconditional)
    return found, own, others


def build_configured(
    config: Config, facts: DataFacts, conditioning: Conditioning, device: str = "cpu"
) -> nn.Module:
    """The configured network, with random weights. On the device "meta" it takes no memory.

    Raises UserError for options that do not fit the images or the prediction."""
    return build_network(
        config.net,
        facts.shape,
        conditioning.count,
        predict=config.predict,
        seed=config.seed,
        device=device,
    )


def refuse_too_large(checkpoint: dict[str, Tensor]) -> None:
    """Raises UserError for a checkpoint that would be too large to be read again."""
    size = sum(value.nbytes for value in checkpoint.values())
    if size > LARGEST - LARGEST_HEADER:
        raise UserError(
            f"the network's checkpoints would take {size / 2**30:.1f} GiB, and "
            f"{LARGEST / 2**30:.0f} GiB is the most; take fewer channels, a smaller size, or fewer "
            "classes"
        )


def shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor, by name."""
    return {name: tuple(value.shape) for name, value in tensors.items()}
