"""Generated images beside real images.

The metrics of quality are computed from a `Comparison`. Each part of it is computed once, when a
metric first needs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch

from undiffuse.base import rng
from undiffuse.measuring import distances, features
from undiffuse.measuring.distances import Manifold, Moments, Powers
from undiffuse.measuring.watch import Watch, unwatched

if TYPE_CHECKING:
    from torch import Tensor

    from undiffuse.data.dataset import Dataset
    from undiffuse.measuring.features import FeatureNetwork
    from undiffuse.measuring.reference import Reference

MANIFOLD = 10_000
"""Most images of each kind for precision and recall. A distance takes 4 bytes for each pair."""


class Seen(NamedTuple):
    """What the feature network computes: features (N, D), class probabilities (N, K)."""

    features: Tensor
    probabilities: Tensor

    @property
    def predicted(self) -> Tensor:
        """The most probable class (N,) of each image."""
        return self.probabilities.argmax(dim=1)

    @property
    def confidence(self) -> Tensor:
        """The probability (N,) of that class."""
        return self.probabilities.amax(dim=1)


@dataclass
class Comparison:
    """Generated images beside real images.

    images: uint8 (n, C, H, W). classes: the class (n,) that each was conditioned on, or None.
    real: the real images. network: the feature network. watch: called with (stage, share done)."""

    images: Tensor
    classes: Tensor | None
    real: Reference
    network: FeatureNetwork
    seed: int = 0
    watch: Watch = unwatched

    @property
    def n(self) -> int:
        return len(self.images)

    @cached_property
    def generated(self) -> Seen:
        self.watch("features", 0)
        return Seen(*self.network(self.images))

    @cached_property
    def training(self) -> Seen:
        self.watch("features", 0.2)
        return Seen(*features.reference_features(self.network, self.real.training))

    @cached_property
    def test(self) -> Seen:
        self.watch("features", 0.9)
        return Seen(*features.reference_features(self.network, self.real.test))

    @cached_property
    def control(self) -> Tensor:
        """The rows of the test images that are the control: n at random, at most all."""
        return random_rows(len(self.real.test), self.n, self.seed)

    @cached_property
    def training_moments(self) -> Moments:
        return distances.moments(self.training.features)

    @cached_property
    def training_powers(self) -> Powers:
        return distances.powers(self.training.features)

    @cached_property
    def manifolds(self) -> tuple[int, Manifold, Manifold]:
        """(m, precision to coverage of m generated images, the same of m test images).

        Both are compared with the same m training images."""
        x, y, z = self.generated.features, self.training.features, self.test.features
        m = min(self.n, len(y), len(z), MANIFOLD)
        seed = self.seed
        self.watch("precision and recall", 0)
        real_part = y[random_rows(len(y), m, seed + 1)]
        ours = distances.manifold(x[random_rows(self.n, m, seed)], real_part, seed=seed)
        self.watch("precision and recall", 0.6)
        theirs = distances.manifold(z[random_rows(len(z), m, seed)], real_part, seed=seed, count=2)
        return m, ours, theirs

    @cached_property
    def expected(self) -> Tensor:
        """The number of training images of each class (K,)."""
        labels = labels_of(self.real.training)
        return torch.bincount(labels, minlength=len(self.network.classes))


def random_rows(total: int, n: int, seed: int) -> Tensor:
    """n different numbers from 0 to total - 1, at random; all of them where n is larger."""
    return torch.from_numpy(rng.stream(seed, "rows").permutation(total)[:n].copy())


def labels_of(dataset: Dataset) -> Tensor:
    """The class numbers (n,) of a data set that has them."""
    assert dataset.labels is not None
    return dataset.labels
