"""The audit for copies: are generated images new, or copies of training images?

This module computes the audit's figures and finds the images to show. The distances and the tests
are in `novelty`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from undiffuse.base.cache import from_cache, to_cache
from undiffuse.measuring import distances, features, novelty
from undiffuse.measuring.comparison import random_rows
from undiffuse.measuring.features import FeatureNetwork
from undiffuse.measuring.quality import entry
from undiffuse.measuring.reference import Reference
from undiffuse.measuring.watch import Watch, unwatched

if TYPE_CHECKING:
    from torch import Tensor

PAIRS = 20
"""Generated images that are shown: those most likely to be copies."""


def novelty_figures(
    generated: Tensor, real: Reference, network: FeatureNetwork | None, *, watch: Watch = unwatched
) -> tuple[dict[str, Any], Tensor]:
    """(the audit's figures, pairs of images).

    generated: uint8 (n, C, H, W). network: None where the data set has no feature network; then the
    figures in feature space are left out.

    The pairs are uint8 (2 PAIRS, C, H, W), fewer where n is less than PAIRS: the generated images
    most likely to be copies, each followed by its nearest training image."""
    stage = "nearest training images"
    of_generated = novelty.nearest_images(
        generated, real.seen.images, lambda done: watch(stage, done / 2)
    )
    of_test = control_neighbours(real, lambda done: watch(stage, (1 + done) / 2))
    alarm = novelty.audit(of_generated.ratio, of_test.ratio)
    halves = random_rows(len(of_test.ratio), len(of_test.ratio), 0).chunk(2)
    control = novelty.audit(of_test.ratio[halves[0]], of_test.ratio[halves[1]])
    share = distances.share_interval(of_generated.ratio < alarm.threshold)
    found: dict[str, Any] = {
        "alarm": alarm.raised,
        "p_value": alarm.p_value,
        "share": share.value,
        "share_low": share.low,
        "share_high": share.high,
        "expected": alarm.expected,
        "threshold": alarm.threshold,
        "detectable": novelty.detectable_share(len(generated), len(of_test.ratio)),
        "n": len(generated),
        "control": {"alarm": control.raised, "p_value": control.p_value, "n": len(halves[0])},
        "ratio": quantiles(of_generated.ratio, of_test.ratio),
        "distance": quantiles(of_generated.distance[:, 0], of_test.distance[:, 0]),
        "pixels": nearness(of_generated.distance[:, 0], of_test.distance[:, 0], None, None, halves),
    }
    if network is not None:
        watch("nearest features", 0)
        x, x_classes = network(generated)
        y, _ = features.reference_features(network, real.seen)
        z, z_classes = features.reference_features(network, real.unseen)
        cells = x_classes.argmax(dim=1), z_classes.argmax(dim=1)
        found["pixels"] = nearness(
            of_generated.distance[:, 0], of_test.distance[:, 0], *cells, halves
        )
        near_x, near_z = novelty.nearest_features(x, y), novelty.nearest_features(z, y)
        found["features"] = nearness(near_x, near_z, *cells, halves)
    chosen = novelty.closest(of_generated, min(PAIRS, len(generated)))
    found["closest"] = [
        {
            "image": i,
            "training": of_generated.nearest[i, 0].item(),
            "d1": of_generated.distance[i, 0].item(),
            "d2": of_generated.distance[i, 1].item(),
        }
        for i in chosen.tolist()
    ]
    originals = real.seen.images[of_generated.nearest[chosen, 0]]
    return found, torch.stack([generated[chosen], originals], dim=1).flatten(0, 1)


def quantiles(values: Tensor, control: Tensor) -> dict[str, list[float]]:
    """The 1st, 10th, 50th and 90th percentiles of values (n,) and of the control (m,)."""
    at = torch.tensor([0.01, 0.1, 0.5, 0.9], dtype=torch.float64)
    return {
        "quantiles": at.tolist(),
        "value": values.double().quantile(at).tolist(),
        "control": control.double().quantile(at).tolist(),
    }


def nearness(
    near: Tensor,
    test: Tensor,
    cells: Tensor | None,
    test_cells: Tensor | None,
    halves: tuple[Tensor, ...],
) -> dict[str, Any]:
    """C_T, and the share of images nearer to the training images than 99% of real images.

    near, test: the distance to the nearest training image of each generated image (n,) and of each
    test image (m,). cells, test_cells: their classes, or None. halves: the rows of two halves of
    the test images. The control compares one half with the other."""
    both = None if cells is None or test_cells is None else (cells, test_cells)
    a, b = halves
    control_cells = None if test_cells is None else (test_cells[a], test_cells[b])
    c_t, control = novelty.c_t(near, test, both), novelty.c_t(test[a], test[b], control_cells)
    share = distances.share_interval(near < test.double().quantile(0.01))
    return {
        "c_t": {
            "value": c_t if math.isfinite(c_t) else None,
            "control": control if math.isfinite(control) else None,
        },
        "nearer": entry(share, novelty.nearer_share(test[a], test[b]), len(near), len(a)),
    }


def control_neighbours(real: Reference, watch: Callable[[float], None]) -> novelty.Neighbours:
    """The nearest training images of the unseen real images.

    They are kept in the cache. watch: called with the share done."""
    keys = "-".join(features.dataset_key(part)[:16] for part in (real.seen, real.unseen))
    name = f"neighbours-{novelty.RECIPE}-{keys}.safetensors"
    found = from_cache(
        name, lambda tensors, metadata: novelty.Neighbours(tensors["nearest"], tensors["distance"])
    )
    if found is None:
        found = novelty.nearest_images(real.unseen.images, real.seen.images, watch)
        to_cache(name, (found._asdict(), {}))
    return found
