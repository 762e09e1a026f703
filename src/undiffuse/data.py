"""Images to learn from: the embedded MNIST, IDX files, folders of PNG or JPEG images; and the order of the batches.

A data set is one uint8 tensor held whole, (N, C, H, W). A batch is a choice of its rows, and which rows is a function
of (seed, step). Networks see floats in [-1, 1]: x = u / 127.5 - 1 for a byte u, here and nowhere else.

IDX is the format of the MNIST files: two zero bytes, the element type (8: unsigned byte), the number of dimensions,
each dimension as a big-endian 32-bit number, then the elements, the last index fastest. A file is trusted for nothing:
what it promises is compared with its length before memory is asked for.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import math
import re
import struct
import warnings
import zlib
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undiffuse.errors import UserError
from undiffuse.registry import Table
from undiffuse.rng import stream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedReader

    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image
    from torch import Tensor

DATASETS = Table("data set")

ENDINGS = (".png", ".jpg", ".jpeg")
SIZES = range(4, 1025)  # what images may be resized to, in pixels a side
MAX_BYTES = 4 << 30  # of one data set, unpacked
MAX_PIXELS = 4096 * 4096  # of one image file
MAX_DEFLATE = 1100  # deflate packs at most 1032 bytes into one (zlib's technical notes)
CHUNK = 1 << 20

# The published SHA-256 of the unpacked files.
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


class NoTestSet(UserError):
    """The data set has one part only."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images, uint8 (N, C, H, W), with labels, int64 (N,) in [0, len(classes)), or None."""

    name: str
    images: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def take(self, indices: Tensor) -> Dataset:
        """The images at `indices`, int64 (n,), as a data set with the same classes."""
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, images=self.images[indices], labels=labels)


def load(spec: str, size: int | None = None, split: str = "train") -> Dataset:
    """The data set called `spec`, or that of the folder `spec` (write ./mnist for a folder called mnist).

    A folder holds one of these, and files of other kinds or with hidden names are passed over:

    - the four MNIST files, or another set under their names (train-images-idx3-ubyte or .idx3-ubyte, and so on)
    - one IDX file of images, (N, H, W) or (N, H, W, C) with C = 1 or 3, and at most one of labels, (N,)
    - PNG or JPEG images: in sub-folders, each a class of that name, or all directly in the folder, without labels

    IDX files may be gzipped. Their labels become 0..K-1 in the order of the numbers, which are the class names; those
    of the test set are numbered as in the training set. If all image files are grey, C = 1, else C = 3 (a palette
    counts as colour). Transparent pixels are laid on black, 16 bits become 8, and EXIF orientation is honoured.

    With `size`, in pixels, images are cropped to their central square and resized (Lanczos) to (C, size, size);
    without it, all must be of one size already. `split` is "train" or "test". Nothing is ever written.

    Raises UserError for anything that cannot be read as described."""
    if split not in ("train", "test"):
        raise UserError(f"the split of a data set is 'train' or 'test', not '{split}'")
    if size is not None and size not in SIZES:
        raise UserError(f"images can be resized to {SIZES[0]} to {SIZES[-1]} pixels a side, not {size}")
    if spec in DATASETS:
        return _resized(DATASETS[spec](split), size)
    folder = Path(spec)
    try:
        if not spec or not folder.is_dir():
            known = ", ".join(DATASETS)
            raise UserError(f"'{spec}' is neither a data set (there are: {known}) nor a folder of images; give either")
        return _read_folder(folder, size, split)
    except OSError as error:
        raise UserError(f"{error.filename or spec} cannot be read: {error.strerror or error}") from error


@DATASETS.add
def mnist(split: str) -> Dataset:
    """LeCun, Cortes & Burges: handwritten digits, 28 x 28, grey; 60,000 to train on, 10,000 to test with."""
    part = {"train": "train", "test": "t10k"}[split]
    labels = _packaged(f"{part}-labels-idx1-ubyte", 1)
    return _dataset("mnist", _packaged(f"{part}-images-idx3-ubyte", 3), labels, labels)


def subset(dataset: Dataset, n: int, seed: int) -> Dataset:
    """`n` images chosen at random, in their old order. Raises UserError unless 1 <= n <= len(dataset)."""
    if not 1 <= n <= len(dataset):
        raise UserError(f"a subset of '{dataset.name}' has 1 to {len(dataset)} images, not {n}")
    return chosen(dataset, n, seed, "subset")


def random_part(dataset: Dataset, n: int, seed: int) -> Dataset:
    """n images chosen at random, or all where there are no more, in their old order (the first n of a folder may be of one class)."""
    return dataset if n >= len(dataset) else chosen(dataset, n, seed, "part")


def chosen(dataset: Dataset, n: int, seed: int, purpose: str) -> Dataset:
    import torch

    return dataset.take(torch.from_numpy(stream(seed, purpose).permutation(len(dataset))[:n]).sort().values)


def left_out(dataset: Dataset, n: int, seed: int, count: int) -> Dataset:
    """At most `count` images that are not in `subset(dataset, n, seed)`, chosen at random."""
    import torch

    return dataset.take(torch.from_numpy(stream(seed, "subset").permutation(len(dataset))[n : n + count]))


def split(dataset: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """(training set, validation set): one image in twenty, at most 1,000, is held out at random for validation.

    Both keep the old order. Of fewer than 20 images none is held out."""
    import torch

    held_out = held_out_of(len(dataset))
    order = torch.from_numpy(stream(seed, "validation").permutation(len(dataset)))
    return dataset.take(order[held_out:].sort().values), dataset.take(order[:held_out].sort().values)


def held_out_of(images: int) -> int:
    """How many of so many images `split` holds out."""
    return min(1000, images // 20)


def with_held_out(training: int) -> int:
    """How many images there must be at least, so that `split` leaves so many to train on."""
    return next(n for n in itertools.count(training) if n - held_out_of(n) >= training)


def random_labels(dataset: Dataset, n: int, seed: int, purpose: str) -> Tensor:
    """The labels (n,) of random images of a labelled data set."""
    import torch

    assert dataset.labels is not None
    rows = stream(seed, purpose).integers(len(dataset), size=n)
    return dataset.labels[torch.from_numpy(rows)]


def mean_images(dataset: Dataset, labels: int) -> Tensor:
    """The mean image of each of the `labels` of a labelled data set, and last that of all: float32 (labels + 1, C, H, W) in [-1, 1].
    It is that of all images, too, for a label that none has."""
    import torch

    assert dataset.labels is not None
    sums = torch.zeros(labels, *dataset.shape, dtype=torch.float64)
    count = images_at_once(dataset.images)
    for images, label in zip(dataset.images.split(count), dataset.labels.split(count), strict=True):
        sums.index_add_(0, label, images.double())
    counts = torch.bincount(dataset.labels, minlength=labels)[:, None, None, None]
    mean = sums.sum(dim=0, keepdim=True) / counts.sum()
    return to_float(torch.cat([torch.where(counts > 0, sums / counts.clamp(min=1), mean), mean]))


def batch_indices(n: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Which of `n` images batch `step` (from 0) holds: int64 (batch_size,).

    Epochs, each a permutation of all n images, follow one another endlessly, and batches are cut from them without
    regard to where one ends: a batch may span several, and every image is seen once an epoch."""
    import torch

    start, stop = step * batch_size, (step + 1) * batch_size
    epochs = range(start // n, (stop - 1) // n + 1)
    return torch.cat([_permutation(n, seed, e)[max(start - e * n, 0) : stop - e * n] for e in epochs])


@lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> Tensor:
    import torch

    return torch.from_numpy(stream(seed, "shuffle", epoch).permutation(n))


def to_float(images: Tensor) -> Tensor:
    """Bytes 0..255 to float32 in [-1, 1], in any shape."""
    return images.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """Floats in [-1, 1], clamped to that, to the nearest bytes: the inverse of `to_float`, exactly."""
    import torch

    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def images_at_once(images: Tensor) -> int:
    """How many of (N, C, H, W) to compute with at a time: 500 digits, or as many bytes."""
    return max(1, 500 * 28 * 28 // images[0].numel()) if len(images) else 1


def _dataset(
    name: str, pixels: NDArray[np.uint8], labels: NDArray[np.uint8] | None, known: NDArray[np.uint8] | None
) -> Dataset:
    """Pixels (N, H, W) or (N, H, W, C) and labels (N,), whose numbers are all among `known`, as a data set."""
    import numpy as np
    import torch

    images = torch.from_numpy(pixels.reshape(*pixels.shape[:3], -1)).permute(0, 3, 1, 2).contiguous()
    if labels is None or known is None:
        return Dataset(name, images)
    numbers = np.unique(known)
    ids = np.searchsorted(numbers, labels).astype(np.int64)
    return Dataset(name, images, torch.from_numpy(ids), tuple(str(number) for number in numbers))


def _packaged(file: str, dimensions: int) -> NDArray[np.uint8]:
    """One of the MNIST files inside the package, checked against its published digest."""
    try:
        with resources.as_file(resources.files("undiffuse") / "mnist" / f"{file}.gz") as path:
            array = _read_idx(path, dimensions)
        digest = hashlib.sha256(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape))
        digest.update(array.data)
        intact = digest.hexdigest() == MNIST_SHA256[file]
    except (OSError, UserError):
        intact = False
    if not intact:
        raise UserError(f"the installed package is damaged ({file}.gz is not as published); install it again")
    return array


def _read_folder(folder: Path, size: int | None, split: str) -> Dataset:
    files = list(_files(folder))
    pictures = [file for file in files if file.suffix.lower() in ENDINGS]
    others = [file for file in files if file.parent == folder and file.suffix.lower() not in ENDINGS]
    idx = {file: dimensions for file in others if (dimensions := _idx_dimensions(file))}
    if idx and pictures:
        raise UserError(
            f"{folder} holds both IDX files ({next(iter(idx)).name}) and images ({pictures[0]}); keep one kind"
        )
    if idx:
        return _resized(_read_idx_folder(folder, idx, split), size)
    if not pictures:
        raise UserError(f"{folder} holds no images; files that are read: {', '.join(ENDINGS)} and IDX")
    if split == "test":
        raise NoTestSet(f"{folder} has no test set: only a folder of the four MNIST files has one")
    return _read_pictures(folder, pictures, size)


def _files(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The files in `folder` and below, sorted; links are followed, except in circles."""
    here = folder.resolve()
    if here in above:
        return
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _files(entry, above | {here})
        elif entry.is_file() or not entry.exists():  # a link to nothing: to read it says so, to skip it would hide it
            yield entry


def _read_idx_folder(folder: Path, files: dict[Path, int], split: str) -> Dataset:
    """The IDX files of `folder`, given with their numbers of dimensions."""
    import numpy as np

    named = {re.split(r"[-.]idx", file.name)[0]: file for file in files}
    roles = [f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images", "labels")]
    missing = [role for role in roles if role not in named]
    if split == "test" and missing:
        raise NoTestSet(f"{folder} has no test set: of the four MNIST files it lacks {', '.join(missing)}")
    labels: Path | None
    known: Path | None  # the labels whose numbers are the classes
    if "train-images" in named and "train-labels" in named:
        part = {"train": "train", "test": "t10k"}[split]
        images, labels, known = named[f"{part}-images"], named[f"{part}-labels"], named["train-labels"]
    else:
        of_images = [file for file, dimensions in files.items() if dimensions > 1]
        of_labels = [file for file, dimensions in files.items() if dimensions == 1]
        if len(of_images) != 1 or len(of_labels) > 1:
            held = f"{len(of_images)} of images and {len(of_labels)} of labels"
            raise UserError(f"{folder} holds {held}; IDX files are read as one of images with at most one of labels")
        images, labels = of_images[0], of_labels[0] if of_labels else None
        known = labels

    pixels = _read_idx(images, 3, 4)
    if pixels.ndim == 4 and pixels.shape[3] not in (1, 3):
        raise UserError(f"{images} has {pixels.shape[3]} channels; images (N, H, W, C) must have 1 or 3, C last")
    name = folder.resolve().name
    if labels is None or known is None:
        return _dataset(name, pixels, None, None)
    numbers, known_numbers = _read_idx(labels, 1), _read_idx(known, 1)
    if len(numbers) != len(pixels):
        raise UserError(f"{labels} has {len(numbers)} labels for the {len(pixels)} images of {images}; get both again")
    strange = np.setdiff1d(numbers, known_numbers)
    if len(strange):
        raise UserError(f"{labels} has the label {strange[0]}, which {known} lacks; give both the same classes")
    return _dataset(name, pixels, numbers, known_numbers)


def _open(path: Path) -> gzip.GzipFile | BufferedReader:
    """The bytes of a file, unpacked if its first two are those of gzip (browsers unpack, and leave the name)."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.GzipFile(path) if packed else path.open("rb")


def _idx_dimensions(path: Path) -> int:
    """1 for an IDX file of labels, 3 or 4 for one of images, by its name or else its first bytes; 0 for others."""
    if name := re.search("idx([134])", path.name):
        return int(name[1])
    try:
        with _open(path) as file:
            magic = file.read(4)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return 0
    return magic[3] if magic[:3] == b"\0\0\x08" and magic[3:] in (b"\1", b"\3", b"\4") else 0


def _read_idx(path: Path, *dimensions: int) -> NDArray[np.uint8]:
    """The bytes of an IDX file that has one of these numbers of dimensions, in its shape."""
    import numpy as np

    stored = path.stat().st_size
    try:
        with _open(path) as file:
            magic = file.read(4)
            if magic not in [bytes((0, 0, 8, d)) for d in dimensions]:
                wanted = " or ".join(f"0000080{d}" for d in dimensions)
                raise UserError(f"{path} starts with '{magic.hex()}', an IDX file of bytes with {wanted}; get it again")
            header = file.read(4 * magic[3])
            if len(header) < 4 * magic[3]:
                raise UserError(f"{path} ends within its header; get it again")
            shape = struct.unpack(f">{magic[3]}I", header)
            promised = math.prod(shape)
            if promised == 0:
                raise UserError(f"{path} is empty: its header says {' x '.join(map(str, shape))}; get it again")
            _check_room(path, *shape)
            if promised > stored * (MAX_DEFLATE if isinstance(file, gzip.GzipFile) else 1):
                raise UserError(
                    f"{path} promises {promised} bytes, more than a file of {stored} can hold; get it again"
                )

            array, filled = np.empty(promised, np.uint8), 0
            while chunk := file.read(min(CHUNK, promised - filled)):
                array[filled : filled + len(chunk)] = np.frombuffer(chunk, np.uint8)
                filled += len(chunk)
            if filled < promised:
                raise UserError(f"{path} is cut short: {filled} of {promised} bytes are there; get it again")
            if file.read(1):  # at the end of a gzip stream this also compares its checksum
                raise UserError(f"{path} goes on after the {promised} bytes that its header promises; get it again")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is a damaged gzip file ({error}); get it again") from error
    return array.reshape(shape)


def _read_pictures(folder: Path, paths: list[Path], size: int | None) -> Dataset:
    import numpy as np
    import torch
    from PIL import Image

    parents = [path.relative_to(folder).parts[0] if path.parent != folder else "" for path in paths]
    classes = tuple(sorted({*parents} - {""}))
    if classes and "" in parents:
        loose = paths[parents.index("")].name
        raise UserError(f"{folder} holds images ({loose}) beside sub-folders of images ({classes[0]}); keep one kind")

    pictures: list[NDArray[np.uint8]] = []  # each (H, W, 1) or (H, W, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is stricter
        for path in paths:
            pictures.append(_read_picture(path, size))
            (height, width, _), (h, w, _) = pictures[0].shape, pictures[-1].shape
            if (h, w) != (height, width):
                raise UserError(f"{path} is {w} x {h} and {paths[0]} {width} x {height}; set a size for all")
            _check_room(folder, len(paths), *pictures[-1].shape)

    channels = max(picture.shape[2] for picture in pictures)
    pixels = np.stack([np.broadcast_to(picture, (height, width, channels)) for picture in pictures])
    dataset = _dataset(folder.resolve().name, pixels, None, None)
    if not classes:
        return dataset
    return replace(dataset, labels=torch.tensor([classes.index(parent) for parent in parents]), classes=classes)


def _read_picture(path: Path, size: int | None) -> NDArray[np.uint8]:
    """An image file as bytes (H, W, 1) if it is grey, else (H, W, 3)."""
    import numpy as np
    from PIL import Image, ImageOps

    with path.open("rb") as file:
        try:
            image: Image.Image = Image.open(file, formats=("PNG", "JPEG"))  # reads the header only
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16 bits: 65535 = 257 * 255
                sixteen = np.asarray(image) * (np.asarray(image) != image.info.get("transparency", -1))
                image = Image.fromarray(np.rint(sixteen / 257).astype(np.uint8))
            opaque = "L" if image.mode in ("1", "L", "LA") else "RGB"
            if image.has_transparency_data:
                image = image.convert(opaque + "A")
                black = Image.new(opaque, image.size)
                black.paste(image.convert(opaque), mask=image.getchannel("A"))
                image = black
            image = image.convert(opaque)
        except Image.DecompressionBombError:
            raise UserError(f"{path} has more than {MAX_PIXELS} pixels; make it smaller or remove it") from None
        except Exception as error:  # whatever the decoder trips over in a broken file
            raise UserError(f"{path} is broken or no PNG or JPEG image; mend or remove it") from error
    if size is not None:
        image = _square(image, size)
    pixels: NDArray[np.uint8] = np.asarray(image)
    return pixels.reshape(image.height, image.width, -1)


def _square(image: Image.Image, size: int) -> Image.Image:
    """The central square of an image, resized to (size, size)."""
    from PIL import Image

    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))


def _resized(dataset: Dataset, size: int | None) -> Dataset:
    import numpy as np
    import torch
    from PIL import Image

    channels, height, width = dataset.shape
    if size is None or height == width == size:
        return dataset
    _check_room(dataset.name, len(dataset), size, size, channels)
    planes = dataset.images.flatten(0, 1).numpy()  # (N C, H, W)
    resized = np.empty((len(planes), size, size), np.uint8)
    for plane, out in zip(planes, resized, strict=True):
        out[:] = np.asarray(_square(Image.fromarray(plane), size))
    return replace(dataset, images=torch.from_numpy(resized).view(len(dataset), channels, size, size))


def _check_room(source: Any, *shape: int) -> None:
    if math.prod(shape) > MAX_BYTES:
        need = f"{' x '.join(map(str, shape))} = {math.prod(shape)} bytes"
        raise UserError(f"{source} needs {need}, more than the {MAX_BYTES} of a data set; use fewer or smaller images")
