"""The feature network: a small classifier whose 64 penultimate features the metrics compare images by.

Inception features mean little on digits. For MNIST a trained network is in the package: `digits-64`, pinned by its
SHA-256; other weights would be another metric, under another name. `train_classifier` made it (`make features`), and
trains one, once, for any other data set with labels; it is kept in the cache.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from undiffuse import data, files, machine, rng
from undiffuse.errors import UserError
from undiffuse.metrics import Moments, frechet, moments

if TYPE_CHECKING:
    from undiffuse.data import Dataset

FEATURES = 64
DIGITS_NAME = "digits-64"
DIGITS_SHA256 = "f1abf8eef997528ee901fc9a0505ecf053f549f5017ae33aee3956e36bf562cb"
DIGITS_KEY = "d18cfd466eb143ac1097fde604dba9eec4116885869d04cc648b510949f9e88c"
"""`dataset_key` of the images that `digits-64` is for: MNIST's training set."""

RECIPE = 1
"""Counts the changes to what `train_classifier` makes, so that an old cache is not taken for a new network."""


class Classifier(nn.Module):
    """Convolutions, batch norms and ReLUs, two to a stage, halving the resolution down to about 7 pixels a side; the mean
    over all pixels gives the 64 features, and a linear layer the classes. (A linear layer before the features would let
    them collapse onto as few directions as there are classes: see LOG.md.)

    (B, C, H, W) float in [-1, 1] -> logits (B, K)."""

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int = 32) -> None:
        super().__init__()
        channels, height, width_px = shape
        stages = 1 + max(0, round(math.log2(min(height, width_px) / 7)))
        layers: list[nn.Module] = []
        for stage in range(stages):
            for half in range(2):
                wide = FEATURES if (stage, half) == (stages - 1, 1) else width * min(stage + 1, 3)
                layers += [nn.Conv2d(channels, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
                channels = wide
            if stage + 1 < stages:
                layers.append(nn.MaxPool2d(2))
        self.convolutions = nn.Sequential(*layers)
        self.classes = nn.Linear(FEATURES, classes)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's annotations

    def penultimate(self, x: Tensor) -> Tensor:
        """The features (B, 64)."""
        features: Tensor = self.convolutions(x.contiguous(memory_format=torch.channels_last)).mean(dim=(2, 3))
        return features

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classes(self.penultimate(x))
        return logits


def random_affine(x: Tensor, seed: int, step: int) -> Tensor:
    """Images (B, C, H, W), each rotated by up to 10 degrees, scaled and sheared by up to a tenth, moved by up to 7%."""
    u = torch.from_numpy(rng.stream(seed, "augmentation", step).uniform(-1, 1, (len(x), 5))).float()
    angle, scale, shear = u[:, 0] * math.radians(10), 1 + u[:, 1] / 10, u[:, 2] / 10
    matrix = torch.stack(
        [
            torch.stack([scale * angle.cos(), -scale * angle.sin() + shear, u[:, 3] * 0.14], dim=1),
            torch.stack([scale * angle.sin(), scale * angle.cos(), u[:, 4] * 0.14], dim=1),
        ],
        dim=1,
    )  # (B, 2, 3), in units of half an image
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def train_classifier(
    dataset: Dataset,
    *,
    seed: int = 0,
    width: int = 32,
    epochs: float = 10,
    batch_size: int = 128,
    lr: float = 4e-3,
    augment: bool = True,
    watch: Callable[[float], None] = lambda done: None,
) -> Classifier:
    """A classifier of a labelled data set, in evaluation mode: AdamW, one cycle of the learning rate. At least 300 steps.

    watch: called now and then with the share that is done."""
    assert dataset.labels is not None
    torch.manual_seed(seed)
    network = Classifier(dataset.shape, len(dataset.classes), width).train()
    steps = max(300, round(epochs * len(dataset) / batch_size))
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.2)
    precision = "bf16" if machine.has_bf16() else "fp32"
    for step in range(steps):
        rows = data.batch_indices(len(dataset), min(batch_size, len(dataset)), step, seed)
        x = data.to_float(dataset.images[rows])
        if augment:
            x = random_affine(x, seed, step)
        with machine.arithmetic(precision):
            logits = network(x)
        F.cross_entropy(logits.float(), dataset.labels[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 20 == 0:
            watch(step / steps)
    return network.eval()


@dataclass(frozen=True)
class FeatureNetwork:
    """A trained classifier with its name, the SHA-256 of its weights' file, and the class names."""

    name: str
    sha256: str
    network: Classifier
    classes: tuple[str, ...]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(features (N, 64), class probabilities (N, K)), float32, of images uint8 (N, C, H, W)."""
        found = [self.network.penultimate(data.to_float(batch)) for batch in images.split(500)]
        features = torch.cat(found)
        return features, self.network.classes(features).softmax(dim=1)


def correct(network: Classifier, dataset: Dataset) -> Tensor:
    """Which images of a labelled data set the classifier gets right, bool (N,)."""
    assert dataset.labels is not None
    with torch.no_grad():
        guesses = [network(data.to_float(images)).argmax(dim=1) for images in dataset.images.split(500)]
    return torch.cat(guesses) == dataset.labels


def read_network(path: Path, shape: tuple[int, int, int]) -> FeatureNetwork:
    """The feature network in a file. Raises UserError where it is damaged."""
    content = path.read_bytes()
    tensors, metadata = files.load_tensors(path)
    network = Classifier(shape, len(tensors["classes.bias"]), tensors["convolutions.0.weight"].shape[0])
    network.load_state_dict(tensors)
    classes = tuple(metadata["classes"].split("\n"))
    return FeatureNetwork(metadata["name"], hashlib.sha256(content).hexdigest(), network.eval(), classes)


def save_network(path: Path, network: Classifier, dataset: Dataset, name: str, seed: int) -> None:
    metadata = {"name": name, "seed": str(seed), "data": dataset_key(dataset), "classes": "\n".join(dataset.classes)}
    files.save_tensors(path, dict(network.state_dict()), metadata)


def dataset_key(dataset: Dataset) -> str:
    """The SHA-256 of a data set's images and labels."""
    digest = hashlib.sha256(dataset.images.numpy().tobytes())
    if dataset.labels is not None:
        digest.update(dataset.labels.numpy().tobytes())
    return digest.hexdigest()


def digits_network() -> FeatureNetwork:
    """The network in the package. Raises UserError where it isn't the pinned one."""
    with resources.as_file(resources.files("undiffuse") / "weights" / f"{DIGITS_NAME}.safetensors") as path:
        found = read_network(path, (1, 28, 28)) if path.is_file() else None
    if found is None or found.sha256 != DIGITS_SHA256:
        raise UserError(
            f"the installed package is damaged ({DIGITS_NAME}.safetensors is not the pinned one); install it again"
        )
    return found


def network_path(key: str) -> Path:
    return files.cache_folder() / f"features-{RECIPE}-{key[:32]}.safetensors"


def feature_network(dataset: Dataset, watch: Callable[[float], None] = lambda done: None) -> FeatureNetwork | None:
    """The feature network for a data set: the pinned one for MNIST's training images, else one trained on the data set
    itself, once, and kept in the cache; None without labels, or with one class."""
    if dataset.labels is None or len(dataset.classes) < 2:
        return None
    key = dataset_key(dataset)
    if key == DIGITS_KEY:
        return digits_network()
    path = network_path(key)
    if not path.is_file():
        save_network(path, train_classifier(dataset, watch=watch), dataset, f"own-64-{key[:8]}", seed=0)
    return read_network(path, dataset.shape)


def reference_features(network: FeatureNetwork, dataset: Dataset) -> tuple[Tensor, Tensor]:
    """(features, probabilities) of a data set's images, from the cache if they were computed before."""
    path = files.cache_folder() / f"reference-{network.sha256[:16]}-{dataset_key(dataset)[:32]}.safetensors"
    if path.is_file():
        tensors, _ = files.load_tensors(path)
        return tensors["features"], tensors["probabilities"]
    features, probabilities = network(dataset.images)
    files.save_tensors(path, {"features": features, "probabilities": probabilities}, {})
    return features, probabilities


# --- Scores during training ---

SCORE_COUNTS = (500, 1000, 2000)
"""How many images a score during training may be of."""


@dataclass(frozen=True)
class Scorer:
    """What a Frechet distance during training needs: the network, the moments of the real training images' features, and
    the floor for each of SCORE_COUNTS: the mean distance of so many real images that were not trained on."""

    network: FeatureNetwork
    moments: Moments
    floors: dict[int, float]

    def __call__(self, images: Tensor) -> float:
        """The Frechet distance of images uint8 (n, C, H, W)."""
        features, _ = self.network(images)
        return frechet(moments(features), self.moments)


def scorer_path(key: str) -> Path:
    return files.cache_folder() / f"scorer-{RECIPE}-{key[:32]}.safetensors"


def save_scorer(path: Path, network: FeatureNetwork, training: Tensor, test: Tensor) -> None:
    """Keep what scores during training need, from the features (N, 64) of training and test images."""
    whole = moments(training)
    floors = {}
    for n in SCORE_COUNTS:
        parts = torch.from_numpy(rng.stream(0, "floor").permutation(len(test))).split(n)
        parts = tuple(part for part in parts if len(part) == n)
        if parts:
            floors[f"floor-{n}"] = str(sum(frechet(moments(test[part]), whole) for part in parts) / len(parts))
    tensors = {"mean": whole.mean, "covariance": whole.covariance}
    files.save_tensors(path, tensors, {"n": str(whole.n), "features": network.sha256, **floors})


def scorer(dataset: Dataset) -> Scorer | None:
    """What is needed to score samples of a data set during training: from the package for MNIST, from the cache where
    `undiffuse evaluate` was used with the data set before, else None: no network is trained for it here."""
    key = dataset_key(dataset)
    if key == DIGITS_KEY:
        network = digits_network()
        with resources.as_file(resources.files("undiffuse") / "weights" / f"{DIGITS_NAME}-scorer.safetensors") as path:
            return read_scorer(path, network)
    path, own = scorer_path(key), network_path(key)
    return read_scorer(path, read_network(own, dataset.shape)) if path.is_file() and own.is_file() else None


def read_scorer(path: Path, network: FeatureNetwork) -> Scorer | None:
    """The scorer in a file; None where it is of another network. Raises UserError where the file is damaged."""
    tensors, metadata = files.load_tensors(path)
    if metadata["features"] != network.sha256:
        return None
    floors = {n: float(metadata[f"floor-{n}"]) for n in SCORE_COUNTS if f"floor-{n}" in metadata}
    return Scorer(network, Moments(int(metadata["n"]), tensors["mean"], tensors["covariance"]), floors)
