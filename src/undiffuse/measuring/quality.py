"""Evaluation: how good generated images are, how likely the model holds real ones, and whether it copies.

Every figure comes with its 95% interval, and beside it the same figure of real images that were not trained on, at the
same number of images: its control, or floor. What cannot be given for a data set is listed with the reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from undiffuse.base import rng
from undiffuse.base.cache import to_cache
from undiffuse.data.dataset import Dataset
from undiffuse.data.splits import random_part
from undiffuse.measuring import distances, features
from undiffuse.measuring.distances import Interval
from undiffuse.measuring.features import FeatureNetwork
from undiffuse.measuring.reference import Reference
from undiffuse.measuring.scorer import scorer_file, stored_scorer
from undiffuse.measuring.watch import Watch, unwatched

if TYPE_CHECKING:
    from torch import Tensor

MANIFOLD = 10_000
"""Most images that neighbours are compared among: the distances take 4 bytes for every pair."""


WORST = 20
"""The images that the classifier is least sure of, which are shown."""


def plain(figure: Interval) -> dict[str, float]:
    return {"value": figure.value, "low": figure.low, "high": figure.high}


def entry(
    figure: Interval, control: float | None, n: int, control_n: int, **others: Any
) -> dict[str, Any]:
    """A figure of n images as it stands in metrics.json, with its control."""
    return {**plain(figure), "control": control, "n": n, "control_n": control_n, **others}


def quality(
    generated: Tensor,
    label: Tensor | None,
    real: Reference,
    network: FeatureNetwork,
    *,
    seed: int = 0,
    watch: Watch = unwatched,
) -> tuple[dict[str, Any], list[str]]:
    """(the figures, warnings) of images uint8 (n, C, H, W), with the labels that they were asked to have, if any."""
    n, warnings = len(generated), []
    watch("features", 0)
    x, x_classes = network(generated)
    watch("features", 0.2)
    y, _ = features.reference_features(network, real.training)
    watch("features", 0.9)
    z, z_classes = features.reference_features(network, real.test)
    if network.name != features.DIGITS_NAME:
        to_cache(scorer_file(features.dataset_key(real.whole)), stored_scorer(network, y, z))
    control = random_rows(len(z), n, seed)
    k = len(control)
    if k < n:
        warnings.append(
            f"there are {k:,} {real.control} only: controls are of {k:,}, not of {n:,}, and so is the Frechet ratio"
        )
    if n < 2000:
        warnings.append(
            f"n = {n:,} is small: Frechet distance and class balance are biased upwards; compare them with the real ones, "
            "or use `frechet.unbiased`"
        )

    watch("Frechet and kernel distances", 0)
    y_moments, z_moments = distances.moments(y), distances.moments(z)
    distance = distances.frechet_interval(x, y_moments, seed)
    floor = distances.frechet_floor(z, y_moments, k, seed)
    to_test = distances.frechet_interval(x, z_moments, seed)
    test_floor = distances.frechet_floor(y, z_moments, min(n, len(y)), seed)
    same_n = (
        distance
        if k == n
        else distances.frechet_interval(x[random_rows(n, k, seed)], y_moments, seed)
    )
    watch("Frechet and kernel distances", 0.4)
    y_powers = distances.powers(y)
    kernel = distances.kid_interval(x, y_powers, seed)
    found: dict[str, Any] = {
        "frechet": {
            **plain(distance),
            "unbiased": distances.extrapolated(distance),
            "floor": floor.value,
            "floor_low": floor.low,
            "floor_high": floor.high,
            "floor_unbiased": distances.extrapolated(floor),
            "floor_n": k,
            **{
                name: at / floor.value if floor.value else None
                for name, at in (
                    ("ratio", same_n.value),
                    ("ratio_low", same_n.low),
                    ("ratio_high", same_n.high),
                )
            },
            "n": n,
        },
        "frechet_to_test": entry(
            to_test, test_floor.value, n, min(n, len(y)), unbiased=distances.extrapolated(to_test)
        ),
        "kid": entry(kernel, distances.kid(distances.powers(z[control]), y_powers), n, k),
    }

    watch("precision and recall", 0)
    m = min(n, len(y), len(z), MANIFOLD)
    real_part = y[random_rows(len(y), m, seed + 1)]
    ours = distances.manifold(x[random_rows(n, m, seed)], real_part, seed=seed)
    watch("precision and recall", 0.6)
    theirs = distances.manifold(z[random_rows(len(z), m, seed)], real_part, seed=seed, count=2)
    found |= {
        name: entry(figure, control_figure.value, m, m)
        for name, figure, control_figure in zip(ours._fields, ours, theirs, strict=True)
    }

    expected = torch.bincount(labels_of(real.training), minlength=len(network.classes))
    predicted, control_predicted = x_classes.argmax(dim=1), z_classes[control].argmax(dim=1)
    found["class_balance"] = entry(
        distances.class_balance(predicted, expected, seed),
        distances.class_balance(control_predicted, expected, seed).value,
        n,
        k,
        frequencies=(torch.bincount(predicted, minlength=len(expected)) / n).tolist(),
        classes=list(network.classes),
    )
    sure, control_sure = x_classes.amax(dim=1), z_classes[control].amax(dim=1)
    found["confidence"] = entry(
        distances.mean_interval(sure, 0.0, 1.0), control_sure.double().mean().item(), n, k
    )
    least = sure.argsort(stable=True)[:WORST]
    found["least_sure"] = [
        {"image": i, "confidence": sure[i].item(), "taken_for": network.classes[predicted[i]]}
        for i in least.tolist()
    ]
    found["unsure"] = entry(
        distances.share_interval(sure < 0.9), (control_sure < 0.9).double().mean().item(), n, k
    )
    if label is not None:
        right = (z_classes.argmax(dim=1) == labels_of(real.test)).double().mean().item()
        found["label_agreement"] = entry(
            distances.share_interval(predicted == label), right, n, len(z)
        )
        found["train_on_synthetic"] = train_on_synthetic(
            generated, label, real, seed=seed, watch=watch
        )
    return found, warnings


def random_rows(total: int, n: int, seed: int) -> Tensor:
    """n of `total` numbers at random, or all of them."""
    return torch.from_numpy(rng.stream(seed, "rows").permutation(total)[:n].copy())


def labels_of(dataset: Dataset) -> Tensor:
    assert dataset.labels is not None
    return dataset.labels


def train_on_synthetic(
    generated: Tensor, label: Tensor, real: Reference, *, seed: int, watch: Watch
) -> dict[str, Any]:
    """The accuracy, on the real test images, of a small classifier trained on generated images and the labels that were
    asked for; the control is the same trained on as many real ones. Ravuri & Vinyals 2019 (arXiv:1905.10887).

    The interval is that of the finite test set only."""
    scores = []
    as_data = Dataset.of("generated", generated, label, real.training.classes)
    for part, dataset in enumerate((as_data, random_part(real.training, len(generated), seed))):
        network = features.train_classifier(
            dataset,
            seed=seed,
            width=16,
            epochs=4,
            augment=False,
            watch=lambda done, part=part: watch(
                "train on synthetic, test on real", (part + done) / 2
            ),  # type: ignore[misc]
        )
        scores.append(features.correct(network, real.test))
    return entry(
        distances.share_interval(scores[0]),
        scores[1].double().mean().item(),
        len(generated),
        min(len(generated), len(real.training)),
        interval_of="the test images: other ones of the same kind, the classifier being what it is",
    )
