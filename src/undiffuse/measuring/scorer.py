"""The feature network: a small classifier whose 64 penultimate features the metrics compare images by.

Inception features mean little on digits. For MNIST a trained network is in the package: `digits-64`, pinned by its
SHA-256; other weights would be another metric, under another name: that of a data set's own network ends in its hash. `train_classifier` made it (`make features`), and
trains one, once, for any other data set with labels; it is kept in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from torch import Tensor

from undiffuse.base.cache import Stored, from_cache
from undiffuse.base.tensors import load_tensors
from undiffuse.measuring.distances import Moments, frechet, frechet_floor, moments
from undiffuse.measuring.features import (
    DIGITS_KEY,
    DIGITS_NAME,
    RECIPE,
    FeatureNetwork,
    dataset_key,
    digits_network,
    own_network,
)

if TYPE_CHECKING:
    from undiffuse.data.dataset import Dataset

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


def scorer_file(key: str) -> str:
    return f"scorer-{RECIPE}-{key[:32]}.safetensors"


def stored_scorer(network: FeatureNetwork, training: Tensor, test: Tensor) -> Stored:
    """What scores during training need, from the features (N, 64) of training and test images."""
    whole = moments(training)
    floors = {}
    for n in SCORE_COUNTS:
        if n <= len(test):
            floors[f"floor-{n}"] = str(frechet_floor(test, whole, n).value)
    tensors = {"mean": whole.mean, "covariance": whole.covariance}
    return tensors, {"n": str(whole.n), "features": network.sha256, **floors}


def scorer_for(whole: Dataset) -> Scorer | None:
    """What is needed to score samples of a data set during training: from the package for MNIST, from the cache where
    `undiffuse evaluate` was used with the data set before, else None: no network is trained for it here."""
    key = dataset_key(whole)
    if key == DIGITS_KEY:
        with resources.as_file(
            resources.files("undiffuse.measuring") / "weights" / f"{DIGITS_NAME}-scorer.safetensors"
        ) as path:
            return scorer_from(*load_tensors(path, checksum=False), network=digits_network())
    network = own_network(key, whole.shape)
    if network is None:
        return None
    return from_cache(
        scorer_file(key), lambda tensors, metadata: scorer_from(tensors, metadata, network)
    )


def scorer_from(
    tensors: dict[str, Tensor], metadata: dict[str, str], network: FeatureNetwork
) -> Scorer | None:
    """The scorer that `stored_scorer` describes; None where it is of another network."""
    if metadata["features"] != network.sha256:
        return None
    floors = {n: float(metadata[f"floor-{n}"]) for n in SCORE_COUNTS if f"floor-{n}" in metadata}
    return Scorer(
        network, Moments(int(metadata["n"]), tensors["mean"], tensors["covariance"]), floors
    )
