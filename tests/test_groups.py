"""Groups: k-means against scikit-learn and known clusters, and what a run makes of them."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from undiffuse.training.events import Stepped

import undiffuse
from conftest import write_idx
from undiffuse.data.clusters import FEWEST, coarse, k_means, k_means_within
from undiffuse.data.dataset import Dataset
from undiffuse.data.loading import load_dataset
from undiffuse.diffusion.sampling import drawn_groups, shares
from undiffuse.measuring.bits import known_labels
from undiffuse.report import Report
from undiffuse.report.blocks import Text
from undiffuse.runs.figures import examples
from undiffuse.runs.folder import Run
from undiffuse.runs.session import train_session
from undiffuse.training.experiment import grouped, prepare
from undiffuse.training.presets import make_config
from undiffuse.training.probes import quick_samples


def blobs(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(images (n, 8, 8), kinds (n,)): noise around one of four pictures, a half, a quarter, an eighth and an eighth of them."""
    g = np.random.default_rng(seed)
    pictures = np.random.default_rng(99).integers(40, 216, (4, 8, 8))
    kinds = g.choice(4, size=n, p=[0.5, 0.25, 0.125, 0.125])
    return np.clip(pictures[kinds] + g.normal(0, 12, (n, 8, 8)), 0, 255).astype(np.uint8), kinds


def kinds_of(images: np.ndarray) -> np.ndarray:
    """The share of each kind among images (n, ...) of 64 pixels."""
    pictures = np.random.default_rng(99).integers(40, 216, (4, 64))
    nearest = ((images.reshape(-1, 1, 64).astype(float) - pictures) ** 2).sum(axis=2).argmin(axis=1)
    return np.bincount(nearest, minlength=4) / len(images)


def test_k_means_finds_groups_that_are_there() -> None:
    """With more groups than kinds of picture none holds two kinds."""
    images, kinds = blobs(1600)
    found = k_means(torch.from_numpy(images)[:, None], 12, seed=0).numpy()
    for group in np.unique(found):
        assert len(np.unique(kinds[found == group])) == 1


def test_k_means_is_as_good_as_scikit_learns() -> None:
    """The sum of squared distances to the centres, on digits."""
    images = load_dataset("mnist").images[:6000]
    x = coarse(images)

    def inertia(group: np.ndarray) -> float:
        return sum(
            (x[group == k] - x[group == k].mean(dim=0)).square().sum().item()
            for k in np.unique(group)
        )

    theirs = KMeans(32, init="random", n_init=1, max_iter=30, random_state=0).fit(x.numpy())
    assert inertia(k_means(images, 32, seed=0).numpy()) < 1.02 * theirs.inertia_


def test_few_images_have_few_groups() -> None:
    images = torch.from_numpy(blobs(5 * FEWEST + 7)[0])[:, None]
    assert k_means(images, 64, seed=0).max() <= 4
    assert k_means(images[:FEWEST], 64, seed=0).tolist() == [0] * FEWEST
    assert torch.equal(k_means(images, 64, seed=3), k_means(images, 64, seed=3))


def test_groups_within_classes_are_those_of_each_class_alone() -> None:
    """And a class without images has a group all the same, so that it can be asked for."""
    images, label = torch.from_numpy(blobs(1600)[0])[:, None], torch.arange(1600) % 2 * 2
    found, class_of = k_means_within(images, label, classes=4, groups=16, seed=0)
    assert class_of == (0, 0, 0, 0, 1, 2, 2, 2, 2, 3)
    assert torch.equal(found[label == 0], k_means(images[label == 0], 4, seed=0))
    assert torch.equal(found[label == 2], 5 + k_means(images[label == 2], 4, seed=0))


def test_identical_images_are_one_group() -> None:
    assert (
        k_means(torch.full((400, 1, 8, 8), 7, dtype=torch.uint8), 4, seed=0).unique().numel() == 1
    )


def test_groups_are_drawn_as_often_as_they_are_large() -> None:
    sizes = torch.tensor([30, 0, 50, 20])
    found = drawn_groups(sizes, range(5000), seed=1)
    assert torch.bincount(found, minlength=4).tolist() == pytest.approx(
        [1500, 0, 2500, 1000], abs=110
    )
    assert torch.equal(drawn_groups(sizes, [7, 4000], seed=1), found[[7, 4000]])
    assert not torch.equal(drawn_groups(sizes, range(5000), seed=2), found)


@pytest.fixture(scope="module")
def grouped_run(train: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_idx(tmp_path_factory.mktemp("data") / "blobs", blobs(900)[0])
    return train(
        data=str(folder), steps=150, groups=4, batch_size=32, lr=5e-3, guidance=1.5, sample_calls=20
    )


def test_a_run_knows_its_groups_and_needs_no_label(grouped_run: Path) -> None:
    about, denoiser = Run(grouped_run).about(), undiffuse.load(grouped_run)
    assert denoiser.groups == about.facts.groups
    assert (denoiser.classes, denoiser.labels) == ((), len(denoiser.groups))
    assert sum(denoiser.groups) == about.facts.training == 855
    with pytest.raises(undiffuse.UserError, match="trained without labels"):
        undiffuse.sample(grouped_run, n=2, labels=[1])


def test_images_are_drawn_in_the_groups_proportions(grouped_run: Path) -> None:
    """Each kind about as often as the data hold it; the same image in any batch."""
    drawn = undiffuse.sample(grouped_run, n=400)
    assert kinds_of(drawn) == pytest.approx([0.5, 0.25, 0.125, 0.125], abs=0.08)
    alone = undiffuse.sample(grouped_run, n=5, batch_size=2).astype(int)
    assert np.abs(alone - drawn[:5]).max() <= 1


def test_a_finished_run_with_groups_is_known_again(grouped_run: Path) -> None:
    config = Run(grouped_run).about().config
    assert not config.conditional
    assert (
        undiffuse.api.train_config(config, grouped_run) == grouped_run
    )  # finished: the same data are the same data


@pytest.mark.parametrize("fields", [{"groups": 0}, {"groups": 4, "conditional": True}])
def test_without_groups_the_labels_are_the_data_sets(
    fields: dict[str, object], train: Callable[..., Path]
) -> None:
    run = Run(train(steps=1, snapshots=2, **fields))
    denoiser, _ = run.denoiser()
    assert denoiser.groups == ()
    assert denoiser.labels == (10 if "conditional" in fields else 0)
    if denoiser.labels:
        training, _, _ = prepare(run.about().config)
        mean = training.images[training.labels == 7].double().mean(dim=0) / 127.5 - 1
        assert torch.allclose(denoiser.network.pictures[7].double(), mean, atol=1e-6)


@pytest.fixture(scope="module")
def parts_run(train: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two classes: the blobs of the first and the last kind are "0", the others are "1"."""
    images, kinds = blobs(900)
    folder = write_idx(
        tmp_path_factory.mktemp("data") / "blobs", images, (kinds % 3 > 0).astype(int).tolist()
    )
    fields = {"conditional": True, "groups": 8, "guidance": 1.5, "sample_calls": 20}
    return train(data=str(folder), steps=150, batch_size=32, lr=5e-3, **fields)


def test_the_classes_of_a_conditional_run_have_groups(parts_run: Path) -> None:
    about, denoiser = Run(parts_run).about(), undiffuse.load(parts_run)
    assert denoiser.classes == ("0", "1")
    assert (
        denoiser.class_of == about.facts.class_of == (0,) * 4 + (1,) * 3
    )  # 300 of the 900 images are "1"
    assert denoiser.told == about.told == "part"
    assert sum(denoiser.groups) == about.facts.training == 855


def test_a_class_is_drawn_in_the_proportions_of_its_groups(parts_run: Path) -> None:
    """Each kind about as often as the data hold it in that class, and none of another class."""
    for label, expected in (("0", [0.8, 0, 0, 0.2]), ("1", [0, 2 / 3, 1 / 3, 0])):
        drawn = undiffuse.sample(parts_run, n=200, labels=[label])
        assert kinds_of(drawn) == pytest.approx(expected, abs=0.1)


def test_quick_samples_are_of_all_classes_as_the_data_have_them(parts_run: Path) -> None:
    config, denoiser = Run(parts_run).about().config, undiffuse.load(parts_run)
    training, _, _ = grouped(config, *prepare(config))
    drawn = torch.cat(list(quick_samples(denoiser, config, training, 400, 150)))
    assert kinds_of(drawn.numpy()) == pytest.approx([0.5, 0.25, 0.125, 0.125], abs=0.1)


def test_images_are_no_other_in_another_batch(parts_run: Path) -> None:
    whole, parts = (
        undiffuse.sample(parts_run, n=6, batch_size=size).astype(int) for size in (6, 2)
    )
    assert np.abs(whole - parts).max() <= 1


def test_the_likelihood_is_that_of_all_groups_together(parts_run: Path) -> None:
    """As for groups without classes: a test image's group is not known."""
    denoiser, whole = undiffuse.load(parts_run), load_dataset(Run(parts_run).about().config.data)
    assert known_labels(denoiser, whole) is None
    assert known_labels(replace(denoiser, groups=(), class_of=()), whole) is whole.labels


@pytest.mark.parametrize("run", ["grouped_run", "parts_run"])
def test_the_network_sees_the_mean_image_of_each_group(
    run: str, request: pytest.FixtureRequest
) -> None:
    """And of all images where it is told none. It guesses otherwise where it sees another."""
    folder = Run(request.getfixturevalue(run))
    denoiser, _ = folder.denoiser()
    config = folder.about().config
    training, _, _ = grouped(config, *prepare(config))
    pixels, labels = training.images.double() / 127.5 - 1, training.labels
    expected = [pixels[labels == k].mean(dim=0) for k in range(denoiser.labels)] + [
        pixels.mean(dim=0)
    ]
    assert torch.allclose(denoiser.network.pictures.double(), torch.stack(expected), atol=1e-6)
    x_t, t = (
        torch.randn(2, *denoiser.shape, generator=torch.Generator().manual_seed(0)),
        torch.full((2,), 0.9),
    )
    label = torch.tensor([0, 1])
    with torch.no_grad():
        before = denoiser(x_t, t, label)
        denoiser.network.pictures[1] = 1
        after = denoiser(x_t, t, label)
    assert torch.equal(before[0], after[0])
    assert (before[1] - after[1]).abs().max() > 0.01


@pytest.mark.parametrize("run", ["grouped_run", "parts_run"])
def test_the_picture_of_the_data_has_columns_of_classes_and_not_of_groups(
    run: str, request: pytest.FixtureRequest
) -> None:
    folder = Run(request.getfixturevalue(run))
    training, _, facts = prepare(folder.about().config)
    assert (folder.path / "data.png").read_bytes() == examples(training, facts.classes)


def test_a_class_without_images_can_be_told_all_the_same() -> None:
    """As where a small part of the data is trained on; the last class, too."""
    config = make_config(steps=1, conditional=True, groups=12)
    images, kinds = blobs(1000)
    label = torch.from_numpy(kinds)
    whole = Dataset("blobs", torch.from_numpy(images)[:, None], label, ("0", "1", "2", "3"))
    _, _, facts = grouped(config, *prepare(config, whole.take(label < 2)))
    assert facts.class_of == (0, 0, 0, 1, 1, 2, 3)
    assert facts.groups[-2:] == (0, 0)
    idle = undiffuse.Denoiser(
        lambda x, log_snr, label: x * 0,
        "cosine",
        "v",
        facts.shape,
        facts.classes,
        facts.groups,
        facts.class_of,
    )
    found = drawn_groups(shares(idle, torch.tensor([3, 2, 1, 0])), range(4), seed=0)
    assert [facts.class_of[group] for group in found] == [3, 2, 1, 0]


@pytest.mark.parametrize("resumed", [True, False])
def test_a_run_with_groups_is_the_same_to_the_bit(
    parts_run: Path, resumed: bool, tmp_path: Path
) -> None:
    """Stopped and gone on with, and replayed."""
    config, folder = Run(parts_run).about().config, tmp_path / "again"
    events = train_session(config, folder, replay=None if resumed else parts_run)
    if resumed:
        list(
            itertools.takewhile(
                lambda event: not (isinstance(event, Stepped) and event.step == 70), events
            )
        )
        events.close()
        assert not Run(folder).finished()
        events = train_session(config, folder)
    list(events)
    assert (folder / "model.safetensors").read_bytes() == (
        parts_run / "model.safetensors"
    ).read_bytes()


def test_a_run_of_before_there_were_groups_within_classes(parts_run: Path, tmp_path: Path) -> None:
    """It is finished; an unfinished one, or a replay, would train another network, and is refused."""
    folder = shutil.copytree(parts_run, tmp_path / "old")
    content = json.loads((folder / "config.json").read_text())
    del content["data"]["class_of"]
    content["data"]["groups"] = []
    (folder / "config.json").write_text(json.dumps(content))
    about = Run(folder).about()
    assert about.told == "class"
    assert list(train_session(about.config, folder)) == []
    with pytest.raises(
        undiffuse.UserError, match=r"begun with 0 groups .* a replay would be another run"
    ):
        list(train_session(about.config, tmp_path / "new", replay=folder))
    assert not (tmp_path / "new").exists()
    log = (folder / "log.jsonl").read_text().splitlines(keepends=True)
    (folder / "log.jsonl").write_text("".join(log[:-1]))
    with pytest.raises(undiffuse.UserError, match=r"begun with 0 groups .* with another --out"):
        list(train_session(about.config, folder))


def test_the_report_says_what_the_network_is_told(parts_run: Path) -> None:
    page = " ".join(block.words for block in Report(parts_run).blocks if isinstance(block, Text))
    assert "which of 7 groups of similar images" in page
    assert "each is a part of a class" in page
    assert "it sees the mean image of that group" in page
