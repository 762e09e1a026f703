"""The metrics of quality: each one function, with its name, caption, unit and direction.

A metric takes a `Comparison` and returns a figure: the value of the generated images with its 95%
interval, and that of as many real images, its control. The console, the report and metrics.json take
what they say of it from here.

To add one: a function with `@metric(...)` in this file, or in a script of your own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from undiffuse.base.cache import to_cache
from undiffuse.base.table import Table
from undiffuse.data.dataset import Dataset
from undiffuse.data.splits import random_part
from undiffuse.measuring import distances, features
from undiffuse.measuring.comparison import Comparison, labels_of, random_rows
from undiffuse.measuring.distances import Interval
from undiffuse.measuring.scorer import scorer_file, stored_scorer

if TYPE_CHECKING:
    from torch import Tensor

WORST = 20
"""The images that the classifier is least sure of, which are shown."""

Direction: TypeAlias = Literal["lower", "higher", "control"]
Measure: TypeAlias = "Callable[[Comparison], dict[str, Any] | None]"


@dataclass(frozen=True)
class Metric:
    """A metric of quality.

    name: its key in metrics.json. caption: what it is, for tables. unit: "" for a pure number.
    better: whether lower or higher values are better, or those nearest to the control's.
    measure: Comparison -> its figure, None where it cannot be given."""

    name: str
    caption: str
    unit: str
    better: Direction
    measure: Measure

    def __call__(self, comparison: Comparison) -> dict[str, Any] | None:
        return self.measure(comparison)

    @property
    def heading(self) -> str:
        """The caption with its unit."""
        return f"{self.caption} ({self.unit})" if self.unit else self.caption


METRICS = Table("metric")
"""The metrics by name."""


def metric(caption: str, *, better: Direction, unit: str = "") -> Callable[[Measure], Measure]:
    """Decorator: register a function as the metric of its name."""

    def register(measure: Measure) -> Measure:
        name = measure.__name__
        METRICS.named(name)(Metric(name, caption, unit, better, measure))
        return measure

    return register


def metric_of(name: str) -> Metric:
    """The metric called `name`. Raises UserError for an unknown name."""
    found = METRICS.function(name)
    assert isinstance(found, Metric)
    return found


def plain(figure: Interval) -> dict[str, float]:
    """A value with its interval, as it stands in metrics.json."""
    return {"value": figure.value, "low": figure.low, "high": figure.high}


def entry(
    figure: Interval, control: float | None, n: int, control_n: int, **others: Any
) -> dict[str, Any]:
    """A figure of n images as it stands in metrics.json, with its control of control_n images."""
    return {**plain(figure), "control": control, "n": n, "control_n": control_n, **others}


def quality(comparison: Comparison) -> tuple[dict[str, Any], list[str]]:
    """(the figures by the metrics' names, and the least sure images; warnings)."""
    c = comparison
    warnings, k = [], len(c.control)
    if c.network.name != features.DIGITS_NAME:
        stored = stored_scorer(c.network, c.training.features, c.test.features)
        to_cache(scorer_file(features.dataset_key(c.real.whole)), stored)
    if k < c.n:
        warnings.append(
            f"there are {k:,} {c.real.control} only: controls are of {k:,}, not of {c.n:,}, and so "
            "is the Frechet ratio"
        )
    if c.n < 2000:
        warnings.append(
            f"n = {c.n:,} is small: Frechet distance and class balance are biased upwards; compare "
            "them with the real ones, or use `frechet.unbiased`"
        )
    measured = {name: METRICS[name](c) for name in METRICS}
    found: dict[str, Any] = {name: figure for name, figure in measured.items() if figure}
    found["least_sure"] = least_sure(c)
    return found, warnings


def least_sure(c: Comparison) -> list[dict[str, Any]]:
    """The images that the classifier is least sure of."""
    confidence, predicted = c.generated.confidence, c.generated.predicted
    return [
        {
            "image": i,
            "confidence": confidence[i].item(),
            "taken_for": c.network.classes[predicted[i]],
        }
        for i in confidence.argsort(stable=True)[:WORST].tolist()
    ]


# --- The metrics ---


@metric("Frechet distance to the training images", better="lower")
def frechet(c: Comparison) -> dict[str, Any]:
    """Dowson & Landau 1982, Heusel et al. 2017 (arXiv:1706.08500), in the classifier's features.

    floor: that of real images that were not trained on. ratio: over the floor, at the floor's n."""
    x, z, k = c.generated.features, c.test.features, len(c.control)
    c.watch("Frechet and kernel distances", 0)
    distance = distances.frechet_interval(x, c.training_moments, c.seed)
    floor = distances.frechet_floor(z, c.training_moments, k, c.seed)
    same_n = distance
    if k != c.n:
        part = x[random_rows(c.n, k, c.seed)]
        same_n = distances.frechet_interval(part, c.training_moments, c.seed)
    ratios = {"ratio": same_n.value, "ratio_low": same_n.low, "ratio_high": same_n.high}
    return {
        **plain(distance),
        "unbiased": distances.extrapolated(distance),
        "floor": floor.value,
        "floor_low": floor.low,
        "floor_high": floor.high,
        "floor_unbiased": distances.extrapolated(floor),
        "floor_n": k,
        **{name: at / floor.value if floor.value else None for name, at in ratios.items()},
        "n": c.n,
    }


@metric("Frechet distance to the test images", better="lower")
def frechet_to_test(c: Comparison) -> dict[str, Any]:
    """The same to the test images; the control is that of training images."""
    moments, n = distances.moments(c.test.features), min(c.n, len(c.training.features))
    distance = distances.frechet_interval(c.generated.features, moments, c.seed)
    floor = distances.frechet_floor(c.training.features, moments, n, c.seed)
    return entry(distance, floor.value, c.n, n, unbiased=distances.extrapolated(distance))


@metric("kernel distance (KID)", better="lower")
def kid(c: Comparison) -> dict[str, Any]:
    """Binkowski et al. 2018 (arXiv:1801.01401), (4): without bias, so it may fall below 0."""
    c.watch("Frechet and kernel distances", 0.4)
    distance = distances.kid_interval(c.generated.features, c.training_powers, c.seed)
    real = distances.powers(c.test.features[c.control])
    return entry(distance, distances.kid(real, c.training_powers), c.n, len(c.control))


@metric("precision (k = 3)", better="higher")
def precision(c: Comparison) -> dict[str, Any]:
    """The share of generated images among real ones: Kynkaanniemi et al. 2019 (arXiv:1904.06991)."""
    m, ours, theirs = c.manifolds
    return entry(ours.precision, theirs.precision.value, m, m)


@metric("recall (k = 3)", better="higher")
def recall(c: Comparison) -> dict[str, Any]:
    """The share of real images among generated ones: Kynkaanniemi et al. 2019."""
    m, ours, theirs = c.manifolds
    return entry(ours.recall, theirs.recall.value, m, m)


@metric("density (k = 5)", better="control")
def density(c: Comparison) -> dict[str, Any]:
    """Real neighbourhoods around a generated image: Naeem et al. 2020 (arXiv:2002.09797)."""
    m, ours, theirs = c.manifolds
    return entry(ours.density, theirs.density.value, m, m)


@metric("coverage (k = 5)", better="higher")
def coverage(c: Comparison) -> dict[str, Any]:
    """The share of real images with a generated neighbour: Naeem et al. 2020."""
    m, ours, theirs = c.manifolds
    return entry(ours.coverage, theirs.coverage.value, m, m)


@metric("class balance: total variation from the data's", better="lower")
def class_balance(c: Comparison) -> dict[str, Any]:
    """Half the sum of differences between predicted class frequencies and those of the data."""
    predicted = c.generated.predicted
    control = distances.class_balance(c.test.predicted[c.control], c.expected, c.seed)
    counts = predicted.bincount(minlength=len(c.expected))
    return entry(
        distances.class_balance(predicted, c.expected, c.seed),
        control.value,
        c.n,
        len(c.control),
        frequencies=(counts / c.n).tolist(),
        classes=list(c.network.classes),
    )


@metric("classifier's mean confidence", better="control")
def confidence(c: Comparison) -> dict[str, Any]:
    """The mean probability of the likeliest class."""
    control = c.test.confidence[c.control].double().mean().item()
    mean = distances.mean_interval(c.generated.confidence, 0.0, 1.0)
    return entry(mean, control, c.n, len(c.control))


@metric("share of images it is less than 90% sure of", better="control")
def unsure(c: Comparison) -> dict[str, Any]:
    """Images that look like no class."""
    control = (c.test.confidence[c.control] < 0.9).double().mean().item()
    share = distances.share_interval(c.generated.confidence < 0.9)
    return entry(share, control, c.n, len(c.control))


@metric("share with the class that was asked for", better="higher")
def class_agreement(c: Comparison) -> dict[str, Any] | None:
    """By the classifier; the control is its accuracy on real images."""
    if c.classes is None:
        return None
    right = (c.test.predicted == labels_of(c.real.test)).double().mean().item()
    share = distances.share_interval(c.generated.predicted == c.classes)
    return entry(share, right, c.n, len(c.real.test))


@metric("classification accuracy score", better="higher")
def classification_accuracy_score(c: Comparison) -> dict[str, Any] | None:
    """The accuracy, on real test images, of a small classifier trained on generated images.

    Ravuri & Vinyals 2019 (arXiv:1905.10887). The control is the same trained on as many real images.
    The interval is that of the finite test set only."""
    if c.classes is None:
        return None
    training = c.real.training
    as_data = Dataset.of("generated", c.images, c.classes, training.classes)
    parts = (as_data, random_part(training, c.n, c.seed))
    hits = [accuracy_on_test(part, c, number) for number, part in enumerate(parts)]
    return entry(
        distances.share_interval(hits[0]),
        hits[1].double().mean().item(),
        c.n,
        min(c.n, len(training)),
        interval_of="the test images: other ones of the same kind, the classifier being what it is",
    )


def accuracy_on_test(dataset: Dataset, c: Comparison, number: int) -> Tensor:
    """Which test images a classifier trained on `dataset` gets right, bool (N,)."""

    def progress(done: float) -> None:
        c.watch("classification accuracy score", (number + done) / 2)

    network = features.train_classifier(
        dataset, seed=c.seed, width=16, epochs=4, augment=False, watch=progress
    )
    return features.correct(network, c.real.test)
