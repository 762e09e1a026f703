"""Conditioning: what the network is conditioned on, and what a user can ask for.

A user asks for a **class**, by number or name. Inside, the network may be conditioned on something
finer: **clusters** of similar training images. With clusters the model is a mixture,

    p(x) = sum over k of p(k) p(x | k),            p(k) the share of training images in cluster k,
    p(x | class) = sum over k in the class of p(k | class) p(x | k),

and an image is sampled from it by sampling a cluster first. Only this file knows both classes and
clusters. Every public function takes classes. Bao et al. 2022 (arXiv:2212.00362) and Hu et al. 2023
(arXiv:2210.06462) use clusters of features in place of classes.

Where there are K conditions, number K stands for "unconditional".
"""

from __future__ import annotations

import difflib
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from undiffuse.base.errors import UserError
from undiffuse.base.files import composed
from undiffuse.base.lazy import lazy
from undiffuse.base.rng import stream
from undiffuse.base.schema import Count

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor
else:
    np, torch = lazy("numpy"), lazy("torch")

Kind: TypeAlias = Literal["class", "sub-class cluster", "cluster"]


@dataclass(frozen=True)
class Conditioning:
    """What the network of a model is conditioned on.

    classes: the names of the classes that a user can ask for; empty in a model without classes.
    clusters: the number of training images in each cluster; empty in a model without clusters.
    class_of_cluster: the class of each cluster, where there are classes.
    unconditional: whether the network also learns to denoise without a condition.
    Raises ValueError where some cluster has no class, or some class no cluster."""

    classes: tuple[str, ...] = ()
    clusters: tuple[Count, ...] = ()
    class_of_cluster: tuple[Count, ...] = ()
    unconditional: bool = True

    def __post_init__(self) -> None:
        needed = len(self.clusters) if self.classes else 0
        missing = set(range(len(self.classes) if self.clusters else 0)) ^ {*self.class_of_cluster}
        if missing or len(self.class_of_cluster) != needed:
            raise ValueError("the clusters are not parts of the classes")

    @property
    def count(self) -> int:
        """K, the number of conditions beside "unconditional". With 0 the network takes none."""
        return len(self.clusters) or len(self.classes)

    @property
    def kind(self) -> Kind | None:
        """What a condition is. None where the network takes no conditions."""
        if self.clusters:
            return "sub-class cluster" if self.classes else "cluster"
        return "class" if self.classes else None

    @property
    def guidable(self) -> bool:
        """Whether guidance is possible: it needs a conditional and an unconditional prediction."""
        return self.count > 0 and self.unconditional

    def class_numbers(self, classes: Any) -> list[int]:
        """The numbers of `classes`, which are numbers, names, or numbers as text.

        classes: one class, a list, an array or a tensor. A class is meant by its name first: where
        the names are numbers, 2 is the class called 2 or 02. Otherwise a number counts the classes
        from 0. Raises UserError for an unknown class, for a number that may mean two classes, and
        for a model without classes."""
        given = np.atleast_1d(np.asarray(classes, dtype=object))
        if not self.classes:
            raise UserError(
                "this model was trained without classes, so it cannot be asked for one; "
                "train one with conditional=True"
            )
        if given.ndim > 1:
            shape = " x ".join(map(str, given.shape))
            raise UserError(f"classes must be a list, not a table of {shape}")
        if not len(given):
            raise UserError("classes is an empty list; name at least one class")
        return [self._class_number(value) for value in given]

    def _class_number(self, value: object) -> int:
        names = self.classes
        if isinstance(value, str) and value in names:
            return names.index(value)
        number = -1
        if isinstance(value, str):
            same = [i for i, name in enumerate(names) if composed(name) == composed(value)]
            if len(same) == 1:
                return same[0]
            number = int(value) if value.isdecimal() else -1
        elif hasattr(value, "__index__") and not isinstance(value, bool | np.bool_):
            number = operator.index(value)
        called = [i for i, name in enumerate(names) if name.isdecimal() and int(name) == number]
        counted = [number] if 0 <= number < len(names) else []
        meant = called if all(map(str.isdecimal, names)) else sorted({*called, *counted})
        if len(meant) > 1:
            both = " or ".join(f"'{names[i]}' (number {i})" for i in meant)
            raise UserError(f"class {value} may mean {both}; give the name, as text")
        if not meant:
            raise UserError(f"there is no class {value}; {nearest(str(value), names)}")
        return meant[0]

    def sample(self, classes: Tensor | None, samples: Sequence[int], seed: int) -> Tensor | None:
        """Sample the condition (B,) of each image. None where the network takes no conditions.

        Without clusters it is the image's class. With clusters, one of them is sampled in
        proportion to its size, from those of the class. This cluster is a function of class, seed
        and index alone. classes: the class number (B,) of each image, where the model has classes;
        else None. samples: the index of each image. Raises ValueError for classes that do not fit
        the model."""
        if (classes is None) == bool(self.classes):
            raise ValueError("a model with classes takes classes, and a model without takes none")
        if classes is not None and not 0 <= classes.min() <= classes.max() < len(self.classes):
            raise ValueError(f"the {len(self.classes)} classes are 0 to {len(self.classes) - 1}")
        if not self.clusters:
            return classes
        return sample_clusters(self._shares(classes), samples, seed)

    def log_prior(self, classes: Sequence[int] | None = None) -> Tensor:
        """log p(k), float64 (K,): in proportion to the clusters' sizes, or equal for classes.

        classes: -inf for the conditions of other classes than these."""
        sizes = torch.ones(self.count, dtype=torch.float64)
        if self.clusters:
            sizes = torch.tensor(self.clusters, dtype=torch.float64) + 1e-6
        of = torch.tensor(self.class_of_cluster) if self.clusters else torch.arange(self.count)
        if classes is not None:
            sizes = sizes * torch.isin(of, torch.tensor(list(classes)))
        return sizes.log().log_softmax(0)

    def _shares(self, classes: Tensor | None) -> Tensor:
        """The relative size of each cluster: (K,), or (B, K) with classes (B,).

        In a class without training images all clusters are equally likely."""
        sizes = torch.tensor(self.clusters, dtype=torch.float64)
        if classes is None:
            return sizes
        return (sizes + 1e-6) * (torch.tensor(self.class_of_cluster) == classes[:, None])


LISTED = 20  # the most classes that an error lists


def nearest(value: str, names: tuple[str, ...]) -> str:
    """Which classes there are, for an error: all of them, or of many the most similar names."""
    if len(names) <= LISTED:
        counted = "" if all(map(str.isdecimal, names)) else f"0 to {len(names) - 1}: "
        return f"the classes are {counted}{', '.join(names)}"
    near = difflib.get_close_matches(value, names, n=5, cutoff=0) or names[:5]
    return f"there are {len(names)} classes; the nearest names are {', '.join(near)}"


def sample_clusters(sizes: Tensor, samples: Sequence[int], seed: int) -> Tensor:
    """Sample a cluster (B,) for each sample, in proportion to its size.

    sizes: (K,), or (B, K) with 0 for clusters that a sample cannot be in. The cluster is a function
    of its sizes, the seed and the sample's index alone."""
    share = sizes.double().cumsum(-1)
    share = (share / share[..., -1:]).expand(len(samples), -1).contiguous()
    # "group" was the word in version 0.1. It is kept: it is part of the key of the random stream.
    u = [[stream(seed, "group", sample).random()] for sample in samples]
    return torch.searchsorted(share, torch.tensor(u, dtype=torch.float64), right=True)[:, 0]
