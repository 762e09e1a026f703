"""Loading a data set: one that comes with the package, by name, or a folder of images.

To add one: a function split -> Dataset with `@DATASETS.add`; split is "train" or "test".
"""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from undiffuse.base.errors import UserError, listed
from undiffuse.base.files import is_clutter, readable
from undiffuse.base.lazy import lazy
from undiffuse.base.table import Table
from undiffuse.data.arrays import NoTestSet, Source, read_arrays
from undiffuse.data.dataset import Dataset, dataset_from_arrays
from undiffuse.data.idx import idx_dimensions, read_idx
from undiffuse.data.npy import NUMPY, dimensions_of
from undiffuse.data.picture import ENDINGS, is_picture
from undiffuse.data.pictures import (
    BACKGROUNDS,
    classes_of,
    counted,
    kinds_of,
    passed_over,
    read_pictures,
    resized,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    np = lazy("numpy")

DATASETS = Table("data set")


SIZES = range(4, 1025)
"""The sizes that images may be resized to, in pixels a side."""

MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""The published SHA-256 of the uncompressed files."""


def load_dataset(
    spec: str, size: int | None = None, split: str = "train", *, background: str = "auto"
) -> Dataset:
    """Load a data set. Nothing is written.

    spec: the name of a data set, or a folder; write ./mnist for a folder called mnist. size: crop
    each image to its central square and resize it (Lanczos) to size x size pixels; without it all
    images must have one size already. split: "train" or "test". background: "black" or "white",
    on which transparent pictures lie; "auto" is white where what they show is dark, else black.

    A folder holds images in one of these ways. Hidden files, files that systems leave behind and
    run folders are not read.

    - IDX files with names such as train-images-idx3-ubyte and train-labels-idx1-ubyte, and
      t10k-images.. or test-images..; names may begin with the data set's, as emnist-letters-train..
    - one IDX file of images, (N, H, W), (N, H, W, C) with C = 1 or 3, or (N, H W) of squares, and
      at most one IDX file of labels, (N,) or (N, columns) with the class first
    - image files: in sub-folders, each of which is a class with the folder's name, or all directly
      in the folder, without classes
    - folders `train` and `test`, or `training` and `testing`, each with image files as above
    - one folder below it that holds IDX files, as torchvision's MNIST/raw
    - .npz and .npy files of NumPy: arrays x_train, y_train, x_test and y_test, as Keras has them,
      or train_images.. and test_images.. as MedMNIST; or images, labels and classes, as undiffuse
      writes samples; or one array of images and at most one of labels

    IDX files may be compressed with gzip. Arrays have any element type. The different numbers or
    names among the labels are the names of the classes. In rising order they become the labels
    0..K-1. The labels of a test set are numbered as those of its training set.

    The ending or the first bytes of a file say whether it is an image file.

    Image files have C = 1 if all of them are grey, else C = 3. Pixels that are 0 or 1 are read as
    black and white. 16 bits are reduced to 8. The EXIF orientation is applied. Of an animation the
    first picture is read. What was changed or passed over stands in the data set's `notes`.

    Raises UserError for anything that cannot be read as described."""
    if split not in ("train", "test"):
        raise UserError(f"split must be 'train' or 'test', not '{split}'")
    if size is not None and size not in SIZES:
        raise UserError(f"size must be from {SIZES[0]} to {SIZES[-1]} pixels a side, not {size}")
    if background not in BACKGROUNDS:
        raise UserError(f"background must be one of {', '.join(BACKGROUNDS)}, not '{background}'")
    if spec in DATASETS:
        dataset = resized(DATASETS[spec](split), size)
        return replace(dataset, notes=(*dataset.notes, *same_name(spec)))
    folder = Path(spec)
    try:
        if spec and folder.is_file():
            raise UserError(f"'{spec}' is a file; {instead_of(folder)}")
        if not spec or not folder.is_dir():
            known = ", ".join(DATASETS)
            raise UserError(
                f"'{spec}' is neither a data set (there are: {known}) nor a folder of images; "
                "give either"
            )
        return _read_folder(folder, size, split, background)
    except OSError as error:
        raise UserError(
            f"{error.filename or spec} cannot be read: {error.strerror or error}"
        ) from error


@DATASETS.add
def mnist(split: str) -> Dataset:
    """MNIST, by LeCun, Cortes & Burges: handwritten digits, grey, 28 x 28 pixels.

    There are 60,000 images to train on and 10,000 to test with."""
    part = {"train": "train", "test": "t10k"}[split]
    labels = _packaged(f"{part}-labels-idx1-ubyte", 1)
    images = _packaged(f"{part}-images-idx3-ubyte", 3)
    return dataset_from_arrays("mnist", images, labels, labels)


def _packaged(file: str, dimensions: int) -> NDArray[np.uint8]:
    """One of the MNIST files inside the package, checked against its published SHA-256.

    Raises UserError where it is damaged or missing."""
    try:
        with resources.as_file(resources.files("undiffuse.data") / "mnist" / f"{file}.gz") as path:
            array = read_idx(path, dimensions)
        digest = hashlib.sha256(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape))
        digest.update(array.data)
        intact = digest.hexdigest() == MNIST_SHA256[file]
    except (OSError, UserError):
        intact = False
    if not intact:
        raise UserError(
            f"the installed package is damaged ({file}.gz is not as published); install it again"
        )
    return array


def _read_folder(folder: Path, size: int | None, split: str, background: str) -> Dataset:
    """The data set in a folder, as `load_dataset` describes it."""
    files = list(files_of(folder))
    pictures = [file for file in files if is_picture(file)]
    known = set(pictures)
    others = [file for file in files if file not in known]
    here = [file for file in others if file.parent == folder]
    idx = _idx_files(here)
    if idx and pictures:
        raise UserError(
            f"{folder} holds both IDX files ({idx[0].name}) and images ({pictures[0]}); keep one "
            "kind"
        )
    if not pictures and (arrays := idx or _numpy_arrays(here)):
        dataset = resized(read_arrays(folder, arrays, split), size)
        unread = passed_over(others) if idx else []
        return replace(dataset, notes=(*dataset.notes, *unread))
    if not pictures:
        return _read_below(folder, others, size, split)
    notes = tuple(kinds_of(pictures, others))
    if parts := _parts(folder, pictures):
        dataset = _read_part(folder, parts, pictures, size, split, background)
    elif split == "test":
        raise NoTestSet(f"{folder} has no test set: it has no folder called test beside one train")
    else:
        dataset = read_pictures(folder, pictures, size, background)
        notes += tuple(no_classes(others) if not dataset.classes else empty(folder, dataset))
    return replace(dataset, notes=(*dataset.notes, *notes))


def same_name(spec: str) -> Iterator[str]:
    """A note where a folder has the name of a data set that comes with the package."""
    if Path(spec).is_dir() and not is_run_folder(Path(spec)):
        yield (
            f"the data set '{spec}' is the one that comes with undiffuse; for the folder here "
            f"write ./{spec}"
        )


def no_classes(others: list[Path]) -> Iterator[str]:
    """A note on files that may hold classes, which are not read. others: beside the pictures."""
    tables = [file.name for file in others if file.suffix.lower() in TABLES]
    if tables:
        yield (
            f"{tables[0]} is not read, so the pictures have no classes; to give them classes, put "
            "the pictures of each class into a sub-folder with its name"
        )


def empty(folder: Path, dataset: Dataset) -> Iterator[str]:
    """A note on sub-folders without pictures, which are no classes."""
    below = [
        entry for entry in sorted(folder.iterdir()) if entry.is_dir() and not is_clutter(entry)
    ]
    names = [readable(entry.name) for entry in below if not is_run_folder(entry)]
    if none := [name for name in names if name not in dataset.classes]:
        yield f"without pictures, so no classes: {listed(none)}"


def instead_of(file: Path) -> str:
    """What to give instead of a file, in words."""
    if file.suffix.lower() in PACKED and not idx_dimensions(file):
        return "unpack it, and give the folder that it makes"
    return f"give the folder that it lies in: {file.parent}"


def _idx_files(files: Iterable[Path]) -> list[Source]:
    """Those of the files that are IDX files."""
    return [Source(file, number) for file in files if (number := idx_dimensions(file))]


def _numpy_arrays(files: Iterable[Path]) -> list[Source]:
    """The arrays in those of the files that are NumPy's."""
    return [
        Source(file, number, name)
        for file in files
        if file.suffix.lower() in NUMPY
        for name, number in dimensions_of(file).items()
        if number
    ]


def _read_below(folder: Path, files: list[Path], size: int | None, split: str) -> Dataset:
    """The data set of the one folder below `folder` that holds IDX files."""
    idx = _idx_files(files)
    below = list(dict.fromkeys(source.file.parent for source in idx))
    if not below:
        held = counted(Counter(file.suffix.lower() or "without ending" for file in files))
        raise UserError(
            f"{folder} holds no images; files that are read: {', '.join(ENDINGS)}, IDX, and "
            f"{' and '.join(NUMPY)} directly in it"
            f"{f'; it holds: {held}; {CONVERT}' if files else ''}"
        )
    if len(below) > 1:
        listed = ", ".join(map(str, below))
        raise UserError(f"{folder} holds IDX files in several folders; give one of {listed}")
    (place,) = below
    dataset = resized(read_arrays(place, idx, split), size)
    named = place.parent if place.name == "raw" else place  # torchvision's MNIST/raw
    said = f"the images are those of {place}"
    return replace(dataset, name=readable(named.resolve().name), notes=(said, *dataset.notes))


TABLES = (".csv", ".tsv", ".json", ".jsonl", ".xml", ".parquet")
"""How the names of files end that may list the classes of pictures."""

CONVERT = (
    "convert pictures to PNG, and save numbers with numpy.savez('FOLDER/data.npz', images=IMAGES, "
    "labels=LABELS)"
)

PACKED = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
"""How the names of archives end, which are not read."""

PARTS = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "val": "validation", "valid": "validation", "validation": "validation",
}  # fmt: skip
"""Names of folders that hold a part of a data set -> the part."""


def _parts(folder: Path, pictures: list[Path]) -> dict[str, str]:
    """The part of each sub-folder of images, if all of them have names of parts; else {}."""
    names = {path.relative_to(folder).parts[0] for path in pictures}
    parts = {name: PARTS.get(name.lower(), "") for name in names}
    found = list(parts.values())
    whole = "train" in found and len(found) > 1 and "" not in found
    return parts if whole and found.count("train") == 1 and found.count("test") <= 1 else {}


def _read_part(
    folder: Path,
    parts: dict[str, str],
    pictures: list[Path],
    size: int | None,
    split: str,
    background: str,
) -> Dataset:
    """One part of a data set of image files. parts: sub-folder -> part."""
    by_part = {part: folder / name for name, part in parts.items()}
    if split not in by_part:
        raise NoTestSet(f"{folder} has no test set: it has no folder called test")
    of_part = {
        part: [path for path in pictures if path.is_relative_to(place)]
        for part, place in by_part.items()
    }
    classes = classes_of(by_part["train"], of_part["train"])
    dataset = read_pictures(by_part[split], of_part[split], size, background, classes)
    held = {"train": "the training set", "test": "the test set", "validation": "not read"}
    listed = ", ".join(f"{name}/ is {held[part]}" for name, part in sorted(parts.items()))
    name = readable(folder.resolve().name)
    return replace(dataset, name=name, notes=(f"of {folder}: {listed}", *dataset.notes))


def files_of(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The files in `folder` and below, sorted, without clutter and without run folders.

    Links are followed, but no circle of links. above: the folders above this one."""
    here = folder.resolve()
    if here in above:
        return
    for entry in sorted(folder.iterdir()):
        if is_clutter(entry):
            continue
        if entry.is_dir():
            if not is_run_folder(entry):
                yield from files_of(entry, above | {here})
        # A link to nothing is a file too: reading it gives an error, skipping it would hide it.
        elif entry.is_file() or not entry.exists():
            yield entry


def is_run_folder(folder: Path) -> bool:
    """Whether a folder below the data is one that training writes. Its pictures are no data."""
    return all((folder / name).is_file() for name in ("config.json", "log.jsonl"))
