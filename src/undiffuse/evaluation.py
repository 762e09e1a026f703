"""Evaluation: how good generated images are, how likely the model holds real ones, and whether it copies.

Every figure comes with its 95% interval, and beside it the same figure of real images that were not trained on, at the
same number of images: its control, or floor. What cannot be given for a data set is listed with the reason.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from undiffuse import (
    __version__,
    api,
    data,
    features,
    figures,
    files,
    images,
    likelihood,
    machine,
    metrics,
    novelty,
    rng,
)
from undiffuse.data import Dataset
from undiffuse.errors import UserError
from undiffuse.features import FeatureNetwork
from undiffuse.metrics import Interval
from undiffuse.run import Run

if TYPE_CHECKING:
    from torch import Tensor

    from undiffuse.denoiser import Denoiser

FEWEST = 100
"""Fewer images than this give no statistic worth the name."""

MANIFOLD = 10_000
"""Most images that neighbours are compared among: the distances take 4 bytes for every pair."""

TRAINING_BITS = 2_000
"""Training images on which the bound is taken, for the gap to the test set."""

PAIRS = 20
Watch = Callable[[str, float], None]


def unwatched(stage: str, done: float) -> None:
    pass


@dataclass(frozen=True)
class Reference:
    """Real images: those of the data set's training part, the ones `seen` by the run among them, and `test`, on which
    nothing was trained; `control` says what these are."""

    training: Dataset
    seen: Dataset
    test: Dataset
    control: str


def reference(spec: str, size: int | None = None, run: Run | None = None) -> Reference:
    """The real images of a data set, or of a run on it. Raises UserError where the data are not those of the run."""
    training = data.load(spec, size)
    if run is None:
        seen, held_out = training, None
    else:
        from undiffuse.session import prepare

        about = run.about()
        seen, held_out, facts = prepare(about.config)
        if facts != about.facts:
            raise UserError(
                f"{run.path} was trained on other images than '{spec}' holds now; bring those back to evaluate it"
            )
    try:
        return Reference(training, seen, data.load(spec, size, split="test"), "test set")
    except UserError:
        pass
    if held_out is None:
        training, held_out = data.split(training, seed=0)
        seen = training
    if len(held_out) < FEWEST:
        raise UserError(
            f"'{spec}' has no test set and only {len(held_out)} images are held out of it, too few for a control; "
            f"give at least {20 * FEWEST} images"
        )
    return Reference(seen, seen, held_out, "held-out images")


def random_part(dataset: Dataset, n: int, seed: int) -> Dataset:
    """n images chosen at random, or all where there are no more."""
    if n >= len(dataset):
        return dataset
    return dataset.take(torch.from_numpy(rng.stream(seed, "part").permutation(len(dataset))[:n]).sort().values)


def entry(figure: Interval, control: float | None = None, **others: Any) -> dict[str, Any]:
    """A figure as it stands in metrics.json."""
    return {"value": figure.value, "low": figure.low, "high": figure.high, "control": control, **others}


# --- Quality ---


def quality(
    generated: Tensor,
    label: Tensor | None,
    real: Reference,
    network: FeatureNetwork,
    *,
    prescribed: bool = False,
    seed: int = 0,
    watch: Watch = unwatched,
) -> tuple[dict[str, Any], list[str]]:
    """(the figures, warnings) of images uint8 (n, C, H, W), with the labels that they were asked to have, if any.

    prescribed: how many there are of each label is no accident."""
    groups = label if prescribed else None
    n, warnings = len(generated), []
    watch("features", 0)
    x, x_classes = network(generated)
    watch("features", 0.2)
    y, _ = features.reference_features(network, real.training)
    watch("features", 0.9)
    z, z_classes = features.reference_features(network, real.test)
    if network.name != features.DIGITS_NAME:
        features.save_scorer(features.scorer_path(features.dataset_key(real.training)), network, y, z)
    control = random_rows(len(z), n, seed)
    if len(control) < n:
        warnings.append(
            f"there are {len(z):,} {real.control} only, so the Frechet floor is at n = {len(z):,}, not {n:,}"
        )
    if n < 2000:
        warnings.append(
            f"n = {n:,} is small: the Frechet distance is biased upwards; compare it with the floor, or use `unbiased`"
        )

    watch("Frechet and kernel distances", 0)
    y_moments, z_moments = metrics.moments(y), metrics.moments(z)
    distance = metrics.frechet_interval(x, y_moments, seed, groups=groups)
    floor = metrics.frechet_interval(z[control], y_moments, seed)
    to_test = metrics.frechet_interval(x, z_moments, seed, groups=groups)
    watch("Frechet and kernel distances", 0.4)
    y_powers = metrics.powers(y)
    kernel = metrics.kid_interval(x, y_powers, seed, groups=groups)
    found: dict[str, Any] = {
        "frechet": {
            "value": distance.value,
            "low": distance.low,
            "high": distance.high,
            "unbiased": metrics.extrapolated(distance),
            "floor": floor.value,
            "floor_low": floor.low,
            "floor_high": floor.high,
            "floor_n": len(control),
            "ratio": distance.value / floor.value,
            "to_test": {"value": to_test.value, "low": to_test.low, "high": to_test.high},
            "n": n,
        },
        "kid": entry(kernel, metrics.kid(metrics.powers(z[control]), y_powers), n=n),
    }

    watch("precision and recall", 0)
    m = min(n, len(y), len(z), MANIFOLD)
    real_part = y[random_rows(len(y), m, seed + 1)]
    ours = metrics.manifold(x[random_rows(n, m, seed)], real_part, seed=seed)
    watch("precision and recall", 0.6)
    theirs = metrics.manifold(z[random_rows(len(z), m, seed)], real_part, seed=seed, count=2)
    found |= {
        name: entry(figure, control_figure.value, n=m)
        for name, figure, control_figure in zip(ours._fields, ours, theirs, strict=True)
    }

    expected = torch.bincount(labels_of(real.training), minlength=len(network.classes))
    predicted, control_predicted = x_classes.argmax(dim=1), z_classes[control].argmax(dim=1)
    balance = metrics.class_balance(predicted, expected, seed)
    found["class_balance"] = entry(
        balance,
        metrics.class_balance(control_predicted, expected, seed).value,
        n=n,
        frequencies=(torch.bincount(predicted, minlength=len(expected)) / n).tolist(),
        classes=list(network.classes),
    )
    sure, control_sure = x_classes.amax(dim=1), z_classes[control].amax(dim=1)
    found["confidence"] = entry(metrics.mean_interval(sure), control_sure.double().mean().item(), n=n)
    found["unsure"] = entry(metrics.share_interval(sure < 0.9), (control_sure < 0.9).double().mean().item(), n=n)
    if label is not None:
        agrees = metrics.share_interval(predicted == label)
        right = (z_classes.argmax(dim=1) == labels_of(real.test)).double().mean().item()
        found["label_agreement"] = entry(agrees, right, n=n)
        found["train_on_synthetic"] = train_on_synthetic(generated, label, real, seed=seed, watch=watch)
    return found, warnings


def random_rows(total: int, n: int, seed: int) -> Tensor:
    """n of `total` numbers at random, or all of them."""
    return torch.from_numpy(rng.stream(seed, "rows").permutation(total)[:n].copy())


def labels_of(dataset: Dataset) -> Tensor:
    assert dataset.labels is not None
    return dataset.labels


def train_on_synthetic(generated: Tensor, label: Tensor, real: Reference, *, seed: int, watch: Watch) -> dict[str, Any]:
    """The accuracy, on the real test images, of a small classifier trained on generated images and the labels that were
    asked for; the control is the same trained on as many real ones. Ravuri & Vinyals 2019 (arXiv:1905.10887)."""
    scores = []
    as_data = Dataset("generated", generated, label, real.training.classes)
    for part, dataset in enumerate((as_data, random_part(real.training, len(generated), seed))):
        network = features.train_classifier(
            dataset,
            seed=seed,
            width=16,
            epochs=4,
            augment=False,
            watch=lambda done, part=part: watch("train on synthetic, test on real", (part + done) / 2),  # type: ignore[misc]
        )
        scores.append(features.correct(network, real.test))
    return entry(metrics.share_interval(scores[0]), scores[1].double().mean().item(), n=len(generated))


# --- Novelty ---


def novelty_figures(
    generated: Tensor, real: Reference, network: FeatureNetwork | None, *, watch: Watch = unwatched
) -> tuple[dict[str, Any], Tensor]:
    """(the audit's figures; the likeliest copies, each followed by its nearest training image, uint8 (2 PAIRS, C, H, W))."""
    stage = "nearest training images"
    of_generated = novelty.nearest_images(generated, real.seen.images, lambda done: watch(stage, done / 2))
    of_test = control_neighbours(real, lambda done: watch(stage, (1 + done) / 2))
    alarm = novelty.audit(of_generated.ratio, of_test.ratio)
    halves = random_rows(len(of_test.ratio), len(of_test.ratio), 0).chunk(2)
    control = novelty.audit(of_test.ratio[halves[0]], of_test.ratio[halves[1]])
    found: dict[str, Any] = {
        "alarm": alarm.raised,
        "p_value": alarm.p_value,
        "share": alarm.share,
        "expected": alarm.expected,
        "threshold": alarm.threshold,
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
        z, z_classes = features.reference_features(network, real.test)
        cells = x_classes.argmax(dim=1), z_classes.argmax(dim=1)
        found["pixels"] = nearness(of_generated.distance[:, 0], of_test.distance[:, 0], *cells, halves)
        near_x, near_z = novelty.nearest_features(x, y), novelty.nearest_features(z, y)
        found["features"] = nearness(near_x, near_z, *cells, halves)
    chosen = novelty.closest(of_generated, min(PAIRS, len(generated)))
    originals = real.seen.images[of_generated.nearest[chosen, 0]]
    return found, torch.stack([generated[chosen], originals], dim=1).flatten(0, 1)


def quantiles(values: Tensor, control: Tensor) -> dict[str, list[float]]:
    """The 1st, 10th, 50th and 90th percentiles."""
    at = torch.tensor([0.01, 0.1, 0.5, 0.9], dtype=torch.float64)
    return {
        "quantiles": at.tolist(),
        "value": values.double().quantile(at).tolist(),
        "control": control.double().quantile(at).tolist(),
    }


def nearness(
    near: Tensor, test: Tensor, cells: Tensor | None, test_cells: Tensor | None, halves: tuple[Tensor, ...]
) -> dict[str, Any]:
    """C_T and the share nearer than 99% of real images, each with the same of one half of the real images against the other."""
    both = None if cells is None or test_cells is None else (cells, test_cells)
    a, b = halves
    control_cells = None if test_cells is None else (test_cells[a], test_cells[b])
    c_t, control = novelty.c_t(near, test, both), novelty.c_t(test[a], test[b], control_cells)
    share = metrics.share_interval(near < test.double().quantile(0.01))
    return {
        "c_t": {"value": c_t if math.isfinite(c_t) else None, "control": control if math.isfinite(control) else None},
        "nearer": entry(share, novelty.nearer_share(test[a], test[b]), n=len(near)),
    }


def control_neighbours(real: Reference, watch: Callable[[float], None]) -> novelty.Neighbours:
    """The nearest training images of the test images, from the cache if they were found before."""
    keys = "-".join(features.dataset_key(part)[:16] for part in (real.seen, real.test))
    path = files.cache_folder() / f"neighbours-{features.RECIPE}-{keys}.safetensors"
    if path.is_file():
        tensors, _ = files.load_tensors(path)
        return novelty.Neighbours(tensors["nearest"], tensors["distance"])
    found = novelty.nearest_images(real.test.images, real.seen.images, watch)
    files.save_tensors(path, found._asdict(), {})
    return found


# --- Likelihood ---


def bits_per_dim(
    denoiser: Denoiser,
    real: Reference,
    *,
    chain: int | None,
    n: int | None = None,
    ode_images: int = 500,
    seed: int = 0,
    watch: Watch = unwatched,
) -> dict[str, Any]:
    """The variational bounds on the whole test set (or n images of it) and on training images, and the exact likelihood of
    the ODE on some of them; conditional on their labels where the denoiser has classes."""
    test = random_part(real.test, n or len(real.test), seed)
    training = random_part(real.seen, min(TRAINING_BITS, len(test)), seed)
    bounds = {}
    for name, part in (("test", test), ("training", training)):
        bounds[name] = likelihood.variational_bound(
            denoiser,
            part.images,
            part.labels if denoiser.classes else None,
            steps=chain,
            seed=seed,
            watch=lambda done, name=name: watch(f"bound on {name} images", done),  # type: ignore[misc]
        )
    bound, of_training = bounds["test"], bounds["training"]
    total, train_total = metrics.mean_interval(bound.total), metrics.mean_interval(of_training.total)
    gap = total.value - train_total.value
    half_width = math.hypot(total.high - total.value, train_total.high - train_total.value)
    continuous = metrics.mean_interval(bound.total_continuous)
    found: dict[str, Any] = {
        "test": total.value,
        "low": total.low,
        "high": total.high,
        "training": {"value": train_total.value, "low": train_total.low, "high": train_total.high, "n": len(training)},
        "gap": {"value": gap, "low": gap - half_width, "high": gap + half_width},
        "n": len(test),
        "chain": chain or likelihood.CHAIN,
        "log_snr": [bound.low, bound.high],
        "prior": bound.prior.mean().item(),
        "diffusion": bound.diffusion.mean().item(),
        "reconstruction": bound.reconstruction.mean().item(),
        "given_labels": bool(denoiser.classes),
        "continuous": {
            "test": continuous.value,
            "low": continuous.low,
            "high": continuous.high,
            "training": of_training.total_continuous.mean().item(),
            "diffusion": bound.continuous.mean().item(),
        },
        "levels": likelihood.loss_by_level(bound),
    }
    if ode_images:
        part = random_part(test, ode_images, seed)
        label = part.labels if denoiser.classes else None

        def by_ode(steps: int, first: float, last: float) -> Tensor:
            def progress(done: float) -> None:
                watch("probability-flow ODE", first + (last - first) * done)

            return likelihood.ode_bits(denoiser, part.images, label, steps=steps, seed=seed, watch=progress)

        exact, coarse = by_ode(likelihood.ODE_STEPS, 0, 2 / 3), by_ode(likelihood.ODE_STEPS // 2, 2 / 3, 1)
        figure = metrics.mean_interval(exact)
        found["ode"] = {
            "test": figure.value,
            "low": figure.low,
            "high": figure.high,
            "n": len(part),
            "steps": likelihood.ODE_STEPS,
            "change_from_half_the_steps": (exact.mean() - coarse.mean()).item(),
        }
    return found


# --- Whole evaluations ---


@dataclass(frozen=True)
class Parts:
    """Which parts of an evaluation are wanted."""

    quality: bool = True
    likelihood: bool = True
    novelty: bool = True


def evaluate(run: api.Where, n: int = 10_000, **options: Any) -> dict[str, Any]:
    """Evaluate a run: the content of its metrics.json, which is written, as the command `undiffuse evaluate RUN` does.

    options: `evaluate_run`'s."""
    return evaluate_run(Path(run), n, **options)


def evaluate_run(
    path: Path,
    n: int = 10_000,
    *,
    sampler: str | None = None,
    steps: int | None = None,
    grid: str | None = None,
    guidance: float | None = None,
    seed: int = 0,
    precision: str = "fp32",
    parts: Parts = Parts(),
    bits_images: int | None = None,
    ode_images: int = 500,
    save: Path | None = None,
    watch: Watch = unwatched,
) -> dict[str, Any]:
    """Draw n images from a run, labels in the training set's proportions where it is conditional, measure them, and write
    metrics.json and the pictures into the run folder. Raises UserError before anything is written."""
    run = Run(path)
    about = run.about()
    check_count(n)
    denoiser, step = run.denoiser()
    real = reference(about.config.data, about.config.size, run)
    labels = proportional_labels(labels_of(real.training), len(denoiser.classes), n, seed) if denoiser.classes else None
    request = api.Request(n, sampler, steps, grid, labels, guidance, seed=seed, precision=precision)
    ready = api.prepare(path, request)
    found: dict[str, Any] = {}
    if parts.likelihood:
        found["bits_per_dim"] = bits_per_dim(
            denoiser, real, chain=about.config.chain, n=bits_images, ode_images=ode_images, seed=seed, watch=watch
        )
    generated: Tensor | None = None
    if parts.quality or parts.novelty or save:
        begin, drawn = time.monotonic(), []
        for batch in ready.batches():
            drawn.append(batch)
            watch("drawing images", sum(map(len, drawn)) / n)
        generated = torch.cat(drawn)
        found["sampling"] = {
            **{key: ready.options[key] for key in ("sampler", "steps", "grid", "guidance", "clip", "seed")},
            "n": n,
            "network_calls": ready.calls,
            "precision": precision,
            "seconds": time.monotonic() - begin,
        }
    of = {"run": path.name, "step": step, "conditional": bool(denoiser.classes)}
    content, pictures = assembled(of, found, generated, ready.label, real, parts, seed, watch)
    if save is not None and generated is not None:
        from undiffuse import export

        export.save_images(export.destination(str(save)), generated, ready.label, denoiser.classes)
    content = with_earlier(run.path / "metrics.json", content, parts)
    for name, picture in pictures.items():
        run.write(name, picture)
    write_metrics(run.path / "metrics.json", content)
    return content


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
    """Measure the images of an .npz file, from whatever program, against the data set `spec`; write the metrics to `out`."""
    real = reference(spec, size)
    generated, label = read_images(file, real.training)
    content, pictures = assembled({"images": file.name}, {}, generated, label, real, parts, seed, watch)
    for name, picture in pictures.items():
        files.write_atomic(out.with_name(f"{out.stem}-{name}"), picture)
    write_metrics(out, content)
    return content


def assembled(
    of: dict[str, Any],
    found: dict[str, Any],
    generated: Tensor | None,
    label: Tensor | None,
    real: Reference,
    parts: Parts,
    seed: int,
    watch: Watch,
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """(the content of metrics.json, pictures by file name) for generated images and what was found before."""
    missing: dict[str, str] = {}
    warnings: list[str] = []
    pictures = {"bits.png": figures.bits_by_level(found["bits_per_dim"])} if "bits_per_dim" in found else {}
    network = None
    if generated is not None:
        if not real.training.classes:
            missing["quality"] = (
                "the data set has no labels, so no feature network can be trained on it; only novelty in pixels is given"
            )
        else:
            network = features.feature_network(real.training, lambda done: watch("training the feature network", done))
        if network is None and "quality" not in missing:
            missing["quality"] = "the data set has one class only, so no feature network can be trained on it"
        if parts.quality and network is not None:
            measured, warnings = quality(
                generated, label, real, network, prescribed="run" in of, seed=seed, watch=watch
            )
            found |= measured
            if label is None:
                missing["train_on_synthetic"] = missing["label_agreement"] = "the images were drawn without labels"
        if parts.novelty:
            found["novelty"], pairs = novelty_figures(generated, real, network, watch=watch)
            pictures["novelty.png"] = images.png_bytes(images.grid(pairs, columns=10))
    head = {
        "format": 1,
        "undiffuse": __version__,
        "of": of,
        "features": None if network is None else {"name": network.name, "sha256": network.sha256},
        "reference": {
            "name": real.training.name,
            "training": len(real.training),
            "seen": len(real.seen),
            "control": real.control,
            "test": len(real.test),
        },
        "machine": machine.facts(),
        "warnings": warnings,
        "missing": missing,
    }
    return {**head, **found}, pictures


def with_earlier(path: Path, content: dict[str, Any], parts: Parts) -> dict[str, Any]:
    """The content, with what an earlier evaluation of the same weights found of the parts that were not wanted this time."""
    try:
        old = json.loads(path.read_bytes())
        if old["of"] != content["of"]:
            return content
    except (OSError, ValueError, KeyError, TypeError):
        return content
    if not parts.quality and not parts.novelty:
        return {**old, "bits_per_dim": content.get("bits_per_dim", old.get("bits_per_dim"))}
    if not parts.likelihood and "bits_per_dim" in old:
        return {**content, "bits_per_dim": old["bits_per_dim"]}
    return content  # quality and novelty go together: they are of the same images


def write_metrics(path: Path, content: dict[str, Any]) -> None:
    files.write_atomic(path, json.dumps(content, indent=2, allow_nan=False).encode())


def check_count(n: int) -> None:
    if n < FEWEST:
        raise UserError(f"{n} images are too few for a statistic; give at least {FEWEST}")


def proportional_labels(labels: Tensor, classes: int, n: int, seed: int) -> list[int]:
    """n labels in the proportions of `labels` (to the nearest whole number of each, the remainder to the largest fractions),
    shuffled."""
    exact = torch.bincount(labels, minlength=classes).double() * n / len(labels)
    counts = exact.floor()
    counts[(exact - counts).argsort(descending=True)[: n - int(counts.sum())]] += 1
    ordered = torch.arange(classes).repeat_interleave(counts.long())
    shuffled: list[int] = ordered[torch.from_numpy(rng.stream(seed, "labels").permutation(n))].tolist()
    return shuffled


def read_images(file: Path, training: Dataset) -> tuple[Tensor, Tensor | None]:
    """(images uint8 (n, C, H, W), labels (n,) or None) of an .npz file with `images`, (n, H, W) or (n, H, W, C), and maybe `labels`.

    Raises UserError for anything that cannot be compared with the training images."""
    import numpy as np

    channels, height, width = training.shape
    try:
        with np.load(file, allow_pickle=False) as archive:
            if "images" not in archive:
                raise UserError(f"{file} has no array 'images'; it has: {', '.join(archive) or 'none'}")
            pixels = archive["images"]
            labels = archive.get("labels")
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{file} does not exist; give an .npz file with an array 'images'") from None
    except Exception as error:  # whatever a broken archive makes the reader trip over
        raise UserError(f"{file} can't be read as an .npz file ({error})") from error
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise UserError(f"{file}: images hold NaN or infinity; save them as uint8, 0 to 255")
    if pixels.dtype != np.uint8:
        raise UserError(f"{file}: images are {pixels.dtype}; save them as uint8, 0 to 255")
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.ndim != 4 or pixels.shape[1:] != (height, width, channels):
        raise UserError(
            f"{file}: images have shape {pixels.shape}; those of '{training.name}' are (n, {height}, {width}"
            f"{f', {channels}' if channels > 1 else ''})"
        )
    check_count(len(pixels))
    generated = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    if labels is None or not training.classes:
        return generated, None
    if labels.shape != (len(pixels),) or labels.dtype.kind not in "iu":
        raise UserError(
            f"{file}: labels are {labels.dtype} {labels.shape}; save one whole number for each of the {len(pixels)} images"
        )
    if labels.min() < 0 or labels.max() >= len(training.classes):
        raise UserError(
            f"{file}: labels go from {labels.min()} to {labels.max()}, and there are {len(training.classes)} classes"
        )
    return generated, torch.from_numpy(labels.astype(np.int64))
