"""Clusters: k-means against scikit-learn and known clusters, and what a run makes of them."""

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

import undiffuse
from conftest import write_idx
from undiffuse.data.clusters import FEWEST, coarse, k_means, k_means_within
from undiffuse.data.dataset import Dataset
from undiffuse.data.loading import load_dataset
from undiffuse.diffusion.conditioning import Conditioning, sample_clusters
from undiffuse.measuring.bits import known_condition
from undiffuse.report import Report
from undiffuse.report.blocks import Text
from undiffuse.runs.figures import examples
from undiffuse.runs.folder import Run
from undiffuse.runs.session import train_session
from undiffuse.training.experiment import make_experiment
from undiffuse.training.options import make_options
from undiffuse.training.presets import make_config
from undiffuse.training.probes import quick_samples
from undiffuse.training.records import StepTaken


def blobs(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(images (n, 8, 8), kinds (n,)): noise around one of four pictures.

    A half of the images, a quarter, an eighth and an eighth are around each."""
    g = np.random.default_rng(seed)
    pictures = np.random.default_rng(99).integers(40, 216, (4, 8, 8))
    kinds = g.choice(4, size=n, p=[0.5, 0.25, 0.125, 0.125])
    return np.clip(pictures[kinds] + g.normal(0, 12, (n, 8, 8)), 0, 255).astype(np.uint8), kinds


def kinds_of(images: np.ndarray) -> np.ndarray:
    """The share of each kind among images (n, ...) of 64 pixels."""
    pictures = np.random.default_rng(99).integers(40, 216, (4, 64))
    nearest = ((images.reshape(-1, 1, 64).astype(float) - pictures) ** 2).sum(axis=2).argmin(axis=1)
    return np.bincount(nearest, minlength=4) / len(images)


def test_k_means_finds_clusters_that_are_there() -> None:
    """With more clusters than kinds of picture none holds two kinds."""
    images, kinds = blobs(1600)
    found = k_means(torch.from_numpy(images)[:, None], 12, seed=0).numpy()
    for cluster in np.unique(found):
        assert len(np.unique(kinds[found == cluster])) == 1


def test_k_means_is_as_good_as_scikit_learns() -> None:
    """The sum of squared distances to the centres, on digits."""
    images = load_dataset("mnist").images[:6000]
    x = coarse(images)

    def inertia(cluster: np.ndarray) -> float:
        return sum(
            (x[cluster == k] - x[cluster == k].mean(dim=0)).square().sum().item()
            for k in np.unique(cluster)
        )

    theirs = KMeans(32, init="random", n_init=1, max_iter=30, random_state=0).fit(x.numpy())
    assert inertia(k_means(images, 32, seed=0).numpy()) < 1.02 * theirs.inertia_


def test_few_images_have_few_clusters() -> None:
    images = torch.from_numpy(blobs(5 * FEWEST + 7)[0])[:, None]
    assert k_means(images, 64, seed=0).max() <= 4
    assert k_means(images[:FEWEST], 64, seed=0).tolist() == [0] * FEWEST
    assert torch.equal(k_means(images, 64, seed=3), k_means(images, 64, seed=3))


def test_clusters_within_classes_are_those_of_each_class_alone() -> None:
    """And a class without images has a cluster all the same, so that it can be asked for."""
    images, label = torch.from_numpy(blobs(1600)[0])[:, None], torch.arange(1600) % 2 * 2
    found, class_of_cluster = k_means_within(images, label, classes=4, clusters=16, seed=0)
    assert class_of_cluster == (0, 0, 0, 0, 1, 2, 2, 2, 2, 3)
    assert torch.equal(found[label == 0], k_means(images[label == 0], 4, seed=0))
    assert torch.equal(found[label == 2], 5 + k_means(images[label == 2], 4, seed=0))


def test_identical_images_are_one_cluster() -> None:
    assert (
        k_means(torch.full((400, 1, 8, 8), 7, dtype=torch.uint8), 4, seed=0).unique().numel() == 1
    )


def test_clusters_are_sampled_in_proportion_to_their_size() -> None:
    sizes = torch.tensor([30, 0, 50, 20])
    found = sample_clusters(sizes, range(5000), seed=1)
    assert torch.bincount(found, minlength=4).tolist() == pytest.approx(
        [1500, 0, 2500, 1000], abs=110
    )
    assert torch.equal(sample_clusters(sizes, [7, 4000], seed=1), found[[7, 4000]])
    assert not torch.equal(sample_clusters(sizes, range(5000), seed=2), found)


@pytest.fixture(scope="module")
def cluster_run(train: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_idx(tmp_path_factory.mktemp("data") / "blobs", blobs(900)[0])
    return train(
        data=str(folder),
        steps=150,
        clusters=4,
        batch_size=32,
        lr=5e-3,
        guidance=1.5,
        sample_calls=20,
    )


def test_a_run_knows_its_clusters_and_needs_no_class(cluster_run: Path) -> None:
    about, model = Run(cluster_run).about(), undiffuse.load(cluster_run)
    conditioning = model.description.conditioning
    assert conditioning == about.conditioning
    assert (model.classes, conditioning.count) == ((), len(conditioning.clusters))
    assert conditioning.kind == "cluster"
    assert sum(conditioning.clusters) == about.facts.training == 855
    with pytest.raises(undiffuse.UserError, match="trained without classes"):
        undiffuse.sample(cluster_run, n=2, classes=[1])


def test_images_are_sampled_in_the_clusters_proportions(cluster_run: Path) -> None:
    """Each kind about as often as the data hold it; the same image in any batch."""
    images = undiffuse.sample(cluster_run, n=400)
    assert kinds_of(images) == pytest.approx([0.5, 0.25, 0.125, 0.125], abs=0.08)
    alone = undiffuse.sample(cluster_run, n=5, batch_size=2).astype(int)
    assert np.abs(alone - images[:5]).max() <= 1


def test_a_finished_run_with_clusters_is_known_again(cluster_run: Path) -> None:
    """The same data are the same data."""
    config = Run(cluster_run).about().config
    assert not config.conditional
    assert undiffuse.api.train_config(config, cluster_run) == cluster_run


@pytest.mark.parametrize("fields", [{"clusters": 0}, {"clusters": 4, "conditional": True}])
def test_without_clusters_the_conditions_are_the_classes(
    fields: dict[str, object], train: Callable[..., Path]
) -> None:
    run = Run(train(steps=1, snapshots=2, **fields))
    model = run.model()
    conditioning = model.description.conditioning
    assert conditioning.clusters == ()
    assert conditioning.count == (10 if "conditional" in fields else 0)
    if conditioning.count:
        training = make_experiment(run.about().config).training.dataset
        mean = training.images[training.labels == 7].double().mean(dim=0) / 127.5 - 1
        assert torch.allclose(model.network.prototypes[7].double(), mean, atol=1e-6)


@pytest.fixture(scope="module")
def parts_run(train: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two classes: the blobs of the first and the last kind are "0", the others are "1"."""
    images, kinds = blobs(900)
    folder = write_idx(
        tmp_path_factory.mktemp("data") / "blobs", images, (kinds % 3 > 0).astype(int).tolist()
    )
    fields = {"conditional": True, "clusters": 8, "guidance": 1.5, "sample_calls": 20}
    return train(data=str(folder), steps=150, batch_size=32, lr=5e-3, **fields)


def test_the_classes_of_a_conditional_run_have_clusters(parts_run: Path) -> None:
    about, model = Run(parts_run).about(), undiffuse.load(parts_run)
    conditioning = model.description.conditioning
    assert model.classes == ("0", "1")
    assert conditioning == about.conditioning
    # 300 of the 900 images are "1".
    assert conditioning.class_of_cluster == (0,) * 4 + (1,) * 3
    assert conditioning.kind == "sub-class cluster"
    assert sum(conditioning.clusters) == about.facts.training == 855


def test_a_class_is_sampled_in_the_proportions_of_its_clusters(parts_run: Path) -> None:
    """Each kind about as often as the data hold it in that class, and none of another class."""
    for name, expected in (("0", [0.8, 0, 0, 0.2]), ("1", [0, 2 / 3, 1 / 3, 0])):
        images = undiffuse.sample(parts_run, n=200, classes=[name])
        assert kinds_of(images) == pytest.approx(expected, abs=0.1)


def test_quick_samples_are_of_all_classes_as_the_data_have_them(parts_run: Path) -> None:
    config, denoiser = Run(parts_run).about().config, undiffuse.load(parts_run).denoiser
    images = torch.cat(list(quick_samples(denoiser, make_experiment(config), 400, 150)))
    assert kinds_of(images.numpy()) == pytest.approx([0.5, 0.25, 0.125, 0.125], abs=0.1)


def test_images_are_no_other_in_another_batch(parts_run: Path) -> None:
    whole, parts = (
        undiffuse.sample(parts_run, n=6, batch_size=size).astype(int) for size in (6, 2)
    )
    assert np.abs(whole - parts).max() <= 1


def test_the_likelihood_is_that_of_all_clusters_together(parts_run: Path) -> None:
    """As for clusters without classes: a test image's cluster is not known."""
    denoiser = undiffuse.load(parts_run).denoiser
    whole = load_dataset(Run(parts_run).about().config.data)
    assert known_condition(denoiser, whole) is None
    of_classes = replace(denoiser, conditioning=Conditioning(denoiser.conditioning.classes))
    assert known_condition(of_classes, whole) is whole.labels


@pytest.mark.parametrize("run", ["cluster_run", "parts_run"])
def test_the_network_sees_the_mean_image_of_each_cluster(
    run: str, request: pytest.FixtureRequest
) -> None:
    """And of all images where there is no condition. With another one x_0_hat is another."""
    folder = Run(request.getfixturevalue(run))
    model = folder.model()
    denoiser, prototypes = model.denoiser, model.network.prototypes
    training = make_experiment(folder.about().config).training
    pixels, condition = training.dataset.images.double() / 127.5 - 1, training.condition
    count = denoiser.conditioning.count
    expected = [*(pixels[condition == k].mean(dim=0) for k in range(count)), pixels.mean(dim=0)]
    assert torch.allclose(prototypes.double(), torch.stack(expected), atol=1e-6)
    x_t = torch.randn(2, *denoiser.shape, generator=torch.Generator().manual_seed(0))
    t, condition = torch.full((2,), 0.9), torch.tensor([0, 1])
    with torch.no_grad():
        before = denoiser(x_t, t, condition=condition)
        prototypes[1] = 1
        after = denoiser(x_t, t, condition=condition)
    assert torch.equal(before[0], after[0])
    assert (before[1] - after[1]).abs().max() > 0.01


@pytest.mark.parametrize("run", ["cluster_run", "parts_run"])
def test_the_picture_of_the_data_has_columns_of_classes_and_not_of_clusters(
    run: str, request: pytest.FixtureRequest
) -> None:
    folder = Run(request.getfixturevalue(run))
    experiment = make_experiment(folder.about().config)
    expected = examples(experiment.training.dataset, experiment.facts.classes)
    assert (folder.path / "data.png").read_bytes() == expected


def test_a_class_without_images_can_be_asked_for_all_the_same() -> None:
    """As where a small part of the data is trained on; the last class, too."""
    config = make_config(steps=1, conditional=True, clusters=12)
    images, kinds = blobs(1000)
    label = torch.from_numpy(kinds)
    whole = Dataset.of("blobs", torch.from_numpy(images)[:, None], label, ("0", "1", "2", "3"))
    conditioning = make_experiment(config, whole.take((label < 2).nonzero()[:, 0])).conditioning
    assert conditioning.class_of_cluster == (0, 0, 0, 1, 1, 2, 3)
    assert conditioning.clusters[-2:] == (0, 0)
    found = conditioning.sample(torch.tensor([3, 2, 1, 0]), range(4), seed=0)
    assert found is not None
    assert [conditioning.class_of_cluster[cluster] for cluster in found] == [3, 2, 1, 0]


@pytest.mark.parametrize("resumed", [True, False])
def test_a_run_with_clusters_is_the_same_to_the_bit(
    parts_run: Path, resumed: bool, tmp_path: Path
) -> None:
    """Stopped and gone on with, and replayed."""
    config, folder = Run(parts_run).about().config, tmp_path / "again"
    options = make_options(compile="off", precision="fp32")
    records = train_session(config, folder, options, replay=None if resumed else parts_run)
    if resumed:
        until = itertools.takewhile(
            lambda record: not (isinstance(record, StepTaken) and record.step == 70), records
        )
        list(until)
        records.close()
        assert not Run(folder).finished()
        records = train_session(config, folder, options)
    list(records)
    assert (folder / "model.safetensors").read_bytes() == (
        parts_run / "model.safetensors"
    ).read_bytes()


def test_a_run_with_other_clusters_than_those_found_now(parts_run: Path, tmp_path: Path) -> None:
    """It is finished. An unfinished one, or a replay, would train another network: refused."""
    folder = shutil.copytree(parts_run, tmp_path / "old")
    content = json.loads((folder / "config.json").read_text())
    content["conditioning"]["class_of_cluster"] = content["conditioning"]["clusters"] = []
    (folder / "config.json").write_text(json.dumps(content))
    about = Run(folder).about()
    assert about.conditioning.kind == "class"
    assert list(train_session(about.config, folder)) == []
    with pytest.raises(
        undiffuse.UserError, match=r"begun with 0 clusters .* a replay would be another run"
    ):
        list(train_session(about.config, tmp_path / "new", replay=folder))
    assert not (tmp_path / "new").exists()
    log = (folder / "log.jsonl").read_text().splitlines(keepends=True)
    (folder / "log.jsonl").write_text("".join(log[:-1]))
    with pytest.raises(undiffuse.UserError, match=r"begun with 0 clusters .* with out=FOLDER"):
        list(train_session(about.config, folder))


def test_the_report_says_what_the_network_is_conditioned_on(parts_run: Path) -> None:
    page = " ".join(block.words for block in Report(parts_run).blocks if isinstance(block, Text))
    assert "the cluster of similar images that the image belongs to, a part of its class" in page
    assert "There are 7 clusters" in page
    assert "it sees the mean training image of that cluster" in page
