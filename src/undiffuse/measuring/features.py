"""The feature network: a small classifier, from which the metrics take their features.

The metrics compare images by the 64 features before the classifier's last layer. Features of an
Inception network mean little on digits.

For MNIST the package contains a trained network, `digits-64`, pinned by its SHA-256. Other weights
would be another metric, so they have another name. For any other data set with labels,
`train_classifier` trains a network once. The cache keeps it. Its name ends in the hash of its
weights. `train_classifier` also made `digits-64` (`make features`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import resources
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from undiffuse.base import engine, process, rng
from undiffuse.base.cache import Stored, from_cache, to_cache
from undiffuse.base.errors import UserError
from undiffuse.base.pixels import images_at_once, to_float
from undiffuse.base.tensors import load_tensors
from undiffuse.data.batches import batch_indices

if TYPE_CHECKING:
    from undiffuse.data.dataset import Dataset

FEATURES = 64


DIGITS_NAME = "digits-64"


DIGITS_SHA256 = "f1abf8eef997528ee901fc9a0505ecf053f549f5017ae33aee3956e36bf562cb"


DIGITS_KEY = "d18cfd466eb143ac1097fde604dba9eec4116885869d04cc648b510949f9e88c"
"""`dataset_key` of the images that `digits-64` is for: MNIST's training set."""


FEWEST_STEPS = 300
"""The fewest steps of `train_classifier`, for small data sets."""

RECIPE = 2
"""The version of `train_classifier`. It is raised when the result changes, so that an old cached
network is not used."""


class Classifier(nn.Module):
    """A small convolutional classifier: (B, C, H, W) float in [-1, 1] -> logits (B, K).

    A stage is two blocks of convolution, batch norm and ReLU. Each next stage has half the
    resolution, down to about 7 pixels a side. The mean over all pixels gives the 64 features. A
    linear layer computes the logits from them.

    There is no linear layer before the features: with one, they collapse onto as few directions as
    there are classes (see LOG.md).

    shape: (C, H, W) of an image. classes: K. width: channels of the first stage."""

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int = 32) -> None:
        super().__init__()
        channels, height, width_px = shape
        stages = 1 + max(0, round(math.log2(min(height, width_px) / 7)))
        layers: list[nn.Module] = []
        for stage in range(stages):
            for half in range(2):
                wide = FEATURES if (stage, half) == (stages - 1, 1) else width * min(stage + 1, 3)
                layers += [
                    nn.Conv2d(channels, wide, 3, padding=1, bias=False),
                    nn.BatchNorm2d(wide),
                    nn.ReLU(),
                ]
                channels = wide
            if stage + 1 < stages:
                layers.append(nn.MaxPool2d(2))
        self.convolutions = nn.Sequential(*layers)
        self.classes = nn.Linear(FEATURES, classes)
        # torch's annotations lack this overload.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def penultimate(self, x: Tensor) -> Tensor:
        """The features (B, 64) of images (B, C, H, W) in [-1, 1]."""
        features: Tensor = self.convolutions(x.contiguous(memory_format=torch.channels_last)).mean(
            dim=(2, 3)
        )
        return features

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classes(self.penultimate(x))
        return logits


def random_affine(x: Tensor, seed: int, step: int) -> Tensor:
    """Images (B, C, H, W), each under its own random affine map.

    It rotates by up to 10 degrees, scales and shears by up to 10%, and moves by up to 7% of the
    image's side, each way. The map is a function of seed, step and the image's row."""
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


@torch.inference_mode(False)
@torch.enable_grad()
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
    """A classifier trained on a data set with labels, in evaluation mode.

    AdamW with one cycle of the learning rate. epochs: passes over the data; at least FEWEST_STEPS
    are taken. augment: whether images go through `random_affine`. watch: called every 20 steps with
    the share done."""
    assert dataset.labels is not None
    with process.own_randomness(seed):
        network = Classifier(dataset.shape, len(dataset.classes), width).train()
    steps = max(FEWEST_STEPS, round(epochs * len(dataset) / batch_size))
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.2)
    precision = engine.fastest()
    for step in range(steps):
        rows = batch_indices(len(dataset), min(batch_size, len(dataset)), step, seed)
        x = to_float(dataset.read(rows))
        if augment:
            x = random_affine(x, seed, step)
        with engine.arithmetic(precision):
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
    """A trained classifier.

    sha256: of the weights' file for the network in the package, of the weights for any other.
    classes: the class names."""

    name: str
    sha256: str
    network: Classifier
    classes: tuple[str, ...]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(features (N, 64), class probabilities (N, K)), float32, of images uint8 (N, C, H, W)."""
        count = images_at_once(images.shape[1:])
        found = [self.network.penultimate(to_float(batch)) for batch in images.split(count)]
        features = torch.cat(found)
        return features, self.network.classes(features).softmax(dim=1)


def correct(network: Classifier, dataset: Dataset) -> Tensor:
    """Which images of a data set with labels the classifier gets right, bool (N,)."""
    assert dataset.labels is not None
    with torch.no_grad():
        predicted = [network(to_float(images)).argmax(dim=1) for images in dataset.chunks()]
    return torch.cat(predicted) == dataset.labels


def network_from(
    tensors: dict[str, Tensor], metadata: dict[str, str], shape: tuple[int, int, int], sha256: str
) -> FeatureNetwork:
    """The feature network that `stored_network` describes."""
    network = Classifier(
        shape, len(tensors["classes.bias"]), tensors["convolutions.0.weight"].shape[0]
    )
    network.load_state_dict(tensors)
    return FeatureNetwork(
        metadata["name"], sha256, network.eval(), tuple(metadata["classes"].split("\n"))
    )


def stored_network(network: Classifier, dataset: Dataset, name: str, seed: int) -> Stored:
    """A network as it is kept in a file. dataset: what it was trained on."""
    metadata = {
        "name": name,
        "seed": str(seed),
        "data": dataset_key(dataset),
        "classes": "\n".join(dataset.classes),
    }
    return dict(network.state_dict()), metadata


def dataset_key(dataset: Dataset) -> str:
    """The SHA-256 of a data set's images and labels."""
    digest = hashlib.sha256()
    dataset.hash_into(digest)
    return digest.hexdigest()


def digits_network() -> FeatureNetwork:
    """The network in the package.

    Raises UserError where the file is missing or does not have the pinned SHA-256."""
    with resources.as_file(
        resources.files("undiffuse.measuring") / "weights" / f"{DIGITS_NAME}.safetensors"
    ) as path:
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "none"
        if found != DIGITS_SHA256:
            raise UserError(
                f"the installed package is damaged ({DIGITS_NAME}.safetensors does not have the "
                "expected SHA-256); install it again"
            )
        return network_from(*load_tensors(path, checksum=False), shape=(1, 28, 28), sha256=found)


def own_network(key: str, shape: tuple[int, int, int]) -> FeatureNetwork | None:
    """The network of the data set with this key, from the cache; None where the cache has none."""

    def read(tensors: dict[str, Tensor], metadata: dict[str, str]) -> FeatureNetwork:
        return network_from(tensors, metadata, shape, digest_of(tensors))

    return from_cache(network_file(key), read)


def digest_of(tensors: dict[str, Tensor]) -> str:
    """The SHA-256 of the tensors' bytes, in the order of their names."""
    return hashlib.sha256(
        b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))
    ).hexdigest()


def network_file(key: str) -> str:
    """The name in the cache of the network of the data set with this key."""
    return f"features-{RECIPE}-{key[:32]}.safetensors"


def feature_network(
    whole: Dataset,
    training: Dataset | None = None,
    watch: Callable[[float], None] = lambda done: None,
) -> FeatureNetwork | None:
    """The feature network for the data set `whole`; None without labels or with only one class.

    For MNIST's training images it is the network in the package. For any other data set a network
    is trained once on `training`, all of `whole` by default, and kept in the cache. watch: called
    with the share done while it trains."""
    if whole.labels is None or len(whole.classes) < 2:
        return None
    key = dataset_key(whole)
    if key == DIGITS_KEY:
        return digits_network()
    found = own_network(key, whole.shape)
    if found is None:
        network = train_classifier(training or whole, watch=watch)
        digest = digest_of(dict(network.state_dict()))
        stored = stored_network(network, whole, f"own-64-{digest[:8]}", seed=0)
        to_cache(network_file(key), stored)
        found = network_from(*stored, shape=whole.shape, sha256=digest)
    return replace(found, classes=whole.classes)


def reference_features(network: FeatureNetwork, dataset: Dataset) -> tuple[Tensor, Tensor]:
    """(features (N, 64), class probabilities (N, K)) of a data set. They are kept in the cache."""
    name = f"reference-{network.sha256[:16]}-{dataset_key(dataset)[:32]}.safetensors"
    found = from_cache(
        name, lambda tensors, metadata: (tensors["features"], tensors["probabilities"])
    )
    if found is None:
        found = network(dataset.images)
        to_cache(name, ({"features": found[0], "probabilities": found[1]}, {}))
    return found
