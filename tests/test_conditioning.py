"""The public API speaks of classes only, and who asks for a class gets images of that class.

The network is conditioned on clusters, several in each class. A number of a class that were taken
for one of a cluster somewhere would give images of another class, and no error. So every public way
to ask for a class is tried, and a classifier looks at the images."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import undiffuse
from conftest import write_idx
from undiffuse import Model, cli
from undiffuse.base.errors import UserError
from undiffuse.base.images import tiles
from undiffuse.base.pixels import to_uint8
from undiffuse.data.loading import load_dataset
from undiffuse.diffusion.conditioning import Conditioning
from undiffuse.measuring.features import FeatureNetwork, digits_network, feature_network
from undiffuse.measuring.quality import METRICS
from undiffuse.runs.evaluation import Parts, evaluate_run
from undiffuse.runs.folder import Run

NAMES = ("2", "5", "7")
"""Of the classes 0, 1 and 2. The name of the first class is the number of the last one."""

AGREEMENT = 0.8
"""The least share of images that look like the class asked for. Chance is a third."""

ASKED = 60  # images of each class


def shapes_images(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(images (n, 8, 8), labels (n,)): a bar across, a bar down or a square, on noise.

    Each has one of four places. Half of the images have the first label."""
    g = np.random.default_rng(seed)
    kinds = g.choice(3, size=n, p=[0.5, 0.3, 0.2])
    images = g.integers(0, 60, (n, 8, 8))
    for image, kind in zip(images, kinds, strict=True):
        place = g.integers(4)
        if kind == 0:
            image[2 * place : 2 * place + 2] += 180
        elif kind == 1:
            image[:, 2 * place : 2 * place + 2] += 180
        else:
            y, x = 4 * (place // 2), 4 * (place % 2)
            image[y : y + 4, x : x + 4] += 180
    return images.astype(np.uint8), np.array(NAMES, dtype=np.uint8)[kinds]


@dataclass(frozen=True)
class Asking:
    """A run that is conditioned on clusters, its model, and a classifier of its data."""

    run: Path
    model: Model
    classifier: FeatureNetwork

    def share(self, images: Tensor | np.ndarray, number: int) -> float:
        """Of images (n, 8, 8) or (n, 1, 8, 8): the share that look like the class `number`."""
        _, probabilities = self.classifier(torch.as_tensor(images).reshape(-1, 1, 8, 8))
        return (probabilities.argmax(dim=1) == number).float().mean().item()


@pytest.fixture(scope="module")
def asking(train: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    for part, n, seed in (("train", 2400, 0), ("t10k", 200, 1)):
        images, labels = shapes_images(n, seed)
        write_idx(folder / part, images, labels.tolist())
        for kind, d in (("images", 3), ("labels", 1)):
            file = folder / part / f"{kind}-idx{d}-ubyte"
            file.rename(folder / f"{part}-{file.name}")
        (folder / part).rmdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNDIFFUSE_CACHE", str(tmp_path_factory.mktemp("cache")))
        fields = {"conditional": True, "clusters": 12, "guidance": 1.5, "sample_calls": 16}
        run = train(data=str(folder), steps=300, batch_size=32, lr=5e-3, dropout=0.0, **fields)
        classifier = feature_network(load_dataset(str(folder)))
        assert classifier is not None
        yield Asking(run, undiffuse.load(run), classifier)


def test_there_are_several_clusters_in_each_class(asking: Asking) -> None:
    """So the number of a class is that of a cluster of the first class. All is as it must be."""
    conditioning = asking.model.description.conditioning
    assert asking.model.classes == NAMES
    assert conditioning.class_of_cluster == (0,) * 4 + (1,) * 4 + (2,) * 4
    test = load_dataset(Run(asking.run).about().config.data, split="test")
    assert test.labels is not None
    for number in range(3):
        assert asking.share(test.images[test.labels == number], number) > 0.95


def called(k: int) -> int:
    """What class number k is called: its name, as a number."""
    return int(NAMES[k])


Way = Callable[[Asking, int], Any]
"""Makes ASKED images of the class with a number."""

WAYS: dict[str, Way] = {
    "sample(classes=number)": lambda a, k: undiffuse.sample(a.run, ASKED, called(k)),
    "sample(classes=name)": lambda a, k: undiffuse.sample(a.run, ASKED, classes=NAMES[k]),
    "sample(classes=[number])": lambda a, k: undiffuse.sample(a.run, ASKED, classes=[called(k)]),
    "sample(classes=[name])": lambda a, k: undiffuse.sample(a.run, ASKED, classes=[NAMES[k]]),
    "sample(classes=tensor)": lambda a, k: undiffuse.sample(
        a.run, ASKED, classes=torch.full((ASKED,), called(k))
    ),
    "sample without guidance": lambda a, k: undiffuse.sample(a.run, ASKED, called(k), guidance=1.0),
    "sample in batches": lambda a, k: undiffuse.sample(a.run, ASKED, called(k), batch_size=7),
    "sample by another sampler": lambda a, k: undiffuse.sample(
        a.run, ASKED, called(k), sampler="heun"
    ),
    "model.sample(classes=number)": lambda a, k: a.model.sample(ASKED, called(k)),
    "model.sample(classes=name)": lambda a, k: a.model.sample(ASKED, classes=NAMES[k]),
    "model.request": lambda a, k: torch.cat(list(a.model.request(ASKED, called(k)).batches())),
    "request.stages": lambda a, k: a.model.request(ASKED, NAMES[k]).stages(ASKED)[-1],
}


@pytest.mark.parametrize("way", WAYS)
def test_a_class_that_is_asked_for_is_what_one_gets(asking: Asking, way: str) -> None:
    for number in range(3):
        images = WAYS[way](asking, number)
        assert len(images) == ASKED
        assert asking.share(images, number) >= AGREEMENT, number


def test_classes_in_turn_are_each_the_one_asked_for(asking: Asking) -> None:
    """By default all classes take turns. The request says which class each image has."""
    for classes, expected in (
        (None, [0, 1, 2]),
        ([7, 2], [2, 0]),
        (["2", "7", 5], [0, 2, 1]),
        (torch.tensor([5, 7]), [1, 2]),
    ):
        request = asking.model.request(ASKED, classes)
        turns = torch.tensor(expected)[torch.arange(ASKED) % len(expected)]
        assert request.classes is not None
        assert torch.equal(request.classes, turns)
        images = torch.cat(list(request.batches()))
        for number in expected:
            assert asking.share(images[turns == number], number) >= AGREEMENT, (classes, number)


def test_a_saved_model_understands_the_same_classes(asking: Asking, tmp_path: Path) -> None:
    asking.model.save(tmp_path / "shapes.safetensors")
    model = Model.load(tmp_path / "shapes.safetensors")
    for number, name in enumerate(NAMES):
        assert asking.share(model.sample(ASKED, classes=name), number) >= AGREEMENT


@pytest.mark.parametrize("flag", ["--classes", "--label"])
def test_the_command_gives_the_class_asked_for(
    asking: Asking, flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name or by number: an archive, whose labels are right, and files named after classes."""

    def command(*arguments: object) -> None:
        line = ["undiffuse", "sample", asking.run, "--n", ASKED, *arguments]
        monkeypatch.setattr("sys.argv", list(map(str, line)))
        cli.main()

    for word, number in (("7", 2), ("5", 1), ("02", 0)):
        command(flag, word, "--out", tmp_path / f"{word}.npz")
        with np.load(tmp_path / f"{word}.npz") as archive:
            assert archive["labels"].tolist() == [number] * ASKED
            assert asking.share(archive["images"], number) >= AGREEMENT, word
    command(flag, "5", "7", "--out", f"{tmp_path}/some/")
    for number, name in ((1, "5"), (2, "7")):
        files = sorted((tmp_path / "some").glob(f"*_{name}.png"))
        assert len(files) == ASKED // 2
        images = np.stack([np.asarray(Image.open(file)) for file in files])
        assert asking.share(images, number) >= AGREEMENT, name


def test_a_grid_has_a_row_of_each_class(
    asking: Asking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the pictures of the training have a column of each."""
    line = f"undiffuse sample {asking.run} --n {ASKED} --out {tmp_path}/grid.png"
    monkeypatch.setattr("sys.argv", line.split())
    cli.main()

    def images_of(file: Path) -> np.ndarray:
        with Image.open(file) as sheet:
            return np.stack([np.asarray(t.resize((8, 8), 0)) for t in tiles(sheet, 8, 8)])

    rows = images_of(tmp_path / "grid.png").reshape(3, ASKED // 3, 8, 8)
    for number in range(3):
        assert asking.share(rows[number], number) >= AGREEMENT
    real = images_of(asking.run / "data.png")
    for number in range(3):
        assert asking.share(real[number::3], number) >= AGREEMENT


@pytest.mark.parametrize("t", [0.98, 0.9])
def test_strongly_noised_images_are_denoised_towards_the_class(asking: Asking, t: float) -> None:
    """Whatever they were before: here of the other classes."""
    test = load_dataset(Run(asking.run).about().config.data, split="test")
    assert test.labels is not None
    for number, name in enumerate(NAMES):
        others = test.images[test.labels != number][:ASKED]
        x_t = asking.model.noised(others, t)
        for classes in (int(name), name, [int(name)] * len(others), [name] * len(others)):
            denoised = to_uint8(asking.model(x_t, t, classes=classes))
            assert asking.share(denoised, number) >= AGREEMENT, classes
    mixed = torch.arange(len(x_t)) % 3
    denoised = to_uint8(asking.model(x_t, t, classes=[called(k) for k in mixed.tolist()]))
    for number in range(3):
        assert asking.share(denoised[mixed == number], number) >= AGREEMENT


def test_an_evaluation_asks_for_the_classes_it_compares_with(
    asking: Asking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the images that it saves have the labels that it asked for."""
    monkeypatch.delitem(METRICS._functions, "classification_accuracy_score")  # trains for long
    saved = tmp_path / "images.npz"
    parts = Parts(likelihood=False, novelty=False)
    found = evaluate_run(asking.run, 150, parts=parts, save=str(saved))
    assert found["class_agreement"]["value"] >= AGREEMENT
    with np.load(saved) as archive:
        labels, images = archive["labels"], archive["images"]
    for number in range(3):
        assert asking.share(images[labels == number], number) >= AGREEMENT
    assert np.bincount(labels).argmax() == 0


def test_a_class_is_no_cluster() -> None:
    """The one place that knows both: classes go in, and clusters of these classes come out."""
    conditioning = Conditioning(NAMES, (30, 10, 20, 0, 40), (2, 0, 0, 1, 2))
    for number in range(3):
        clusters = conditioning.sample(torch.full((500,), number), range(500), seed=4)
        assert clusters is not None
        assert {conditioning.class_of_cluster[k] for k in clusters.tolist()} == {number}
    of_last = torch.bincount(clusters, minlength=5) / 500
    assert of_last.tolist() == pytest.approx([3 / 7, 0, 0, 0, 4 / 7], abs=0.07)
    asked = ("2", 2, "7", 5, "05")
    assert [conditioning.class_numbers(word) for word in asked] == [[0], [0], [2], [1], [1]]


@pytest.mark.parametrize(
    ("names", "asked", "meant"),
    [
        (tuple(map(str, range(1, 27))), 2, "2"),
        (tuple(f"{k:02}" for k in range(1, 27)), 2, "02"),
        (tuple(f"{k:02}" for k in range(1, 27)), "2", "02"),
        (tuple(map(str, range(12))), "10", "10"),
        (("cat", "dog"), 1, "dog"),
        (("cat", "dog"), "1", "dog"),
        (("cat", "1", "dog"), "1", "1"),  # as text it is the name
        (("cat", "0 dogs", "2"), 1, "0 dogs"),
        (("cat", "1", "dog"), 1, "1"),  # the number and the name are the same class
        (("e", "e\u0301"), "\u00e9", "e\u0301"),  # a Mac's name for \u00e9
        (("e\u0301", "\u00e9"), "\u00e9", "\u00e9"),
        (("cat", "None"), "None", "None"),
    ],
)
def test_a_class_is_what_it_is_called(names: tuple[str, ...], asked: Any, meant: str) -> None:
    assert Conditioning(names).class_numbers(asked) == [names.index(meant)]
    if isinstance(asked, int):
        assert Conditioning(names).class_numbers(np.int64(asked)) == [names.index(meant)]


@pytest.mark.parametrize(
    ("names", "asked", "said"),
    [
        (tuple(map(str, range(1, 27))), 0, "there is no class 0; there are 26 classes"),
        (("1", "01"), 1, "class 1 may mean '1' (number 0) or '01' (number 1)"),
        (("2", "cat", "dog"), 2, "class 2 may mean '2' (number 0) or 'dog' (number 2)"),
        (("cat", "dog"), 2, "there is no class 2; the classes are 0 to 1: cat, dog"),
        (("cat", "dog"), True, "there is no class True"),
    ],
)
def test_a_class_that_means_two_things_is_refused(
    names: tuple[str, ...], asked: Any, said: str
) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        Conditioning(names).class_numbers(asked)


def test_of_many_classes_the_nearest_are_named() -> None:
    names = tuple(f"kind {k:03}" for k in range(300))
    with pytest.raises(UserError, match=r"nearest names are.*kind 123") as error:
        Conditioning(names).class_numbers("kind 1234")
    assert len(str(error.value)) < 200


@pytest.mark.slow
def test_digits_that_are_asked_for_are_what_one_gets(tmp_path: Path) -> None:
    """MNIST, the usual network and clusters, and the packaged classifier: some minutes."""
    run = undiffuse.train(
        tmp_path / "digits", conditional=True, steps=600, compile="off", quality_share=0.0
    )
    model, classifier = undiffuse.load(run), digits_network()
    assert len(model.description.conditioning.clusters) > 100
    for number in range(10):
        for classes in (number, str(number), [number]):
            _, probabilities = classifier(torch.from_numpy(model.sample(40, classes))[:, None])
            found = (probabilities.argmax(dim=1) == number).float().mean().item()
            assert found >= AGREEMENT, classes
    found = evaluate_run(run, 300, parts=Parts(likelihood=False, novelty=False))
    assert found["class_agreement"]["value"] >= AGREEMENT
