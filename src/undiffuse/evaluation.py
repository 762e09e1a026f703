"""Evaluation: how good generated images are, how likely the model holds real ones, and whether it copies.

Every figure comes with its 95% interval, and beside it the same figure of real images that were not trained on, at the
same number of images: its control, or floor. What cannot be given for a data set is listed with the reason.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch

from undiffuse import (
    __version__,
    api,
    data,
    export,
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
from undiffuse.session import trained_on

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from undiffuse.denoiser import Denoiser

FORMAT = 1
FEWEST = 100
"""Fewer images than this give no statistic worth the name."""

MANIFOLD = 10_000
"""Most images that neighbours are compared among: the distances take 4 bytes for every pair."""

SOME_BITS = 2_000
"""Training images on which the bound is taken, for the gap to the test set, and test images for the continuous-time one."""

PAIRS = 20
"""The likeliest copies that are shown."""

WORST = 20
"""The images that the classifier is least sure of, which are shown."""

Watch = Callable[[str, float], None]


def unwatched(stage: str, done: float) -> None:
    pass


class Stopwatch:
    """A `Watch` that passes on what it is told, and knows how long each stage took."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.begun: dict[str, float] = {}

    def __call__(self, stage: str, done: float) -> None:
        self.begun.setdefault(stage, time.monotonic())
        self.watch(stage, done)

    def seconds(self) -> dict[str, float]:
        """The seconds of each stage so far, in order: until the next one began, the last one until now."""
        ends = [*self.begun.values(), time.monotonic()][1:]
        return {stage: round(end - self.begun[stage], 1) for stage, end in zip(self.begun, ends, strict=True)}


@dataclass(frozen=True)
class Reference:
    """Real images. For quality: the data set as a `whole`, its `training` part, and its `test` part, the control. For
    novelty and likelihood: those `seen` by the run, and those `unseen`. `control` says what test and unseen ones are."""

    whole: Dataset
    training: Dataset
    test: Dataset
    seen: Dataset
    unseen: Dataset
    control: str


def reference(spec: str, size: int | None = None, run: Run | None = None) -> Reference:
    """The real images of a data set, or of a run on it.

    Without a test set, one in twenty is the control of quality, always the same ones; what the run itself held out is
    that of novelty and likelihood. Raises UserError where the data are not those of the run, or too few."""
    whole = data.load(spec, size)
    test, control = real_test_set(spec, size), "test set"
    training, seen = whole, whole
    if test is None:
        control = "held-out images"
        training, test = data.split(whole, seed=0)
        seen = training
    unseen = test
    if run is not None:
        seen, held_out = trained_on(run, whole)
        unseen = held_out if control == "held-out images" else test
    if test.shape != whole.shape:
        raise UserError(
            f"'{spec}': its test images are {test.shape}, its training images {whole.shape}; give both one size"
        )
    for part, what in ((seen, "training images"), (test, control), (unseen, control)):
        if len(part) < FEWEST:
            more = f"; of {20 * FEWEST:,} images or more enough are held out" if control == "held-out images" else ""
            raise UserError(f"'{spec}' has only {len(part)} {what}, too few to compare with: {FEWEST} are needed{more}")
    return Reference(whole, training, test, seen, unseen, control)


def real_test_set(spec: str, size: int | None) -> Dataset | None:
    """The test set, None where there is none."""
    try:
        return data.load(spec, size, split="test")
    except data.NoTestSet:
        return None


def plain(figure: Interval) -> dict[str, float]:
    return {"value": figure.value, "low": figure.low, "high": figure.high}


def entry(figure: Interval, control: float | None, n: int, control_n: int, **others: Any) -> dict[str, Any]:
    """A figure of n images as it stands in metrics.json, with its control."""
    return {**plain(figure), "control": control, "n": n, "control_n": control_n, **others}


# --- Quality ---


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
        files.to_cache(features.scorer_file(features.dataset_key(real.whole)), features.stored_scorer(network, y, z))
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
    y_moments, z_moments = metrics.moments(y), metrics.moments(z)
    distance = metrics.frechet_interval(x, y_moments, seed)
    floor = metrics.frechet_floor(z, y_moments, k, seed)
    to_test = metrics.frechet_interval(x, z_moments, seed)
    test_floor = metrics.frechet_floor(y, z_moments, min(n, len(y)), seed)
    same_n = distance if k == n else metrics.frechet_interval(x[random_rows(n, k, seed)], y_moments, seed)
    watch("Frechet and kernel distances", 0.4)
    y_powers = metrics.powers(y)
    kernel = metrics.kid_interval(x, y_powers, seed)
    found: dict[str, Any] = {
        "frechet": {
            **plain(distance),
            "unbiased": metrics.extrapolated(distance),
            "floor": floor.value,
            "floor_low": floor.low,
            "floor_high": floor.high,
            "floor_unbiased": metrics.extrapolated(floor),
            "floor_n": k,
            **{
                name: at / floor.value if floor.value else None
                for name, at in (("ratio", same_n.value), ("ratio_low", same_n.low), ("ratio_high", same_n.high))
            },
            "n": n,
        },
        "frechet_to_test": entry(to_test, test_floor.value, n, min(n, len(y)), unbiased=metrics.extrapolated(to_test)),
        "kid": entry(kernel, metrics.kid(metrics.powers(z[control]), y_powers), n, k),
    }

    watch("precision and recall", 0)
    m = min(n, len(y), len(z), MANIFOLD)
    real_part = y[random_rows(len(y), m, seed + 1)]
    ours = metrics.manifold(x[random_rows(n, m, seed)], real_part, seed=seed)
    watch("precision and recall", 0.6)
    theirs = metrics.manifold(z[random_rows(len(z), m, seed)], real_part, seed=seed, count=2)
    found |= {
        name: entry(figure, control_figure.value, m, m)
        for name, figure, control_figure in zip(ours._fields, ours, theirs, strict=True)
    }

    expected = torch.bincount(labels_of(real.training), minlength=len(network.classes))
    predicted, control_predicted = x_classes.argmax(dim=1), z_classes[control].argmax(dim=1)
    found["class_balance"] = entry(
        metrics.class_balance(predicted, expected, seed),
        metrics.class_balance(control_predicted, expected, seed).value,
        n,
        k,
        frequencies=(torch.bincount(predicted, minlength=len(expected)) / n).tolist(),
        classes=list(network.classes),
    )
    sure, control_sure = x_classes.amax(dim=1), z_classes[control].amax(dim=1)
    found["confidence"] = entry(metrics.mean_interval(sure, 0.0, 1.0), control_sure.double().mean().item(), n, k)
    least = sure.argsort(stable=True)[:WORST]
    found["least_sure"] = [
        {"image": i, "confidence": sure[i].item(), "taken_for": network.classes[predicted[i]]} for i in least.tolist()
    ]
    found["unsure"] = entry(metrics.share_interval(sure < 0.9), (control_sure < 0.9).double().mean().item(), n, k)
    if label is not None:
        right = (z_classes.argmax(dim=1) == labels_of(real.test)).double().mean().item()
        found["label_agreement"] = entry(metrics.share_interval(predicted == label), right, n, len(z))
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
    asked for; the control is the same trained on as many real ones. Ravuri & Vinyals 2019 (arXiv:1905.10887).

    The interval is that of the finite test set only."""
    scores = []
    as_data = Dataset("generated", generated, label, real.training.classes)
    for part, dataset in enumerate((as_data, data.random_part(real.training, len(generated), seed))):
        network = features.train_classifier(
            dataset,
            seed=seed,
            width=16,
            epochs=4,
            augment=False,
            watch=lambda done, part=part: watch("train on synthetic, test on real", (part + done) / 2),  # type: ignore[misc]
        )
        scores.append(features.correct(network, real.test))
    return entry(
        metrics.share_interval(scores[0]),
        scores[1].double().mean().item(),
        len(generated),
        min(len(generated), len(real.training)),
        interval_of="the test images: other ones of the same kind, the classifier being what it is",
    )


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
    share = metrics.share_interval(of_generated.ratio < alarm.threshold)
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
        found["pixels"] = nearness(of_generated.distance[:, 0], of_test.distance[:, 0], *cells, halves)
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
        "nearer": entry(share, novelty.nearer_share(test[a], test[b]), len(near), len(a)),
    }


def control_neighbours(real: Reference, watch: Callable[[float], None]) -> novelty.Neighbours:
    """The nearest training images of the unseen real images, from the cache if they were found before."""
    keys = "-".join(features.dataset_key(part)[:16] for part in (real.seen, real.unseen))
    name = f"neighbours-{novelty.RECIPE}-{keys}.safetensors"
    found = files.from_cache(
        name, lambda tensors, metadata: novelty.Neighbours(tensors["nearest"], tensors["distance"])
    )
    if found is None:
        found = novelty.nearest_images(real.unseen.images, real.seen.images, watch)
        files.to_cache(name, (found._asdict(), {}))
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
    the ODE on some of them; given their labels where the network is told classes, without any where it is told groups."""
    test = data.random_part(real.unseen, n or len(real.unseen), seed)
    training = data.random_part(real.seen, min(SOME_BITS, len(test)), seed)
    some = data.random_part(test, min(SOME_BITS, len(test)), seed)

    def bound_of(part: Dataset, stage: str, continuous: bool = False) -> likelihood.Bound:
        label = known_labels(denoiser, part)

        def progress(done: float) -> None:
            watch(stage, done)

        return likelihood.variational_bound(
            denoiser, part.images, label, steps=chain, continuous=continuous, seed=seed, watch=progress
        )

    bound, of_training = bound_of(test, "bound on test images"), bound_of(training, "bound on training images")
    of_some = bound_of(some, "continuous-time bound", continuous=True)
    total, train_total = metrics.mean_interval(bound.total), metrics.mean_interval(of_training.total)
    gap = total.value - train_total.value
    half_width = math.hypot(total.high - total.value, train_total.high - train_total.value)
    continuous = metrics.mean_interval(of_some.total)
    given = "; given each image's label" if denoiser.told == "class" else "; told no group" if denoiser.groups else ""
    found: dict[str, Any] = {
        "test": total.value,
        "low": total.low,
        "high": total.high,
        "training": {**plain(train_total), "n": len(training)},
        "gap": {"value": gap, "low": gap - half_width, "high": gap + half_width},
        "n": len(test),
        "chain": chain or likelihood.CHAIN,
        "log_snr": [bound.low, bound.high],
        "prior": plain(metrics.mean_interval(bound.prior)),
        "diffusion": plain(metrics.mean_interval(bound.diffusion)),
        "reconstruction": plain(metrics.mean_interval(bound.reconstruction)),
        "network_calls": likelihood.LEVELS + 1,
        "given_labels": denoiser.told == "class",
        "assumes": "the chain of unguided posterior steps, x_0_hat clipped, and a normal decoder cut into 256 grey levels"
        + given,
        "interval_of": "the images: other ones of the same kind, the model being what it is",
        "seed": seed,
        "undiffuse": __version__,
        "continuous": {
            "test": continuous.value,
            "low": continuous.low,
            "high": continuous.high,
            "n": len(some),
            "diffusion": plain(metrics.mean_interval(of_some.diffusion)),
        },
        "levels": likelihood.loss_by_level(bound),
    }
    if ode_images:
        part = data.random_part(test, ode_images, seed)
        label = known_labels(denoiser, part)
        # Step 2 of a chain has the least noise that it was trained at. A schedule may begin with more noise than ODE_LEVEL has.
        earliest = torch.tensor(likelihood.EARLIEST if chain is None else 2 / chain, dtype=torch.float64)
        level = min(likelihood.ODE_LEVEL, denoiser.noise_level(earliest).log_snr.item())

        def by_ode(steps: int, first: float, last: float) -> Tensor:
            def progress(done: float) -> None:
                watch("probability-flow ODE", first + (last - first) * done)

            return likelihood.ode_bits(
                denoiser, part.images, label, steps=steps, level=level, seed=seed, watch=progress
            )

        exact, coarse = by_ode(likelihood.ODE_STEPS, 0, 2 / 3), by_ode(likelihood.ODE_STEPS // 2, 2 / 3, 1)
        figure = metrics.mean_interval(exact)
        found["ode"] = {
            "test": figure.value,
            "low": figure.low,
            "high": figure.high,
            "n": len(part),
            "steps": likelihood.ODE_STEPS,
            "log_snr": level,
            "assumes": "the unguided probability flow, x_0_hat not clipped, and images with uniform noise over a grey level"
            + given,
            "change_from_half_the_steps": (exact.mean() - coarse.mean()).item(),
        }
    return found


def known_labels(denoiser: Denoiser, dataset: Dataset) -> Tensor | None:
    """What a denoiser may be told of the images whose likelihood it gives: their classes, or nothing."""
    return dataset.labels if denoiser.told == "class" else None


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
    save: str | None = None,
    watch: Watch = unwatched,
) -> dict[str, Any]:
    """Draw n images from a run, measure them, and write metrics.json and the pictures into the run folder.

    A conditional run's labels are drawn at random from those of the training set, as real images have theirs: exact
    proportions would make its figures better than those of as many real images, their control. Raises UserError before anything is
    written; where the drawn images can't be saved, when the figures are."""
    watch = stopwatch = Stopwatch(watch)
    run = Run(path)
    about = run.about()
    drawing = parts.quality or parts.novelty or save is not None
    check(parts, n, seed, bits_images, ode_images)
    to = None if save is None else export.destination(save, "--save")
    denoiser, step = run.denoiser()
    real = reference(about.config.data, about.config.size, run)
    labels = data.random_labels(real.training, n, seed, "labels").tolist() if denoiser.classes else None
    request = api.Request(n, sampler, steps, grid, labels, guidance, seed=seed, precision=precision)
    ready = api.prepare(path, request)
    found: dict[str, Any] = {}
    # With groups the likelihood is that of all of them together: the network is told none.
    unknown = bool(denoiser.groups) and not about.config.label_dropout
    if parts.likelihood and not unknown:
        found["bits_per_dim"] = bits_per_dim(
            denoiser, real, chain=about.config.chain, n=bits_images, ode_images=ode_images, seed=seed, watch=watch
        )
    generated: Tensor | None = None
    if drawing:
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
    of = {"run": path.resolve().name, "step": step, "conditional": bool(denoiser.classes)}
    content, pictures = assembled(of, found, generated, ready.label, real, parts, seed, watch)
    if parts.likelihood and unknown:
        content["missing"]["bits_per_dim"] = "trained with --label-dropout 0, the network can't guess without a group"
    content["seconds"] = stopwatch.seconds()
    content = with_earlier(run.path / "metrics.json", content, parts)
    for name, picture in pictures.items():
        run.write(name, picture)
    write_metrics(run.path / "metrics.json", content)
    if to is not None and generated is not None:  # last: it may fail, and the metrics took longer
        export.save_images(to, generated, ready.label, denoiser.classes)
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
    parts = replace(parts, likelihood=False)  # there is no model to ask
    check(parts, FEWEST, seed, None, 0)
    if out.is_dir() or not out.name or out.resolve() == file.resolve():
        raise UserError(f"--out {out}: give the name of a file for the metrics, such as metrics.json")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    real = reference(spec, size)
    generated, label = read_images(file, real.training)
    content, pictures = assembled(
        {"images": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()},
        {},
        generated,
        label,
        real,
        parts,
        seed,
        watch,
    )
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
        if parts.quality or parts.novelty:
            network = features.feature_network(
                real.whole, real.training, lambda done: watch("training the feature network", done)
            )
            if network is None:
                why = "has no labels" if not real.training.classes else "has one class only"
                missing["quality"] = (
                    f"the data set {why}, so no feature network can be trained on it; novelty is given in pixels"
                )
        if parts.quality and network is not None:
            measured, warnings = quality(generated, label, real, network, seed=seed, watch=watch)
            found |= measured
            worst = generated[[entry["image"] for entry in measured["least_sure"]]]
            pictures["unsure.png"] = images.png_bytes(images.grid(worst, columns=10))
            if label is None:
                missing["train_on_synthetic"] = missing["label_agreement"] = "the images were drawn without labels"
        if parts.novelty:
            found["novelty"], pairs = novelty_figures(generated, real, network, watch=watch)
            pictures["novelty.png"] = images.png_bytes(images.grid(pairs, columns=10))
    head = {
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
        "machine": machine.facts(),
        "warnings": warnings,
        "missing": missing,
    }
    return {**head, **found}, pictures


def with_earlier(path: Path, content: dict[str, Any], parts: Parts) -> dict[str, Any]:
    """The content, with what an earlier evaluation of the same weights found of the likelihood, or of the rest, where that was not wanted this time."""
    try:
        old = json.loads(path.read_bytes())
        if (old["format"], old["of"]) != (content["format"], content["of"]):
            return content
    except (OSError, ValueError, KeyError, TypeError):
        return content
    if not parts.quality and not parts.novelty:
        return {**old, **({"bits_per_dim": content["bits_per_dim"]} if "bits_per_dim" in content else {})}
    if not parts.likelihood and "bits_per_dim" in old:
        return {**content, "bits_per_dim": old["bits_per_dim"]}
    return content  # quality and novelty go together: they are of the same images


def write_metrics(path: Path, content: dict[str, Any]) -> None:
    files.write_atomic(path, json.dumps(finite(content), indent=2, allow_nan=False).encode())


def finite(content: Any) -> Any:
    """The content with None for every number that JSON has none for."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def check(parts: Parts, n: int, seed: int, bits_images: int | None, ode_images: int) -> None:
    """UserError for numbers that make no evaluation."""
    if not (parts.quality or parts.likelihood or parts.novelty):
        raise UserError(
            "with neither quality nor likelihood nor novelty there is nothing to measure; leave one of them on"
        )
    if n < FEWEST:
        raise UserError(f"{n} images are too few for a statistic; give at least {FEWEST}")
    api.check_numbers(n, seed)
    if (bits_images is not None and bits_images < 2) or ode_images < 0 or ode_images == 1:
        raise UserError(
            "--bits-images must be at least 2, and --ode-images 0 or at least 2: one image gives no interval"
        )


def read_images(file: Path, training: Dataset) -> tuple[Tensor, Tensor | None]:
    """(images uint8 (n, C, H, W), labels (n,) or None) of an .npz file with `images`, (n, H, W) or (n, H, W, C), and maybe `labels`.

    Raises UserError for anything that cannot be compared with the training images."""
    import numpy as np

    channels, height, width = training.shape
    arrays: dict[str, Any] = {}
    try:
        with zipfile.ZipFile(file) as archive:
            members = {name.removesuffix(".npy"): name for name in archive.namelist()}
            if "images" not in members:
                raise UserError(f"{file} has no array 'images'; it has: {', '.join(members) or 'none'}")
            for name in ("images", "labels"):
                if name in members:
                    with archive.open(members[name]) as member:
                        arrays[name] = read_array(member, f"{file}: {name}")
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{file} does not exist; give an .npz file with an array 'images'") from None
    except Exception as error:  # whatever a broken archive makes the reader trip over
        raise UserError(f"{file} can't be read as an .npz file ({error or type(error).__name__})") from error
    pixels, labels = arrays["images"], arrays.get("labels")
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
    if len(pixels) < FEWEST:
        raise UserError(f"{file}: {len(pixels)} images are too few for a statistic; give at least {FEWEST}")
    generated = torch.from_numpy(np.array(pixels.transpose(0, 3, 1, 2), order="C"))
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


def read_array(member: IO[bytes], what: str) -> NDArray[Any]:
    """One array of an .npz file: its header is read, and its size compared with what is sensible, before its content."""
    import numpy as np

    version = np.lib.format.read_magic(member)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(member)
    if dtype.hasobject:
        raise UserError(f"{what} holds Python objects; save an array of numbers")
    size = math.prod(shape) * dtype.itemsize
    if size > data.MAX_BYTES:
        raise UserError(
            f"{what} needs {size:,} bytes, more than the {data.MAX_BYTES:,} that are read; give fewer images"
        )
    content = member.read(size + 1)
    if len(content) != size:
        raise UserError(f"{what} has another length than its header says; save it again")
    array = np.frombuffer(content, dtype).reshape(shape[::-1] if fortran else shape)
    return array.T if fortran else array
