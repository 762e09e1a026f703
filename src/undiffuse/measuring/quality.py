"""The metrics of quality. Each is one function with a name, a caption, a unit and a direction.

A metric takes a `Comparison` and returns a figure: the value of the generated images, its 95%
interval, and its control. The control is the value of as many real images. The console, the report
and metrics.json take a metric's name, caption and unit from here.

To add a metric, write a function with `@metric(...)` in this file or in your own script.
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
"""Images that are shown: those that the classifier is least sure of."""

Direction: TypeAlias = Literal["lower", "higher", "control"]
Measure: TypeAlias = "Callable[[Comparison], dict[str, Any] | None]"


@dataclass(frozen=True)
class Metric:
    """A metric of quality.

    name: its key in metrics.json. caption: its name in tables. unit: "" for a pure number.
    better: whether lower values, higher values or values near the control's are better.
    measure: Comparison -> figure; None where the metric does not apply."""

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
    """Decorator: register a function as a metric. The function's name is the metric's."""

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
    """A value with its interval, for metrics.json."""
    return {"value": figure.value, "low": figure.low, "high": figure.high}


def entry(
    figure: Interval, control: float | None, n: int, control_n: int, **others: Any
) -> dict[str, Any]:
    """A figure of n images with its control of control_n images, for metrics.json."""
    return {**plain(figure), "control": control, "n": n, "control_n": control_n, **others}


def quality(comparison: Comparison) -> tuple[dict[str, Any], list[str]]:
    """(the figures by the metrics' names and the least sure images, warnings).

    For a data set with its own feature network, the scorer for quality during training is kept in
    the cache."""
    c = comparison
    warnings, k = [], len(c.control)
    if c.network.name != features.DIGITS_NAME:
        stored = stored_scorer(c.network, c.training.features, c.test.features)
        to_cache(scorer_file(features.dataset_key(c.real.whole)), stored)
    if k < c.n:
        warnings.append(
            f"the control ({c.real.control}) has only {k:,} images: controls and the Frechet ratio "
            f"are of {k:,} images, not of {c.n:,}"
        )
    if c.n < 2000:
        warnings.append(
            f"n = {c.n:,} is small: Frechet distance and class balance are biased upwards; compare "
            "them with those of real images, or use `frechet.unbiased`"
        )
    measured = {name: METRICS[name](c) for name in METRICS}
    found: dict[str, Any] = {name: figure for name, figure in measured.items() if figure}
    found["least_sure"] = least_sure(c)
    return found, warnings


def least_sure(c: Comparison) -> list[dict[str, Any]]:
    """The images with the lowest confidence of the classifier, the lowest first."""
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

    floor: the distance of real images that were not trained on. ratio: the distance divided by the
    floor, both at floor_n images."""
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
    """The Frechet distance to the test images. The control is that of training images."""
    moments, n = distances.moments(c.test.features), min(c.n, len(c.training.features))
    distance = distances.frechet_interval(c.generated.features, moments, c.seed)
    floor = distances.frechet_floor(c.training.features, moments, n, c.seed)
    return entry(distance, floor.value, c.n, n, unbiased=distances.extrapolated(distance))


@metric("kernel distance (KID)", better="lower")
def kid(c: Comparison) -> dict[str, Any]:
    """Binkowski et al. 2018 (arXiv:1801.01401), (4). It is unbiased, so it may be below 0."""
    c.watch("Frechet and kernel distances", 0.4)
    distance = distances.kid_interval(c.generated.features, c.training_powers, c.seed)
    real = distances.powers(c.test.features[c.control])
    return entry(distance, distances.kid(real, c.training_powers), c.n, len(c.control))


@metric("precision (k = 3)", better="higher")
def precision(c: Comparison) -> dict[str, Any]:
    """The share of generated images near a real image.

    Kynkaanniemi et al. 2019 (arXiv:1904.06991)."""
    m, ours, theirs = c.manifolds
    return entry(ours.precision, theirs.precision.value, m, m)


@metric("recall (k = 3)", better="higher")
def recall(c: Comparison) -> dict[str, Any]:
    """The share of real images near a generated image: Kynkaanniemi et al. 2019."""
    m, ours, theirs = c.manifolds
    return entry(ours.recall, theirs.recall.value, m, m)


@metric("density (k = 5)", better="control")
def density(c: Comparison) -> dict[str, Any]:
    """The number of real neighbourhoods around a generated image, divided by k.

    Naeem et al. 2020 (arXiv:2002.09797)."""
    m, ours, theirs = c.manifolds
    return entry(ours.density, theirs.density.value, m, m)


@metric("coverage (k = 5)", better="higher")
def coverage(c: Comparison) -> dict[str, Any]:
    """The share of real images with a generated image in their neighbourhood: Naeem et al. 2020."""
    m, ours, theirs = c.manifolds
    return entry(ours.coverage, theirs.coverage.value, m, m)


@metric("class balance: total variation from the data's", better="lower")
def class_balance(c: Comparison) -> dict[str, Any]:
    """Half the sum of absolute differences between predicted class frequencies and the data's."""
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
    """The mean probability of the most probable class."""
    control = c.test.confidence[c.control].double().mean().item()
    mean = distances.mean_interval(c.generated.confidence, 0.0, 1.0)
    return entry(mean, control, c.n, len(c.control))


@metric("share of images it is less than 90% sure of", better="control")
def unsure(c: Comparison) -> dict[str, Any]:
    """The share of images whose most probable class has a probability below 0.9."""
    control = (c.test.confidence[c.control] < 0.9).double().mean().item()
    share = distances.share_interval(c.generated.confidence < 0.9)
    return entry(share, control, c.n, len(c.control))


@metric("share with the class that was asked for", better="higher")
def class_agreement(c: Comparison) -> dict[str, Any] | None:
    """The share of images that the classifier assigns the class they were conditioned on.

    The control is the classifier's accuracy on real images."""
    if c.classes is None:
        return None
    right = (c.test.predicted == labels_of(c.real.test)).double().mean().item()
    share = distances.share_interval(c.generated.predicted == c.classes)
    return entry(share, right, c.n, len(c.real.test))


@metric("classification accuracy score", better="higher")
def classification_accuracy_score(c: Comparison) -> dict[str, Any] | None:
    """The accuracy, on real test images, of a small classifier trained on generated images.

    Ravuri & Vinyals 2019 (arXiv:1905.10887). The control is the accuracy of the same classifier
    trained on as many real images. The interval covers other test images only."""
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
        interval_of="the test images: other images of the same kind, with the same classifier",
    )


def accuracy_on_test(dataset: Dataset, c: Comparison, number: int) -> Tensor:
    """Which test images a classifier trained on `dataset` gets right, bool (N,)."""

    def progress(done: float) -> None:
        c.watch("classification accuracy score", (number + done) / 2)

    network = features.train_classifier(
        dataset, seed=c.seed, width=16, epochs=4, augment=False, watch=progress
    )
    return features.correct(network, c.real.test)
