"""Quality during training: the Frechet distance of a few samples to the training images.

A `Scorer` has all that this needs, so that a training run computes no features of real images.
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
"""The numbers of images that quality during training may be measured with."""


@dataclass(frozen=True)
class Scorer:
    """What the Frechet distance during training needs.

    network: the feature network. moments: those of the real training images' features. floors: for
    each n of SCORE_COUNTS, the mean distance of n real images that were not trained on; an n larger
    than the test set has none."""

    network: FeatureNetwork
    moments: Moments
    floors: dict[int, float]

    def __call__(self, images: Tensor) -> float:
        """The Frechet distance of images uint8 (n, C, H, W) to the training images."""
        features, _ = self.network(images)
        return frechet(moments(features), self.moments)


def scorer_file(key: str) -> str:
    """The name in the cache of the scorer of the data set with this key."""
    return f"scorer-{RECIPE}-{key[:32]}.safetensors"


def stored_scorer(network: FeatureNetwork, training: Tensor, test: Tensor) -> Stored:
    """A scorer as it is kept in a file, from the features (N, 64) of training and test images."""
    whole = moments(training)
    floors = {}
    for n in SCORE_COUNTS:
        if n <= len(test):
            floors[f"floor-{n}"] = str(frechet_floor(test, whole, n).value)
    tensors = {"mean": whole.mean, "covariance": whole.covariance}
    return tensors, {"n": str(whole.n), "features": network.sha256, **floors}


def scorer_for(whole: Dataset) -> Scorer | None:
    """The scorer for a data set; None where there is none yet.

    For MNIST it is in the package. For another data set it is in the cache, once `undiffuse
    evaluate` has been used with that data set. No network is trained here."""
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
    """The scorer that `stored_scorer` describes; None where it belongs to another network."""
    if metadata["features"] != network.sha256:
        return None
    floors = {n: float(metadata[f"floor-{n}"]) for n in SCORE_COUNTS if f"floor-{n}" in metadata}
    return Scorer(
        network, Moments(int(metadata["n"]), tensors["mean"], tensors["covariance"]), floors
    )
