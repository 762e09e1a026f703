"""Conditioning: what the network is told about an image, and what a user can ask for.

A user asks for a **class**, by number or name. Inside, the network may be conditioned on something
finer: **clusters** of similar training images. With clusters the model is a mixture,

    p(x) = sum over k of p(k) p(x | k),            p(k) the share of training images in cluster k,
    p(x | class) = sum over k in the class of p(k | class) p(x | k),

and an image is sampled from it by sampling a cluster first. Only this file knows both: every
public function takes classes. (Groups of features in place of labels: Bao et al. 2022,
arXiv:2212.00362; Hu et al. 2023, arXiv:2210.06462.)

Where there are K conditions, number K stands for "unconditional".
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Field

from undiffuse.base.errors import UserError
from undiffuse.base.lazy import lazy
from undiffuse.base.rng import stream

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor
else:
    np, torch = lazy("numpy"), lazy("torch")

Kind: TypeAlias = Literal["class", "sub-class cluster", "cluster"]
Count: TypeAlias = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Conditioning:
    """What the network of a model is conditioned on.

    classes: the names of the classes that a user can ask for; empty in a model without classes.
    clusters: the number of training images in each cluster; empty in a model without clusters.
    class_of_cluster: the class of each cluster, where there are classes.
    unconditional: whether the network also learns to denoise without a condition.
    Raises ValueError where the clusters are not parts of the classes."""

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
        """K, the number of conditions beside "unconditional". 0: the network takes none."""
        return len(self.clusters) or len(self.classes)

    @property
    def kind(self) -> Kind | None:
        """What a condition is. None: the network takes none."""
        if self.clusters:
            return "sub-class cluster" if self.classes else "cluster"
        return "class" if self.classes else None

    @property
    def guidable(self) -> bool:
        """Whether there are a conditional and an unconditional prediction to guide between."""
        return self.count > 0 and self.unconditional

    def class_numbers(self, classes: Any) -> list[int]:
        """The numbers of `classes`: numbers, names, or numbers as text; one, or a sequence.

        A name counts before a number as text. Raises UserError for a class that there is not."""
        given = np.atleast_1d(
            np.asarray(classes, dtype=object)
        )  # one, a list, an array or a tensor
        if not self.classes:
            raise UserError(
                "this model was trained without class labels, so it cannot be asked for a class; "
                "train a run with --conditional"
            )
        if given.ndim > 1:
            shape = " x ".join(map(str, given.shape))
            raise UserError(f"classes must be a list, not a table of {shape}")
        if not len(given):
            raise UserError("classes is an empty list; name at least one class")
        return [self._class_number(value) for value in given]

    def _class_number(self, value: object) -> int:
        names = self.classes
        if isinstance(value, str):
            as_number = int(value) if value.isdecimal() else -1
            number = names.index(value) if value in names else as_number
        else:
            number = operator.index(value) if hasattr(value, "__index__") else -1
        if not 0 <= number < len(names):
            listed = f"0 to {len(names) - 1}: {', '.join(names)}"
            raise UserError(f"there is no class {value}; the classes are {listed}")
        return number

    def sample(self, classes: Tensor | None, samples: Sequence[int], seed: int) -> Tensor | None:
        """The condition (B,) of each image: its class, or a cluster sampled in proportion to size.

        classes: (B,) class numbers, where the model has classes; else None. samples: the index of
        each image. A cluster is a function of class, seed and index alone. None: no condition."""
        if (classes is None) == bool(self.classes):
            raise ValueError("a model with classes takes classes, and a model without takes none")
        if classes is not None and not 0 <= classes.min() <= classes.max() < len(self.classes):
            raise ValueError(f"the {len(self.classes)} classes are 0 to {len(self.classes) - 1}")
        if not self.clusters:
            return classes
        return sample_clusters(self._shares(classes), samples, seed)

    def _shares(self, classes: Tensor | None) -> Tensor:
        """How often each cluster is sampled, up to a factor: (K,), or (B, K) with classes (B,).

        In a class without training images all clusters are equally likely."""
        sizes = torch.tensor(self.clusters, dtype=torch.float64)
        if classes is None:
            return sizes
        return (sizes + 1e-6) * (torch.tensor(self.class_of_cluster) == classes[:, None])


def sample_clusters(sizes: Tensor, samples: Sequence[int], seed: int) -> Tensor:
    """A cluster (B,) for each sample, in proportion to size; a function of seed and sample alone.

    sizes: (K,), or (B, K) with 0 for clusters that a sample cannot be in."""
    share = sizes.double().cumsum(-1)
    share = (share / share[..., -1:]).expand(len(samples), -1).contiguous()
    u = [[stream(seed, "group", sample).random()] for sample in samples]  # the key of 0.1
    return torch.searchsorted(share, torch.tensor(u, dtype=torch.float64), right=True)[:, 0]
