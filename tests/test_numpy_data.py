"""Data sets in .npz and .npy files: the layouts that people have, and what is refused."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import undiffuse
from conftest import write_idx
from undiffuse.base.errors import UserError
from undiffuse.data.arrays import NoTestSet
from undiffuse.data.loading import load_dataset as load
from undiffuse.runs.destinations import destination, save_images

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
LABELS = np.arange(12) % 3


def data(folder: Path, file: str = "data.npz", **arrays: Any) -> str:
    folder.mkdir(exist_ok=True)
    np.savez(folder / file, **arrays)
    return str(folder)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (("x_train", "x_test"), ("y_train", "y_test")),
        (("train_images", "test_images"), ("train_labels", "test_labels")),
    ],
    ids=["Keras", "MedMNIST"],
)
def test_training_and_test_sets_are_known_by_name(
    tmp_path: Path, images: tuple[str, str], labels: tuple[str, str]
) -> None:
    parts = {images[0]: IMAGES, images[1]: IMAGES[:5], "val_images": IMAGES[:2]}
    where = data(
        tmp_path, **parts, **{labels[0]: LABELS[:, None], labels[1]: LABELS[:5].astype("u1")}
    )
    for split, n in (("train", 12), ("test", 5)):
        found = load(where, split=split)
        assert torch.equal(found.images[:, 0], torch.from_numpy(IMAGES[:n]))
        assert found.labels is not None
        assert found.labels.tolist() == LABELS[:n].tolist()
        assert (found.classes, found.notes) == (("0", "1", "2"), ())


def test_files_of_one_array_are_known_by_their_own_names(tmp_path: Path) -> None:
    """As those of Kuzushiji-MNIST, where NumPy calls the array arr_0."""
    np.savez(tmp_path / "kmnist-train-imgs.npz", IMAGES)
    np.savez(tmp_path / "kmnist-train-labels.npz", LABELS)
    found = load(str(tmp_path))
    assert torch.equal(found.images[:, 0], torch.from_numpy(IMAGES))
    assert found.classes == ("0", "1", "2")
    with pytest.raises(NoTestSet):
        load(str(tmp_path), split="test")


def test_flat_images_in_an_npy_file_are_squares(tmp_path: Path) -> None:
    """As the drawings of Quick, Draw!"""
    np.save(tmp_path / "full_numpy_bitmap_cat.npy", IMAGES.reshape(12, 64))
    assert torch.equal(load(str(tmp_path)).images[:, 0], torch.from_numpy(IMAGES))


@pytest.mark.parametrize(
    ("images", "shown", "said"),
    [
        (IMAGES[:, None], IMAGES[..., None], "channels stand before"),
        (np.repeat(IMAGES[:, None], 3, 1), np.repeat(IMAGES[..., None], 3, 3), "stand before"),
        (IMAGES[..., None], IMAGES[..., None], None),
        (np.asfortranarray(IMAGES), IMAGES[..., None], None),
        ((IMAGES / 255).astype(np.float32), IMAGES[..., None], "0 to 1 are read as 0 to 255"),
        (IMAGES / 127.5 - 1, IMAGES[..., None], "-1 to 1 are read as 0 to 255"),
        (IMAGES.astype(">u2"), IMAGES[..., None], None),
        (IMAGES > 127, (IMAGES > 127)[..., None] * np.uint8(255), "black and white"),
    ],
)
def test_pixels_of_every_kind_are_read(
    tmp_path: Path, images: Any, shown: Any, said: str | None
) -> None:
    found = load(data(tmp_path, images=images))
    assert torch.equal(found.images, torch.from_numpy(shown.transpose(0, 3, 1, 2)))
    assert any(said in note for note in found.notes) if said else found.notes == ()


@pytest.mark.parametrize(
    ("labels", "classes", "names"),
    [
        (np.eye(3)[LABELS], None, ("0", "1", "2")),  # one-hot
        (np.array(["cat", "dog", "owl"])[LABELS], None, ("cat", "dog", "owl")),
        (LABELS, np.array(["dog", "cat", "owl"]), ("cat", "dog", "owl")),
        (LABELS * 5 + 4, None, ("4", "9", "14")),
        (LABELS, np.array(["4", "9", "14"]), ("4", "9", "14")),
    ],
)
def test_labels_of_every_kind_are_read(
    tmp_path: Path, labels: Any, classes: Any, names: tuple[str, ...]
) -> None:
    arrays = {"images": IMAGES, "labels": labels}
    found = load(data(tmp_path, **arrays, **({} if classes is None else {"classes": classes})))
    assert found.classes == names
    called = ["dog", "cat", "owl"] if classes is not None and "dog" in classes else names
    assert found.labels is not None
    assert [names[label] for label in found.labels] == [called[label] for label in LABELS]


def test_samples_can_be_trained_on(tmp_path: Path, tiny: dict[str, Any]) -> None:
    (tmp_path / "drawn").mkdir()
    to = destination(str(tmp_path / "drawn" / "a.npz"))
    save_images(to, torch.from_numpy(IMAGES)[:, None], torch.from_numpy(LABELS), ("a", "b", "c"))
    drawn = load(str(tmp_path / "drawn"))
    assert torch.equal(drawn.images[:, 0], torch.from_numpy(IMAGES))
    assert drawn.classes == ("a", "b", "c")
    fields = {**tiny, "data": str(tmp_path / "drawn"), "steps": 1, "snapshots": 2}
    run = undiffuse.train(tmp_path / "run", **fields, conditional=True)
    assert undiffuse.load(run).classes == ("a", "b", "c")


def archive(content: bytes, name: str = "images.npy") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as members:
        members.writestr(name, content)
    return out.getvalue()


def saved(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "can't be read as an .npz file"),
        (b"PK\x03\x04" + bytes(60), "can't be read as an .npz file"),
        (archive(saved(IMAGES)[:-10]), "does not have the length that its header gives"),
        (archive(b"\x93NUMPY\x09\x00"), "can't be read as an .npz file"),
        (archive(saved(LABELS)), "has 1 dimensions; it must have 2 or 3"),
        (archive(saved(LABELS), "a.npy"), "arrays, 0 of images and 1 of labels"),
        (archive(saved(np.full((4, 8, 8), None))), "holds Python objects"),
        (archive(saved(np.zeros((4, 8, 8), complex))), "images need numbers"),
        (archive(saved(np.zeros((0, 8, 8)))), "is empty"),
        (archive(saved(IMAGES.reshape(12, 4, 4, 4))), "has 4 channels"),
        (archive(saved(IMAGES[:, 0])), "8 numbers for each image, which is no square"),
        (archive(saved(IMAGES.reshape(12, 8, 8, 1, 1))), "has 5 dimensions; it must have 2 or 3"),
        (archive(b"nothing", "readme.txt"), "holds no images"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(UserError, match=said):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"images": IMAGES, "labels": LABELS[:5]}, "5 labels for the 12 images"),
        ({"images": IMAGES, "labels": LABELS + 0.5}, "no whole numbers"),
        ({"images": IMAGES, "labels": LABELS, "classes": np.array(["a"])}, "do not fit the labels"),
        ({"a": IMAGES, "b": IMAGES}, "arrays, 2 of images and 0 of labels"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    tmp_path: Path, arrays: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        load(data(tmp_path, **arrays))


def test_arrays_of_several_files_are_never_mixed(tmp_path: Path) -> None:
    for file in ("digits.npz", "samples.npz"):
        data(tmp_path, file, images=IMAGES, labels=LABELS)
    with pytest.raises(UserError, match=r"several files of arrays \(digits.npz, samples.npz\)"):
        load(str(tmp_path))


@pytest.mark.parametrize("kind", ["picture", "IDX"])
def test_arrays_beside_other_images_are_passed_over_with_a_note(tmp_path: Path, kind: str) -> None:
    """So samples that were written into the folder do not end a run."""
    data(tmp_path, "samples.npz", images=IMAGES)
    if kind == "IDX":
        write_idx(tmp_path, IMAGES[:3])
    else:
        Image.fromarray(IMAGES[0]).save(tmp_path / "preview.png")
    found = load(str(tmp_path))
    assert len(found) == (3 if kind == "IDX" else 1)
    assert found.notes[0].startswith("passed over: 1 .npz")


def test_labels_in_bytes_are_names(tmp_path: Path) -> None:
    names = np.array(["\u00e9".encode(), b"\xe9", b"owl"])
    found = load(data(tmp_path, images=IMAGES, labels=names[LABELS]))
    assert sorted(found.classes) == sorted(["\u00e9", "\\xe9", "owl"])


@pytest.mark.parametrize("wrong", [np.inf, 2.0**63])
def test_labels_that_no_number_holds_are_refused(tmp_path: Path, wrong: float) -> None:
    labels = LABELS.astype(float)
    labels[0] = wrong
    with pytest.raises(UserError, match="no whole numbers"):
        load(data(tmp_path, images=IMAGES, labels=labels))


@pytest.mark.parametrize("name", ["train.csv", "0000.parquet", "data_batch_1", "images.mat"])
def test_what_is_not_read_is_named_with_a_way_out(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"label,pixel0\n7,0\n")
    held = f"1 {Path(name).suffix or 'without ending'}; convert pictures to PNG, and save numbers"
    with pytest.raises(UserError, match=held):
        load(str(tmp_path))


@pytest.mark.parametrize("name", ["images.zip", "images.tar.gz", "images.7z"])
def test_an_archive_is_to_be_unpacked(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(archive(b"x", "1.png"))
    with pytest.raises(UserError, match="unpack it, and give the folder that it makes"):
        load(str(tmp_path / name))
