"""Evaluation: measures a run's samples, or the images of a file, and writes the results.

It measures three parts: the quality of the images, the likelihood of real images under the model,
and novelty, which is whether the model copies training images. The figures have a 95% interval.
Beside a figure stands the same figure of real images that were not trained on, its control or
floor. What cannot be measured is listed under `missing` with the reason.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from undiffuse import __version__
from undiffuse.base import engine, process
from undiffuse.base.errors import UserError
from undiffuse.base.files import as_path, refuse_unwritable, write_atomic
from undiffuse.base.given import check_numbers
from undiffuse.base.images import image_grid, png_bytes
from undiffuse.base.schema import finite
from undiffuse.data.splits import random_labels
from undiffuse.measuring import features
from undiffuse.measuring.bits import bits_per_dim
from undiffuse.measuring.comparison import Comparison
from undiffuse.measuring.copies import novelty_figures
from undiffuse.measuring.features import FeatureNetwork
from undiffuse.measuring.files import read_images
from undiffuse.measuring.quality import METRICS, quality
from undiffuse.measuring.reference import FEWEST, Reference, reference
from undiffuse.measuring.results import FORMAT, check_results
from undiffuse.measuring.watch import Stopwatch, Watch, unwatched
from undiffuse.model import Model, Request
from undiffuse.runs import destinations, figures
from undiffuse.runs.fitting import trained_on
from undiffuse.runs.folder import Run, Where

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Parts:
    """The parts of an evaluation that are measured."""

    quality: bool = True
    likelihood: bool = True
    novelty: bool = True


@process.undisturbed()
def evaluate(run: Where, n: int = 10_000, **options: Any) -> dict[str, Any]:
    """Evaluate a run by n samples. Writes metrics.json and returns its content.

    It is the command `undiffuse evaluate RUN` in Python. options: those of `evaluate_run`. Raises
    UserError where the run cannot be evaluated."""
    return evaluate_run(as_path(run), n, **options)


def evaluate_run(
    path: Path,
    n: int = 10_000,
    *,
    seed: int = 0,
    parts: Parts = Parts(),
    bits_images: int | None = None,
    ode_images: int = 500,
    save: str | None = None,
    data: str | None = None,
    watch: Watch = unwatched,
    **sampling: Any,
) -> dict[str, Any]:
    """Sample n images from a run and measure them. Writes metrics.json and pictures beside it.

    bits_images: test images for the bounds, None for all. ode_images: test images for the ODE's
    likelihood, 0 for none. save: a destination for the samples. data: where the run's data are now,
    if they have moved. sampling: options of `Model.request`, such as steps=12.

    Returns the content of metrics.json. Raises UserError before anything is written, except where
    a picture or the samples cannot be saved: metrics.json is written first."""
    watch = stopwatch = Stopwatch(watch)
    run = Run(path)
    config = run.about().config
    refuse_unwritable(run.path / "metrics.json")
    check(parts, n, seed, bits_images, ode_images)
    to = None if save is None else destinations.destination(save, "save")
    model = run.model()
    real = reference_of(run, data)
    request = request_of(model, real, n, seed, **sampling)
    found: dict[str, Any] = {}
    # With clusters the likelihood is that of the unconditional prediction.
    unknown = bool(model.description.conditioning.clusters) and not config.condition_dropout
    if parts.likelihood and not unknown:
        found["bits_per_dim"] = bits_per_dim(
            model.denoiser, real, chain=config.chain, n=bits_images, ode_images=ode_images,
            seed=seed, watch=watch,
        )  # fmt: skip
    generated: Tensor | None = None
    if parts.quality or parts.novelty or to is not None:
        generated, found["sampling"] = sampled(request, watch)
    of = {
        "run": path.resolve().name,
        "step": model.description.step,
        "conditional": bool(model.classes),
    }
    content, pictures = assembled(of, found, generated, request.classes, real, parts, seed, watch)
    if parts.likelihood and unknown:
        content["missing"]["bits_per_dim"] = (
            "the run was trained with --condition-dropout 0, so it has no unconditional prediction"
        )
    content["seconds"] = stopwatch.seconds()
    content = with_earlier(run.path / "metrics.json", content, parts)
    write_metrics(run.path / "metrics.json", content)
    for name, draw in pictures.items():
        run.write(name, draw())
    # Last: saving may fail, and the measurements took long.
    if to is not None and generated is not None:
        destinations.save_images(to, generated, request.classes, model.classes, request.note)
    return content


def reference_of(run: Run, data: str | None) -> Reference:
    """The real images of a run. data: where they are now, if they have moved."""
    config = run.about().config
    return reference(
        data or run.data_place(),
        config.size,
        lambda whole: trained_on(run, whole),
        background=config.background,
    )


def request_of(model: Model, real: Reference, n: int, seed: int, **sampling: Any) -> Request:
    """A request for n images. Classes are sampled at random from the training labels.

    With exact proportions the distance would have less sampling variance than real images have, and
    would look too good."""
    classes = None
    if model.classes:
        labels = random_labels(real.training, n, seed, "labels")
        classes = [model.classes[label] for label in labels]
    return model.request(n, classes, seed=seed, **sampling)


def sampled(request: Request, watch: Watch) -> tuple[Tensor, dict[str, Any]]:
    """(the images of a request, uint8 (n, C, H, W); `sampling` of metrics.json)."""
    begin, batches = time.monotonic(), []
    for batch in request.batches():
        batches.append(batch)
        watch("sampling images", sum(map(len, batches)) / request.n)
    how = {
        **{key: value for key, value in asdict(request.sampling).items() if key != "calls"},
        "guidance_interval": list(request.sampling.guidance_interval),  # as JSON has it
        "n": request.n,
        "network_calls": request.calls,
        "seconds": time.monotonic() - begin,
    }
    return torch.cat(batches), how


def evaluate_images(
    file: Path,
    spec: str,
    out: Path,
    *,
    size: int | None = None,
    parts: Parts = Parts(),
    seed: int = 0,
    watch: Watch = unwatched,
) -> dict[str, Any]:
    """Measure the images of any program, in an .npz file or a folder. Writes the results to `out`.

    spec: the data set to compare with. size: resize it to so many pixels a side. Pictures are
    written beside `out`. Returns the content of `out`. Raises UserError where the images cannot be
    measured, before anything is written."""
    parts = replace(parts, likelihood=False)  # the likelihood needs a model
    check(parts, FEWEST, seed, None, 0)
    if out.is_dir() or not out.name or out.resolve() == file.resolve():
        raise UserError(f"out={out}: give the name of a file for the metrics, such as metrics.json")
    if not out.parent.is_dir():
        raise UserError(f"out={out}: there is no folder {out.parent}; make it first")
    refuse_unwritable(out)
    if out.exists() and not are_results(out):
        raise UserError(
            f"out={out}: there is a file of that name that is no evaluation; choose another name"
        )
    real = reference(spec, size)
    generated, classes, notes = read_images(file, real.training)
    digest = hashlib.sha256(generated.numpy().tobytes() if file.is_dir() else file.read_bytes())
    content, pictures = assembled(
        {"images": file.resolve().name, "sha256": digest.hexdigest()},
        {},
        generated,
        classes,
        real,
        parts,
        seed,
        watch,
    )
    content["warnings"] = [*notes, *content["warnings"]]
    write_metrics(out, content)
    for name, draw in pictures.items():
        write_atomic(out.with_name(f"{out.stem}-{name}"), draw())
    return content


def assembled(
    of: dict[str, Any],
    found: dict[str, Any],
    generated: Tensor | None,
    classes: Tensor | None,
    real: Reference,
    parts: Parts,
    seed: int,
    watch: Watch,
) -> tuple[dict[str, Any], dict[str, Callable[[], bytes]]]:
    """(the content of metrics.json; what draws each picture, a PNG file, by file name).

    of: what is evaluated. found: the figures so far, to which quality and novelty are added.
    generated: images uint8 (n, C, H, W), with classes (n,), or None."""
    missing: dict[str, str] = {}
    warnings: list[str] = []
    pictures: dict[str, Callable[[], bytes]] = {}
    if "bits_per_dim" in found:
        pictures["bits.png"] = partial(figures.bits_by_level, found["bits_per_dim"])
    network = None
    if generated is not None and (parts.quality or parts.novelty):
        network = features.feature_network(
            real.whole, real.training, lambda done: watch("training the feature network", done)
        )
        if network is None:
            why = "has no labels" if not real.training.classes else "has one class only"
            missing["quality"] = (
                f"the data set {why}, so no feature network can be trained on it; novelty is given "
                "in pixels"
            )
    if generated is not None and parts.quality and network is not None:
        comparison = Comparison(generated, classes, real, network, seed, watch)
        measured, warnings = quality(comparison)
        found |= measured
        worst = generated[[one["image"] for one in measured["least_sure"]]]
        pictures["unsure.png"] = partial(sheet, worst)
        for name in (name for name in METRICS if name not in measured):
            missing[name] = "the images were sampled without classes"
    if generated is not None and parts.novelty:
        found["novelty"], pairs = novelty_figures(generated, real, network, watch=watch)
        pictures["novelty.png"] = partial(sheet, pairs)
    return {**head_of(of, real, network, seed, warnings, missing), **found}, pictures


def sheet(images: Tensor) -> bytes:
    """Images in rows of ten, as a PNG file that is marked as drawn, so that it is never data."""
    return png_bytes(image_grid(images, columns=10), {})


def head_of(
    of: dict[str, Any],
    real: Reference,
    network: FeatureNetwork | None,
    seed: int,
    warnings: list[str],
    missing: dict[str, str],
) -> dict[str, Any]:
    """The part of metrics.json that describes the evaluation."""
    return {
        "format": FORMAT,
        "undiffuse": __version__,
        "of": of,
        "seed": seed,
        "features": None if network is None else {"name": network.name, "sha256": network.sha256},
        "reference": {
            "name": real.training.name,
            "training": len(real.training),
            "test": len(real.test),
            "seen": len(real.seen),
            "unseen": len(real.unseen),
            "control": real.control,
        },
        "machine": engine.machine_facts(),
        "warnings": warnings,
        "missing": missing,
    }


def with_earlier(path: Path, content: dict[str, Any], parts: Parts) -> dict[str, Any]:
    """The content, with those parts of an earlier evaluation that were not measured again.

    The earlier one must be of the same weights. Quality and novelty are of the same images, so
    neither is kept where the other is measured again."""
    try:
        old = check_results(json.loads(path.read_bytes()))
        if (old["format"], old["of"]) != (content["format"], content["of"]):
            return content
    except (OSError, ValueError, KeyError, TypeError):
        return content
    if not parts.quality and not parts.novelty:
        return old | {k: v for k, v in content.items() if k == "bits_per_dim"}
    if not parts.likelihood and "bits_per_dim" in old:
        return {**content, "bits_per_dim": old["bits_per_dim"]}
    return content


def are_results(path: Path) -> bool:
    """Whether a file holds the results of an evaluation, of this version or another."""
    try:
        return "undiffuse" in json.loads(path.read_bytes())
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def write_metrics(path: Path, content: dict[str, Any]) -> None:
    """Write metrics.json. The content is checked first, so what is written can be read."""
    plain = check_results(finite(content))
    write_atomic(path, json.dumps(plain, indent=2, allow_nan=False).encode())


def check(parts: Parts, n: int, seed: int, bits_images: int | None, ode_images: int) -> None:
    """Raises UserError for options with which nothing can be measured."""
    if not (parts.quality or parts.likelihood or parts.novelty):
        raise UserError(
            "without quality, likelihood and novelty there is nothing to measure; switch one of "
            "them on"
        )
    if n < FEWEST:
        raise UserError(
            f"n must be at least {FEWEST}, not {n}: fewer images are too few for a statistic"
        )
    check_numbers(n, seed)
    if bits_images is not None and bits_images < 2:
        raise UserError(
            f"bits_images must be at least 2, not {bits_images}: one image gives no interval"
        )
    if ode_images < 0 or ode_images == 1:
        raise UserError(
            f"ode_images must be 0 or at least 2, not {ode_images}: one image gives no interval"
        )
