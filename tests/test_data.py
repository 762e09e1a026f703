"""Data sets against known answers: MNIST's checksums, files written here, and broken files."""

from __future__ import annotations

import gzip
import hashlib
import importlib.resources
import os
import re
import shutil
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from undiffuse.base.errors import UserError
from undiffuse.base.pixels import to_float, to_uint8
from undiffuse.data import dataset
from undiffuse.data.batches import _permutation, batch_indices
from undiffuse.data.clusters import mean_images
from undiffuse.data.dataset import Dataset
from undiffuse.data.loading import DATASETS
from undiffuse.data.loading import load_dataset as load
from undiffuse.data.splits import held_out_of, split_dataset, subset, with_held_out

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 9, 7), dtype=np.uint8)  # (N, H, W)
COLOUR = RNG.integers(0, 256, (6, 9, 7, 3), dtype=np.uint8)
LABELS = np.array([7, 3, 200, 3, 7, 7], dtype=np.uint8)


def idx(array: np.ndarray, shape: tuple[int, ...] | None = None) -> bytes:
    """The IDX file of `array`. `shape` is what its header says, where that is wrong."""
    shape = shape or array.shape
    return bytes((0, 0, 8, len(shape))) + struct.pack(f">{len(shape)}I", *shape) + array.tobytes()


def png(path: Path, array: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def png_promising(width: int, height: int) -> bytes:
    """A PNG file whose header promises grey pixels. The file holds none."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [body, b"IDAT" + zlib.compress(b""), b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks
    )


def numbered(n: int, labelled: bool = True) -> Dataset:
    """n images of one pixel. A label is the image's number, and a pixel that number modulo 256."""
    labels = torch.arange(n)
    images = (labels % 256).to(torch.uint8).view(n, 1, 1, 1)
    if not labelled:
        return Dataset.of("numbered", images)
    return Dataset.of("numbered", images, labels, tuple(map(str, range(n))))


@contextmanager
def measured_memory() -> Iterator[Callable[[], int]]:
    """A function for use within the block: the most bytes that Python held in it so far."""
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def write_all(folder: Path, arrays: dict[str, np.ndarray], dash: str = "-", end: str = "") -> None:
    """IDX files, such as train-images-idx3-ubyte. They are packed where `end` is .gz."""
    for name, array in arrays.items():
        content = gzip.compress(idx(array)) if end else idx(array)
        (folder / f"{name}{dash}idx{array.ndim}-ubyte{end}").write_bytes(content)


# MNIST


@pytest.fixture(scope="module")
def mnist_train() -> Dataset:
    return load("mnist")


@pytest.fixture(scope="module")
def mnist_test() -> Dataset:
    return load("mnist", split="test")


@pytest.mark.parametrize(("part", "prefix"), [("train", "train"), ("test", "t10k")])
def test_mnist_is_the_published_one(part: str, prefix: str, request: pytest.FixtureRequest) -> None:
    dataset = request.getfixturevalue(f"mnist_{part}")
    assert dataset.name == "mnist"
    assert dataset.classes == tuple("0123456789")
    images, labels = (
        idx(dataset.images.squeeze(1).numpy()),
        idx(dataset.labels.numpy().astype(np.uint8)),
    )
    published = {
        "train-images": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    }
    assert hashlib.sha256(images).hexdigest() == published[f"{prefix}-images"]
    assert hashlib.sha256(labels).hexdigest() == published[f"{prefix}-labels"]


def test_mnist_labels(mnist_train: Dataset, mnist_test: Dataset) -> None:
    assert mnist_train.shape == mnist_test.shape == (1, 28, 28)
    assert mnist_train.labels.tolist()[:10] == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert mnist_test.labels.tolist()[:10] == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert mnist_train.labels.bincount().tolist() == counts


def test_mnist_needs_at_most_three_copies() -> None:
    with measured_memory() as peak:
        dataset = load("mnist")
        assert dataset.images.nbytes < peak() < 3 * dataset.images.nbytes


@pytest.mark.parametrize("damage", ["other contents", "cut short", "missing"])
def test_damaged_mnist_is_noticed(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged = importlib.resources.files("undiffuse.data") / "mnist"
    copy = tmp_path / "mnist"
    shutil.copytree(str(packaged), copy)
    monkeypatch.setattr(importlib.resources, "files", lambda package: tmp_path)
    assert len(load("mnist", split="test")) == 10_000  # the copy is what is read

    file = copy / "t10k-labels-idx1-ubyte.gz"
    labels = bytearray(gzip.decompress(file.read_bytes()))
    labels[8] = 3  # it is a 7
    if damage == "other contents":
        file.write_bytes(gzip.compress(labels))
    elif damage == "cut short":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        file.unlink()
    with pytest.raises(UserError, match=r"package is damaged \(t10k-labels-idx1-ubyte\.gz"):
        load("mnist", split="test")


# IDX files


@pytest.mark.parametrize(("dash", "end"), [("-", ""), (".", ".gz")])
def test_four_files(dash: str, end: str, tmp_path: Path) -> None:
    test_set = {"t10k-images": GREY[2:4], "t10k-labels": LABELS[2:4]}
    write_all(tmp_path, {"train-images": GREY, "train-labels": LABELS, **test_set}, dash, end)
    train, test = load(str(tmp_path)), load(str(tmp_path), split="test")
    assert train.name == tmp_path.name
    assert torch.equal(train.images, torch.from_numpy(GREY)[:, None])
    assert train.labels.tolist() == [1, 0, 2, 0, 1, 1]
    assert torch.equal(test.images, train.images[2:4])
    assert test.labels.tolist() == [2, 0]  # numbered as in the training set, which knows a third
    assert train.classes == test.classes == ("3", "7", "200")


@pytest.mark.parametrize("name", ["digits.idx3", "some-idx3-ubyte", "digits", "digits.bin"])
def test_one_idx_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(idx(GREY))
    (tmp_path / "README.txt").write_text("about these digits")
    alone = load(str(tmp_path))
    assert torch.equal(alone.images, torch.from_numpy(GREY)[:, None])
    assert alone.labels is None
    assert alone.classes == ()
    (tmp_path / "labels").write_bytes(idx(LABELS))
    assert load(str(tmp_path)).labels.tolist() == [1, 0, 2, 0, 1, 1]


@pytest.mark.parametrize("channels", [1, 3])
def test_idx_of_four_dimensions(channels: int, tmp_path: Path) -> None:
    written = COLOUR[..., :channels]
    (tmp_path / "digits-idx4-ubyte.gz").write_bytes(gzip.compress(idx(written)))
    images = load(str(tmp_path)).images
    assert images.is_contiguous()
    assert torch.equal(images, torch.from_numpy(written.copy()).permute(0, 3, 1, 2))


def test_a_file_may_lie_there_packed_and_unpacked(tmp_path: Path) -> None:
    for end in ("", ".gz"):
        write_all(tmp_path, {"train-images": GREY, "train-labels": LABELS}, end=end)
    assert load(str(tmp_path)).labels.tolist() == [1, 0, 2, 0, 1, 1]


def test_gzip_is_recognised_by_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.idx3-ubyte.gz").write_bytes(idx(GREY))
    assert torch.equal(load(str(tmp_path)).images, torch.from_numpy(GREY)[:, None])


# Image files


@pytest.mark.parametrize("pixels", [GREY, COLOUR], ids=["grey", "colour"])
def test_image_folder(pixels: np.ndarray, tmp_path: Path) -> None:
    for i, image in enumerate(pixels):
        png(tmp_path / f"{i}.PNG", image)
    (tmp_path / ".hidden.png").write_bytes(b"no image")
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / ".thumbnails" / "0.png").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("no image")
    dataset = load(str(tmp_path))
    expected = torch.from_numpy(pixels.reshape(6, 9, 7, -1)).permute(0, 3, 1, 2)
    assert torch.equal(dataset.images, expected)
    assert dataset.images.is_contiguous()
    assert dataset.labels is None


def test_sub_folders_are_classes(tmp_path: Path) -> None:
    for i, place in enumerate(["cat/a", "cat/deep/b", "ant/z", "dog/a"]):
        png(tmp_path / f"{place}.png", GREY[i])
    (tmp_path / "empty").mkdir()
    dataset = load(str(tmp_path))
    assert dataset.classes == ("ant", "cat", "dog")
    assert dataset.labels.tolist() == [0, 1, 1, 2]
    assert torch.equal(dataset.images[:, 0], torch.from_numpy(GREY[[2, 0, 1, 3]]))


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    png(tmp_path / "elsewhere" / "a.png", GREY[0])
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    dataset = load(str(folder))
    assert len(dataset) == 1
    assert dataset.classes == ("cat",)


def test_one_colour_image_makes_all_colour(tmp_path: Path) -> None:
    png(tmp_path / "0.png", GREY[0])
    png(tmp_path / "1.png", COLOUR[0])
    images = load(str(tmp_path)).images
    assert torch.equal(images[0], torch.from_numpy(GREY[0]).expand(3, 9, 7))
    assert torch.equal(images[1], torch.from_numpy(COLOUR[0]).permute(2, 0, 1))


def test_jpeg(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))
    png(tmp_path / "ramp.jpeg", ramp, quality=95)
    image = load(str(tmp_path)).images[0, 0].int()
    assert (image - torch.from_numpy(ramp).int()).abs().max() < 6


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    sixteen = np.array([[0, 128, 129, 257], [32896, 65407, 65406, 65535]], dtype=np.uint16)
    png(tmp_path / "a.png", sixteen)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode.startswith("I")  # the file does hold 16 bits
    assert load(str(tmp_path)).images[0, 0].tolist() == [[0, 0, 1, 1], [128, 255, 254, 255]]


def test_transparency_is_laid_on_black(tmp_path: Path) -> None:
    alpha = np.array([[0, 51, 255]], dtype=np.uint8)
    for mode, grey in (("LA", 200), ("RGBA", (200, 100, 50))):
        image = Image.new(mode[:-1], (3, 1), grey)
        image.putalpha(Image.fromarray(alpha))
        image.save(tmp_path / f"{mode}.png")
    grey, colour = load(str(tmp_path)).images
    assert grey.tolist() == [[[0, 40, 200]]] * 3
    assert colour.tolist() == [[[0, 40, 200]], [[0, 20, 100]], [[0, 10, 50]]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_transparent_grey_is_black(dtype: type, tmp_path: Path) -> None:
    white = np.iinfo(dtype).max
    pixels = np.array([[white, white // 255 * 50]], dtype=dtype)
    png(tmp_path / "a.png", pixels, transparency=int(white))
    assert load(str(tmp_path), background="black").images.tolist() == [[[[0, 50]]]]


def test_palette(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png")
    assert load(str(tmp_path)).images.tolist() == [[[[10, 40]], [[20, 50]], [[30, 60]]]]


def test_one_bit(tmp_path: Path) -> None:
    png(tmp_path / "a.png", np.array([[True, False, True]]))
    assert load(str(tmp_path)).images.tolist() == [[[[255, 0, 255]]]]


def test_exif_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: a viewer rotates the image by 90 degrees clockwise
    png(tmp_path / "a.png", GREY[0], exif=exif)
    assert np.array_equal(load(str(tmp_path)).images[0, 0], np.rot90(GREY[0], -1))


# Resizing


def test_resize_keeps_brightness_and_place(tmp_path: Path) -> None:
    image = np.zeros((64, 64), dtype=np.uint8)
    image[:32, :32] = 200
    png(tmp_path / "a.png", image)
    small = load(str(tmp_path), size=8).images[0, 0].int()
    expected = torch.zeros(8, 8, dtype=torch.int)
    expected[:4, :4] = 200
    blurred = torch.zeros(8, 8, dtype=torch.bool)
    blurred[3:5], blurred[:, 3:5] = True, True
    assert small.shape == (8, 8)
    assert (small - expected)[~blurred].abs().max() <= 12  # Lanczos rings beside an edge
    assert abs(small.float().mean() - 50) < 2


@pytest.mark.parametrize("kind", ["png", "idx3", "idx4"])
def test_resize_takes_the_central_square(kind: str, tmp_path: Path) -> None:
    for wide in (False, True):
        square = RNG.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        if kind == "idx3":
            square = square[..., :1]
        above, below = np.full((2, *square.shape[1:]), 255, np.uint8), square[:3] * 0
        long = np.concatenate([above, square, below])
        if wide:
            long, square = long.transpose(1, 0, 2), square.transpose(1, 0, 2)
        if kind == "png":
            png(tmp_path / "a.png", long)
        else:
            (tmp_path / kind).write_bytes(idx(long[None, ..., 0] if kind == "idx3" else long[None]))
        assert load(str(tmp_path)).shape == (square.shape[2], *long.shape[:2])
        image = load(str(tmp_path), size=6).images[0]
        assert torch.equal(image, torch.from_numpy(square.copy()).permute(2, 0, 1)), long.shape


def test_resize_brings_all_to_one_size(tmp_path: Path) -> None:
    for i, shape in enumerate([(5, 9), (20, 20), (8, 4)]):
        png(tmp_path / f"{i}.png", np.full(shape, 50 * i, dtype=np.uint8))
    images = load(str(tmp_path), size=8).images
    expected = torch.tensor([0, 50, 100], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 8, 8)
    assert torch.equal(images, expected)


def test_mnist_resizes_as_files_do(mnist_test: Dataset, tmp_path: Path) -> None:
    some = mnist_test.take(torch.arange(20))
    for i, image in enumerate(some.images.squeeze(1).numpy()):
        png(tmp_path / f"{i:02}.png", image)
    (tmp_path / "idx").mkdir()
    (tmp_path / "idx" / "digits").write_bytes(idx(some.images.squeeze(1).numpy()))
    from_idx = load(str(tmp_path / "idx"), size=14)
    assert from_idx.shape == (1, 14, 14)
    assert torch.equal(from_idx.images, load(str(tmp_path), size=14).images)


# Errors. A case is: the files, what the message names, what it says

IMAGES, TWO = idx(GREY), idx(GREY[:2])
PACKED = gzip.compress(IMAGES)
BAD_CRC = PACKED[:-8] + bytes(4) + PACKED[-4:]
LIE = idx(GREY, (7, *GREY.shape[1:]))
TWO_GB = idx(GREY, (2**21, 32, 32))


def as_png(array: np.ndarray) -> Callable[[Path], None]:
    return lambda path: png(path, array)


BAD_FILES = {
    "empty folder": ({}, "", "no images"),
    "no images": (
        {"notes.txt": b"hello", "a.heic": b"ftyp", "b.HEIC": b"ftyp"},
        "",
        r"no images.*\.png, \.jpg, .*\.gif, IDX, and .*; it holds: 2 \.heic, 1 \.txt; convert",
    ),
    "cut short": ({"a.idx3": IMAGES[:-1]}, "a.idx3", "cut short"),
    "cut header": ({"a.idx3": IMAGES[:9]}, "a.idx3", "ends within its header"),
    "an empty file": ({"a.idx3": b""}, "a.idx3", "starts with ''"),
    "trailing bytes": ({"a.idx3": IMAGES + b"\0"}, "a.idx3", "goes on after the 378 bytes"),
    "wrong magic": ({"a.idx3": b"\0\0\x0a\x03" + IMAGES[4:]}, "a.idx3", "starts with '00000a03'"),
    "labels as images": ({"a.idx3": idx(LABELS)}, "a.idx3", "starts with '00000801'"),
    "images as labels": ({"a.idx3": IMAGES, "b.idx1": IMAGES}, "b.idx1", "starts with '00000803'"),
    "lying header": ({"a.idx3": LIE}, "a.idx3", "promises 441 bytes, more than a file of 394"),
    "no images in it": ({"a.idx3": idx(GREY, (0, 9, 7))[:16]}, "a.idx3", "is empty"),
    "no pixels in it": ({"a.idx3": idx(GREY, (6, 0, 7))[:16]}, "a.idx3", "is empty"),
    "absurd size": ({"a.idx3": idx(GREY, (2**32 - 1,) * 3)}, "a.idx3", "more than the 4294967296"),
    "2 GB in 394 bytes": ({"a.idx3": TWO_GB}, "a.idx3", "promises 2147483648 bytes"),
    "2 GB in 400 packed": ({"a.gz": gzip.compress(TWO_GB)}, "a.gz", "promises 2147483648 bytes"),
    "bad checksum": ({"a.gz": BAD_CRC}, "a.gz", "damaged gzip"),
    "cut gzip": ({"a.idx3.gz": PACKED[:-20]}, "a.idx3.gz", "damaged gzip"),
    "cut gzip checksum": ({"a.idx3.gz": PACKED[:-2]}, "a.idx3.gz", "damaged gzip"),
    "cut gzip header": ({"a.idx3.gz": PACKED[:5]}, "a.idx3.gz", "damaged gzip"),
    "broken deflate": ({"a.idx3.gz": PACKED[:12] + b"\xff" * 90}, "a.idx3.gz", "damaged gzip"),
    "packed, cut short": ({"a.gz": gzip.compress(LIE)}, "a.gz", "cut short"),
    "packed, trailing": ({"a.gz": gzip.compress(IMAGES + b"\0")}, "a.gz", "goes on after"),
    "two channels": ({"a.idx4": idx(COLOUR[..., :2])}, "a.idx4", "has 2 channels"),
    "too few labels": (
        {"a.idx3": IMAGES, "b.idx1": idx(LABELS[:5])},
        "b.idx1",
        "5 labels for the 6 images of .*a.idx3",
    ),
    "labels only": ({"b.idx1": idx(LABELS)}, "", "0 of images and 1 of labels"),
    "two files of images": ({"a": IMAGES, "b": IMAGES}, "", "2 of images and 0 of labels"),
    "two files of labels": (
        {"a": IMAGES, "b": idx(LABELS), "c": idx(LABELS)},
        "",
        "1 of images and 2 of labels",
    ),
    "IDX and images": (
        {"a.idx3": IMAGES, "x/b.png": as_png(GREY[0])},
        "",
        "both IDX files .a.idx3. and images.*b.png",
    ),
    "images at two levels": (
        {"a.png": as_png(GREY[0]), "cat/b.png": as_png(GREY[1])},
        "",
        "a.png.*beside.*cat",
    ),
    "two sizes": (
        {"a.png": as_png(GREY[0]), "b.png": as_png(GREY[0].T)},
        "b.png",
        "is 9 x 7 and .*a.png 7 x 9",
    ),
    "no PNG": ({"a.png": b"hello"}, "a.png", "is broken or no image"),
    "no JPEG": ({"a.jpg": b"\xff\xd8\xff\xe0"}, "a.jpg", "is broken or no image"),
    "PNG without pixels": (
        {"a.png": png_promising(8, 8)},
        "a.png",
        "is broken or no image",
    ),
    "4097 x 4096": ({"a.png": png_promising(4097, 4096)}, "a.png", "more than 16777216 pixels"),
    "10000 x 10000": (
        {"a.png": png_promising(10_000, 10_000)},
        "a.png",
        "more than 16777216 pixels",
    ),
    "60000 x 60000": (
        {"a.png": png_promising(60_000, 60_000)},
        "a.png",
        "more than 16777216 pixels",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
@pytest.mark.filterwarnings("error")
def test_bad_files(case: str, tmp_path: Path) -> None:
    files, named, said = BAD_FILES[case]
    folder = tmp_path / "the set"
    folder.mkdir()
    for name, contents in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        if callable(contents):
            contents(folder / name)
        else:
            (folder / name).write_bytes(contents)
    before = sorted(folder.rglob("*"))
    with measured_memory() as peak:
        with pytest.raises(UserError, match=said) as error:
            load(str(folder))
        assert peak() < 20 << 20
    assert str(folder / named) in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("ending", [".png", ".jpg"])
def test_a_cut_image_is_noticed(ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"a{ending}"
    png(file, RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    assert len(load(str(tmp_path))) == 1
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"a\{ending} is broken or no image"):
        load(str(tmp_path))


@pytest.mark.parametrize("name", ["a.idx3.gz", "digits"])
def test_a_gzip_bomb_stays_packed(name: str, tmp_path: Path) -> None:
    packer = zlib.compressobj(wbits=31)
    parts = [idx(GREY), *[bytes(1 << 20)] * 100]
    packed = b"".join(packer.compress(part) for part in parts) + packer.flush()
    (tmp_path / name).write_bytes(packed)
    assert len(packed) < 200_000
    with measured_memory() as peak:
        with pytest.raises(UserError, match=f"{name} goes on after the 378 bytes"):
            load(str(tmp_path))
        assert peak() < 4 << 20


def test_a_link_to_nothing_is_said(tmp_path: Path) -> None:
    png(tmp_path / "a.png", GREY[0])
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(UserError, match=r"b\.png cannot be read: No such file"):
        load(str(tmp_path))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["a.png", "a.idx3", "digits"])
def test_an_unreadable_file_is_said(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(IMAGES)
    (tmp_path / name).chmod(0)
    with pytest.raises(UserError, match=f"{name} cannot be read: Permission denied"):
        load(str(tmp_path))


def test_too_much_to_hold_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"mnist needs 60000 x 1024 x 1024 x 1 = \d+ bytes"):
        load("mnist", size=1024)
    for i in range(3):
        png(tmp_path / f"{i}.png", GREY[i])
    monkeypatch.setattr(dataset, "MAX_BYTES", 188)
    with pytest.raises(UserError, match=r"3 x 9 x 7 x 1 = 189 bytes"):
        load(str(tmp_path))
    monkeypatch.setattr(dataset, "MAX_BYTES", 189)
    assert len(load(str(tmp_path))) == 3


@pytest.mark.parametrize("spec", ["no-such-thing", "", "\0", "mnistt"])
def test_neither_name_nor_folder(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    png(tmp_path / "a.png", GREY[0])
    said = f"neither a data set (there are: {', '.join(DATASETS)}) nor a folder"
    with pytest.raises(UserError, match=re.escape(said)) as error:
        load(spec)
    assert f"'{spec}'" in str(error.value)


@pytest.mark.parametrize("size", [-1, 0, 3, 1025, 10**9])
def test_absurd_sizes(size: int) -> None:
    with pytest.raises(UserError, match=f"4 to 1024 pixels a side, not {size}$"):
        load("mnist", size=size)


def test_splits(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not 'validation'"):
        load("mnist", split="validation")
    png(tmp_path / "images" / "a.png", GREY[0])
    with pytest.raises(UserError, match="images has no test set"):
        load(str(tmp_path / "images"), split="test")
    folder = tmp_path / "idx"
    folder.mkdir()
    write_all(folder, {"train-images": GREY, "train-labels": LABELS, "t10k-images": GREY})
    with pytest.raises(UserError, match=r"idx has no test set.*lacks a file of test-labels"):
        load(str(folder), split="test")
    assert load(str(folder)).labels.tolist() == [1, 0, 2, 0, 1, 1]  # training needs no test set
    write_all(folder, {"t10k-labels": np.array([3, 3, 3, 3, 3, 8], dtype=np.uint8)})
    with pytest.raises(
        UserError, match=r"t10k-labels-idx1-ubyte has the label 8, which .*train-labels"
    ):
        load(str(folder), split="test")


# Subsets, splits, batches


def test_take() -> None:
    taken = numbered(9).take(torch.tensor([4, 0, 4]))
    assert taken.labels.tolist() == taken.images.flatten().tolist() == [4, 0, 4]
    assert taken.classes == numbered(9).classes
    assert numbered(9, labelled=False).take(torch.tensor([4])).labels is None


def test_subset() -> None:
    dataset = numbered(100)
    chosen = subset(dataset, 30, seed=0).labels
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert len(chosen) == 30
    assert torch.equal(chosen, subset(dataset, 30, seed=0).labels)
    assert not torch.equal(chosen, subset(dataset, 30, seed=1).labels)
    assert torch.equal(subset(dataset, 100, seed=0).images, dataset.images)
    of_seeds = [subset(dataset, 30, seed).labels.bincount(minlength=100) for seed in range(200)]
    counts = sum(of_seeds)
    assert counts.min() > 30  # 60 expected of each, with a standard deviation of 6.5
    assert counts.max() < 90


@pytest.mark.parametrize("n", [-1, 0, 11])
def test_subset_of_what_is_not_there(n: int) -> None:
    with pytest.raises(UserError, match=f"1 to 10 images, not {n}"):
        subset(numbered(10), n, seed=0)


def test_split() -> None:
    for n, held_out in ((1, 0), (19, 0), (20, 1), (1000, 50), (20_000, 1000), (30_000, 1000)):
        dataset = numbered(n)
        train, validation = split_dataset(dataset, seed=3)
        assert len(validation) == held_out, n
        assert sorted(train.labels.tolist() + validation.labels.tolist()) == list(range(n)), n
        assert train.labels.tolist() == sorted(train.labels.tolist()), n
        assert torch.equal(validation.labels, split_dataset(dataset, seed=3)[1].labels), n
        if held_out > 1:
            other = split_dataset(dataset, seed=4)[1]
            assert not torch.equal(validation.labels, other.labels), n


def test_how_many_images_a_number_to_train_on_needs() -> None:
    for training in (1, 19, 20, 951, 18_999, 19_000, 19_001, 59_000):
        n = with_held_out(training)
        assert n - held_out_of(n) >= training > n - 1 - held_out_of(n - 1)


def test_mean_images() -> None:
    """The mean of each condition, then of all. One without images has the mean of all."""
    pixels = np.random.default_rng(0).integers(256, size=(700, 3, 20, 30), dtype=np.uint8)
    labels = np.arange(700) % 5 // 2 * 2  # 0, 2 and 4 of 0 to 4
    dataset = Dataset.of("", torch.from_numpy(pixels))
    of_all, of_label = pixels.mean(axis=0), [pixels[labels == k].mean(axis=0) for k in (0, 2, 4)]
    expected = np.stack([of_label[0], of_all, of_label[1], of_all, of_label[2], of_all])
    assert mean_images(dataset, torch.from_numpy(labels), 5).numpy() == pytest.approx(
        expected / 127.5 - 1, abs=1e-6
    )


def test_every_epoch_has_an_order_of_its_own() -> None:
    """test_properties.py tests that each epoch has every image once."""
    for n, batch_size in ((10, 5), (10, 3), (10, 10), (7, 20), (7, 14), (97, 32)):
        steps = -(-6 * n // batch_size)
        batches = [batch_indices(n, batch_size, step, seed=5) for step in range(steps)]
        epochs = torch.cat(batches)[: 6 * n].view(6, n)
        assert len(set(map(tuple, epochs.tolist()))) == 6, (n, batch_size)


def test_batches_depend_on_nothing_else() -> None:
    ahead = [batch_indices(50, 8, step, seed=1) for step in range(40)]
    _permutation.cache_clear()
    for step in reversed(range(40)):
        batch = batch_indices(50, 8, step, seed=1)
        assert torch.equal(batch, ahead[step])
        batch.zero_()  # a change of one result must not show in the next
        assert torch.equal(batch_indices(50, 8, step, seed=1), ahead[step])
    assert not torch.equal(batch_indices(50, 8, 0, seed=2), ahead[0])


# 8-bit values and floats


def test_every_8_bit_value_survives_as_a_float() -> None:
    """It survives an error of up to half of a step, too."""
    every = torch.arange(256, dtype=torch.uint8)
    x = to_float(every)
    assert x.dtype == torch.float32
    assert (x[0], x[255]) == (-1, 1)
    assert torch.allclose(x.double(), every.double() / 127.5 - 1, rtol=0, atol=1e-7)
    for error in (0, -0.49 / 127.5, 0.49 / 127.5):
        assert torch.equal(to_uint8(x + error), every), error
    images = every.view(2, 1, 16, 8)
    assert torch.equal(to_uint8(to_float(images)), images)


def test_floats_are_clamped_and_rounded() -> None:
    x = torch.tensor([-torch.inf, -7, -1, -0.999, -0.99, 0.001, 0.99, 1, 1.01, torch.inf])
    assert to_uint8(x).tolist() == [0, 0, 0, 0, 1, 128, 254, 255, 255, 255]
    assert to_uint8(x.bfloat16()[-2:]).tolist() == [255, 255]
