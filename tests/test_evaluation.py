"""Whole evaluations: what stands in metrics.json, what is written, and what is refused."""

from __future__ import annotations

import errno
import io
import json
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import undiffuse
from conftest import write_idx
from undiffuse import cli
from undiffuse.base.errors import UserError
from undiffuse.base.files import cannot_write
from undiffuse.base.images import tiles
from undiffuse.data.dataset import Dataset
from undiffuse.data.loading import load_dataset
from undiffuse.data.splits import random_labels
from undiffuse.diffusion.likelihood import ODE_LEVEL
from undiffuse.measuring import distances, features
from undiffuse.measuring.quality import METRICS
from undiffuse.measuring.watch import Stopwatch
from undiffuse.runs import destinations
from undiffuse.runs.evaluation import Parts, evaluate_images, evaluate_run
from undiffuse.runs.folder import Run
from undiffuse.training.records import Quality


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, short_classifiers: None) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNDIFFUSE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def shade_images(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """8x8 images of three classes, in unequal proportions.

    They are bright squares, whose size is that of the class, on noise."""
    g = np.random.default_rng(seed)
    labels = g.choice(3, size=n, p=[0.5, 0.3, 0.2])
    images = g.integers(0, 60, (n, 8, 8))
    for image, label in zip(images, labels, strict=True):
        y, x = g.integers(0, 4, 2)
        image[y : y + 2 + label, x : x + 2 + label] += 180
    return images.astype(np.uint8), labels.astype(np.uint8)


@pytest.fixture(scope="module")
def shades(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the four MNIST files: 600 images to train on, 240 to test with."""
    folder = tmp_path_factory.mktemp("shades")
    for part, n, seed in (("train", 600, 0), ("t10k", 240, 1)):
        images, labels = shade_images(n, seed)
        write_idx(folder / part, images, labels.tolist())
        for kind, d in (("images", 3), ("labels", 1)):
            (folder / part / f"{kind}-idx{d}-ubyte").rename(folder / f"{part}-{kind}-idx{d}-ubyte")
        (folder / part).rmdir()
    return folder


@pytest.fixture(scope="module")
def shade_run(train: Callable[..., Path], shades: Path) -> Path:
    return train(data=str(shades), conditional=True, steps=40)


@pytest.fixture(scope="module")
def evaluated(shade_run: Path) -> tuple[Path, dict[str, Any]]:
    return shade_run, undiffuse.evaluate(shade_run, n=200, ode_images=20)


def test_without_an_unconditional_prediction_there_is_no_likelihood(
    train: Callable[..., Path], shades: Path
) -> None:
    run = train(data=str(shades), conditional=True, steps=1, condition_dropout=0.0)
    found = undiffuse.evaluate(run, parts=Parts(quality=False, novelty=False))
    assert "bits_per_dim" not in found
    assert "--condition-dropout 0" in found["missing"]["bits_per_dim"]


def test_the_exact_likelihood_says_at_which_log_snr_the_data_are_read(
    train: Callable[..., Path], shades: Path
) -> None:
    """The schedule's highest, where that is below the usual one; of a chain the second step's."""
    parts = Parts(quality=False, novelty=False)
    schedules = {
        "cosine": (None, ODE_LEVEL),
        "log-linear:snr_max=10": (None, 10.0),
        "log-linear": (100, 14 - 24 * 0.02),
    }
    for schedule, (chain, level) in schedules.items():
        run = train(data=str(shades), schedule=schedule, chain=chain, steps=1, snapshots=2)
        found = undiffuse.evaluate(run, parts=parts, bits_images=2, ode_images=2)
        assert found["bits_per_dim"]["ode"]["log_snr"] == pytest.approx(
            min(level, ODE_LEVEL), abs=1e-6
        )


def numbers(content: Any, path: str = "") -> dict[str, float]:
    if isinstance(content, dict):
        return {
            k: v
            for key, value in content.items()
            for k, v in numbers(value, f"{path}.{key}").items()
        }
    return {path.lstrip("."): content} if isinstance(content, int | float) else {}


def test_metrics_json_is_what_is_returned(
    evaluated: tuple[Path, dict[str, Any]], shade_run: Path
) -> None:
    found = evaluate_run(shade_run, 100, parts=Parts(likelihood=False, novelty=False))
    assert json.loads((shade_run / "metrics.json").read_text()) == json.loads(json.dumps(found))
    assert "frechet" in found


def test_every_figure_has_its_interval_its_control_and_its_count(
    evaluated: tuple[Path, dict[str, Any]],
) -> None:
    _, found = evaluated
    assert found.keys() >= set(METRICS)
    for name in set(METRICS) - {"frechet"}:
        figure = found[name]
        assert figure["low"] <= figure["value"] <= figure["high"], name
        assert figure["control"] is not None
        assert figure["n"] == 200
        assert figure["control_n"] >= 200
    distance = found["frechet"]
    assert 0 <= distance["low"] <= distance["value"] <= distance["high"]
    assert distance["floor_n"] == 200
    assert distance["ratio_low"] < distance["ratio"] < distance["ratio_high"]
    bits = found["bits_per_dim"]
    assert bits["low"] < bits["test"] < bits["high"]
    assert bits["n"] == 240
    assert sum(
        bits[term]["value"] for term in ("prior", "diffusion", "reconstruction")
    ) == pytest.approx(bits["test"])
    assert bits["gap"]["value"] == pytest.approx(bits["test"] - bits["training"]["value"])
    assert bits["ode"]["n"] == 20
    assert isinstance(found["novelty"]["alarm"], bool)
    assert 0 < found["novelty"]["detectable"] <= 1
    assert all(word in bits["assumes"] for word in ("unguided", "decoder", "; unconditional"))
    assert bits["given_classes"] is False
    assert "uniform noise" in bits["ode"]["assumes"]
    assert found["sampling"]["n"] == 200
    assert found["sampling"]["network_calls"] == 3
    worst = [entry["confidence"] for entry in found["least_sure"]]
    assert worst == sorted(worst)
    assert worst[0] <= found["confidence"]["value"]
    assert len(found["features"]["sha256"]) == 64


def test_an_untrained_network_is_far_from_the_floor_and_real_images_are_not(
    evaluated: tuple[Path, dict[str, Any]], shades: Path, tmp_path: Path
) -> None:
    _, found = evaluated
    images, labels = shade_images(200, seed=5)
    np.savez(tmp_path / "real.npz", images=images, labels=labels)
    real = evaluate_images(tmp_path / "real.npz", str(shades), tmp_path / "m.json")
    assert found["frechet"]["ratio"] > 5
    assert real["frechet"]["ratio"] < 3
    assert (
        real["frechet"]["unbiased"] < 0.5 * real["frechet"]["value"]
    )  # most of it is the bias of a small sample
    assert real["frechet"]["low"] <= real["frechet"]["floor"] <= real["frechet"]["high"]
    assert real["class_agreement"]["value"] > 0.9
    score = "classification_accuracy_score"
    assert real[score]["value"] > found[score]["value"]
    assert real["novelty"]["alarm"] is False
    assert abs(real["novelty"]["pixels"]["c_t"]["value"]) < 4
    assert "bits_per_dim" not in real


def test_the_frechet_distance_is_to_all_training_images(shades: Path, tmp_path: Path) -> None:
    images, _ = shade_images(150, seed=6)
    np.savez(tmp_path / "x.npz", images=images)
    found = evaluate_images(
        tmp_path / "x.npz", str(shades), tmp_path / "m.json", parts=Parts(novelty=False)
    )
    dataset = load_dataset(str(shades))
    network = features.feature_network(dataset)
    assert network is not None
    x, y = (network(i)[0] for i in (torch.from_numpy(images)[:, None], dataset.images))
    assert found["frechet"]["value"] == pytest.approx(
        distances.frechet(distances.moments(x), distances.moments(y)), rel=1e-6
    )
    assert set(found["missing"]) == {"class_agreement", "classification_accuracy_score"}
    assert "without classes" in found["missing"]["class_agreement"]
    assert "novelty" not in found


def test_planted_copies_raise_the_alarm_of_a_file(shades: Path, tmp_path: Path) -> None:
    images, _ = shade_images(200, seed=7)
    images[:20] = load_dataset(str(shades)).images[:20, 0].numpy()
    np.savez(tmp_path / "x.npz", images=images)
    found = evaluate_images(
        tmp_path / "x.npz", str(shades), tmp_path / "m.json", parts=Parts(quality=False)
    )
    assert found["novelty"]["alarm"] is True
    with Image.open(tmp_path / "m-novelty.png") as picture:
        shown = tiles(picture, 8, 8)
    for copy in found["novelty"]["closest"][:10]:
        assert copy["image"] == copy["training"] < 20
        assert (copy["d1"], copy["d2"] > 0) == (0, True)
    for ours, theirs in zip(shown[0:20:2], shown[1:20:2], strict=True):
        assert np.array_equal(
            np.asarray(ours), np.asarray(theirs)
        )  # the likeliest copies come first, beside their originals


def test_the_pictures_are_there_and_show_something(evaluated: tuple[Path, dict[str, Any]]) -> None:
    run, _ = evaluated
    for name in ("bits.png", "novelty.png", "unsure.png"):
        with Image.open(run / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 5


def test_the_same_evaluation_gives_the_same_figures(shade_run: Path) -> None:
    parts = Parts(likelihood=False)
    first, second = (evaluate_run(shade_run, 120, parts=parts) for _ in range(2))
    for found in (first, second):
        found["sampling"].pop("seconds")
        assert {
            "sampling images",
            "Frechet and kernel distances",
            "nearest training images",
        } <= found.pop("seconds").keys()
    assert first == second


def test_parts_that_are_not_wanted_are_kept_from_before(shade_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(shade_run, tmp_path / "run")
    (run / "metrics.json").unlink(missing_ok=True)
    both = evaluate_run(run, 120, ode_images=0)
    only_bits = evaluate_run(
        run, 120, seed=1, parts=Parts(quality=False, novelty=False), ode_images=0
    )
    assert only_bits["bits_per_dim"] != both["bits_per_dim"]
    assert (only_bits["seed"], only_bits["bits_per_dim"]["seed"]) == (0, 1)  # each part's own
    assert {**only_bits, "bits_per_dim": 0} == {**both, "bits_per_dim": 0}
    no_bits = evaluate_run(run, 150, parts=Parts(likelihood=False))
    assert no_bits["bits_per_dim"] == only_bits["bits_per_dim"]
    assert no_bits["frechet"]["n"] == 150
    only_quality = evaluate_run(run, 130, parts=Parts(likelihood=False, novelty=False))
    assert "novelty" not in only_quality  # it would be of other images
    assert json.loads((run / "metrics.json").read_text()) == json.loads(json.dumps(only_quality))


def test_a_folder_of_images_is_measured_as_its_archive(shades: Path, tmp_path: Path) -> None:
    """With the classes in the names of the files, and in sub-folders."""
    pixels, labels = shade_images(120, seed=2)
    np.savez(tmp_path / "x.npz", images=pixels, labels=labels)
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        for path in (f"named/{number:05}_{label}.png", f"sub/{label}/{number:05}.png"):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(tmp_path / path)
    parts = Parts(likelihood=False, novelty=False)
    of = {
        name: evaluate_images(tmp_path / name, str(shades), tmp_path / "m.json", parts=parts)
        for name in ("x.npz", "named", "sub")
    }
    agreement = of["x.npz"]["class_agreement"]["value"]
    assert agreement > 0.9
    assert of["named"]["frechet"] == of["x.npz"]["frechet"]
    for name in ("named", "sub"):
        assert of[name]["class_agreement"]["value"] == pytest.approx(agreement)


def test_images_that_cannot_be_saved_do_not_cost_the_figures(
    shade_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise cannot_write(path, OSError(errno.ENOSPC, "No space left on device"))

    monkeypatch.setattr(destinations, "write_atomic", full)
    run = shutil.copytree(shade_run, tmp_path / "run")
    (run / "metrics.json").unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"images\.png could not be written"):
        evaluate_run(
            run, 100, parts=Parts(likelihood=False, novelty=False), save=f"{tmp_path}/images.png"
        )
    assert json.loads((run / "metrics.json").read_text())["frechet"]["n"] == 100


def test_classes_are_sampled_as_those_of_real_images_are() -> None:
    """At random: in exact proportions, as good images would look better than real ones."""
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    dataset = Dataset.of("x", torch.zeros(100, 1, 4, 4, dtype=torch.uint8), labels, ("a", "b", "c"))
    counts = np.stack(
        [
            np.bincount(random_labels(dataset, 200, seed, "labels"), minlength=3)
            for seed in range(300)
        ]
    )
    assert counts.mean(axis=0) == pytest.approx([100, 60, 40], abs=2)
    assert counts.std(axis=0) == pytest.approx(
        np.sqrt([200 * p * (1 - p) for p in (0.5, 0.3, 0.2)]), rel=0.15
    )


def test_without_labels_only_novelty_and_likelihood_are_given(
    tmp_path: Path, train: Callable[..., Path]
) -> None:
    images, _ = shade_images(2400, seed=2)
    folder = write_idx(tmp_path / "bare", images)
    run = train(data=str(folder), steps=5)
    found = evaluate_run(run, 100, ode_images=0)
    assert "frechet" not in found
    assert "no labels" in found["missing"]["quality"]
    assert found["reference"]["control"] == "held-out images"
    assert "pixels" in found["novelty"]
    assert "ode" not in found["bits_per_dim"]


def test_sampled_images_are_saved_as_asked_for(
    shade_run: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """As a folder too; and where nothing is measured, nothing false is said of why."""
    run = shutil.copytree(shade_run, tmp_path / "run")
    (run / "metrics.json").unlink(missing_ok=True)
    parts = "--no-quality --no-novelty --bits-images 10 --ode-images 0"
    line = f"undiffuse evaluate {run} --n 100 {parts} --save {tmp_path}/saved/"
    monkeypatch.setattr("sys.argv", line.split())
    cli.main()
    assert len(list((tmp_path / "saved").glob("*.png"))) == 100
    assert json.loads((run / "metrics.json").read_text())["missing"] == {}


def test_a_stopwatch_knows_how_long_each_stage_took(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[str, float]] = []
    watch = Stopwatch(lambda *said: heard.append(said))
    for now, stage in ((1.0, "a"), (3.0, "a"), (6.0, "b")):
        monkeypatch.setattr(time, "monotonic", lambda now=now: now)
        watch(stage, 0.5)
    monkeypatch.setattr(time, "monotonic", lambda: 7.5)
    assert watch.seconds() == {"a": 5.0, "b": 1.5}
    assert heard == [("a", 0.5), ("a", 0.5), ("b", 0.5)]


def test_too_few_images_for_a_control_are_refused(run: Path) -> None:
    with pytest.raises(UserError, match="too few to compare with"):
        evaluate_run(run, 100)
    assert not (run / "metrics.json").exists()


# --- Mistakes ---


def refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> str:
    monkeypatch.setattr("sys.argv", ["undiffuse", "evaluate", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    sentence = capsys.readouterr().err
    assert sentence.count("\n") == 1
    return sentence


def zip_of(path: Path, content: bytes) -> None:
    """An archive whose member `images` has this content."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", content)


def header(shape: tuple[int, ...]) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        out, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    return out.getvalue()


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "not there": (lambda p: None, "does not exist"),
    "no archive": (lambda p: p.write_bytes(b"PK garbage"), "can't be read"),
    "other arrays": (
        lambda p: np.savez(p, pictures=np.zeros((200, 8, 8), np.uint8)),
        "no array 'images'",
    ),
    "wrong size": (lambda p: np.savez(p, images=np.zeros((200, 9, 8), np.uint8)), "have shape"),
    "wrong rank": (lambda p: np.savez(p, images=np.zeros((200, 64), np.uint8)), "have shape"),
    "wrong type": (
        lambda p: np.savez(p, images=np.zeros((200, 8, 8), np.float32)),
        "save them as uint8",
    ),
    "not a number": (lambda p: np.savez(p, images=np.full((200, 8, 8), np.nan)), "NaN"),
    "too few": (lambda p: np.savez(p, images=np.zeros((99, 8, 8), np.uint8)), "too few"),
    "objects": (lambda p: np.savez(p, images=np.array([{}] * 200, dtype=object)), "Python objects"),
    "a text": (lambda p: zip_of(p, b"hello"), "can't be read"),
    "a bomb": (lambda p: zip_of(p, header((10**6, 100, 100)) + bytes(1000)), "more than the"),
    "cut short": (
        lambda p: zip_of(p, header((200, 8, 8)) + bytes(1000)),
        "does not have the length",
    ),
    "too long": (
        lambda p: zip_of(p, header((200, 8, 8)) + bytes(20_000)),
        "does not have the length",
    ),
    "labels of another number": (
        lambda p: np.savez(p, images=np.zeros((200, 8, 8), np.uint8), labels=np.zeros(100, int)),
        "one whole number for each",
    ),
    "labels out of range": (
        lambda p: np.savez(p, images=np.zeros((200, 8, 8), np.uint8), labels=np.full(200, 7)),
        "with 3 classes",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_bad_file_gets_one_sentence(
    what: str,
    shades: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write, expected = BROKEN[what]
    file, out = tmp_path / "x.npz", tmp_path / "metrics.json"
    write(file)
    sentence = refused(
        capsys, monkeypatch, "--images", str(file), "--data", str(shades), "--out", str(out)
    )
    assert expected in sentence
    assert "x.npz" in sentence
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "give either a run folder"),
        (["RUN", "--images", "x.npz"], "give either a run folder"),
        (["--images", "x.npz"], "needs --data"),
        (["RUN", "--data", "mnist"], "was trained on other images than 'mnist'"),
        (["RUN", "--n", "10"], "too few"),
        (["RUN", "--n", "-1", "--no-quality", "--no-novelty"], "n must be at least 100, not -1"),
        (["RUN", "--steps", "0"], "--steps must be at least 1"),
        (["RUN", "--n", "99999999999"], "--n must be at most 10,000,000"),
        (["RUN", "--grid", "nonsense"], "no time grid called"),
        (["RUN", "--ode-images", "1"], "at least 2"),
        (["RUN", "--bits-images", "0"], "at least 2"),
        (["RUN", "--seed", "-1"], "--seed must be a number from 0 to 2^63 - 1, not -1"),
        (["RUN", "--guidance", "nan"], "--guidance must be from 0 to 1,000,000"),
        (["RUN", "--save", "x.jpg"], "FILE.npz"),
        (["RUN", "--no-quality", "--no-novelty", "--no-likelihood"], "nothing to measure"),
        (["RUN", "--save", "x.jpg"], "--save x.jpg"),
        (["RUN", "--sampler", "ddim:eta=2", "--steps", "3"], "eta must be"),
        (
            ["--images", "x.npz", "--data", "mnist", "--out", "m.json", "--n", "500"],
            "measured as they are",
        ),
        (
            [
                "--images",
                "x.npz",
                "--data",
                "mnist",
                "--out",
                "m.json",
                "--no-quality",
                "--no-novelty",
            ],
            "nothing to measure",
        ),
        (["--images", "x.npz", "--data", "mnist", "--out", "."], "name of a file"),
        (["--images", "x.npz", "--data", "mnist", "--out", "no/m.json"], "there is no folder"),
        (["RUN", "--sampler", "nonsense"], "no sampler called"),
        (["nowhere"], "no run folder"),
    ],
)
def test_bad_arguments_get_one_sentence(
    arguments: list[str],
    expected: str,
    shade_run: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = [str(shade_run) if a == "RUN" else a for a in arguments]
    assert expected in refused(capsys, monkeypatch, *given)


def test_the_command_prints_a_table(
    shade_run: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    saved = tmp_path / "saved.npz"
    line = f"undiffuse evaluate {shade_run} --n 120 --no-likelihood --save {saved}"
    monkeypatch.setattr("sys.argv", line.split())
    cli.main()
    printed = capsys.readouterr().out
    found = json.loads((shade_run / "metrics.json").read_text())
    assert f"{found['frechet']['value']:.4g}" in printed
    assert "novelty: " in printed
    with np.load(saved) as archive:
        assert archive["images"].shape == (120, 8, 8)
        counts = np.bincount(archive["labels"], minlength=3)
    assert counts.argmax() == 0


# --- Quality during training ---


@pytest.mark.slow
def test_after_an_evaluation_training_measures_quality(
    train: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a folder without a test set, whatever the seed of the run.

    The network and the floor are the data set's own."""
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    images, labels = shade_images(12_000, seed=9)
    folder = write_idx(tmp_path / "more", images, labels.tolist())
    fields = {
        "data": str(folder),
        "conditional": True,
        "steps": 300,
        "batch_size": 64,
        "quality_share": 0.5,
        "snapshots": 5,
    }
    first = train(**fields)
    assert not Run(first).of(Quality)
    found = evaluate_run(first, 100, parts=Parts(novelty=False, likelihood=False))
    run = Run(train(**fields, seed=5))
    found_then = run.of(Quality)
    assert found_then
    assert found_then[-1].step == 300
    assert {quality.n for quality in found_then} == {500}
    assert all(0 < quality.floor < quality.frechet for quality in found_then)
    with Image.open(first / "loss.png") as without, Image.open(run.path / "loss.png") as picture:
        assert picture.height > 1.3 * without.height  # with a third panel
    again = evaluate_run(run.path, 100, parts=Parts(novelty=False, likelihood=False))
    assert again["features"] == found["features"]
    assert again["frechet"]["floor"] == found["frechet"]["floor"]
    assert not Run(train(**{**fields, "quality_share": 0.0, "steps": 5})).of(Quality)
