"""Data sets of arrays, in IDX files or NumPy's: which array holds what, and what they make.

The arrays of MNIST and of the data sets that copy its format are known by their names, such as
emnist-letters-train-images-idx3-ubyte.gz. So are those of Keras and of MedMNIST, such as x_train
and train_labels.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from undiffuse.base.errors import UserError
from undiffuse.base.files import readable
from undiffuse.base.lazy import lazy
from undiffuse.data.dataset import Dataset, dataset_from_arrays
from undiffuse.data.idx import read_idx
from undiffuse.data.npy import read_member
from undiffuse.data.values import as_bytes, stretch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    np = lazy("numpy")

ROLE = re.compile(r"^(.*?)[-_.]?(train(?:ing)?|t10k|test(?:ing)?)[-_.](images|imgs|labels)\b", re.I)
"""The names of the files of MNIST, and of data sets in its format: (data set, part, kind)."""

OF_KERAS = re.compile(r"^([xy])_(train|test)$", re.I)
"""The names of the arrays of Keras' data sets: (kind, part)."""


class NoTestSet(UserError):
    """The data set has no test set."""


class Source(NamedTuple):
    """An array in a file. member: its name in a file of NumPy's; "" in an IDX file."""

    file: Path
    dimensions: int
    member: str = ""

    def __str__(self) -> str:
        return f"{self.file}: {self.member}" if self.member else str(self.file)

    @property
    def name(self) -> str:
        """The name that says what the array holds. Where NumPy chose it, it is the file's."""
        return self.member if self.member not in ("", "arr_0") else self.file.name

    def read(self, *dimensions: int) -> NDArray[Any]:
        """The array. Raises UserError where it has another number of dimensions, or is damaged."""
        if not self.member:
            return read_idx(self.file, *dimensions)
        if self.dimensions not in dimensions:
            wanted = " or ".join(map(str, dimensions))
            raise UserError(f"{self} has {self.dimensions} dimensions; it must have {wanted}")
        return read_member(self.file, self.member)


class Roles(NamedTuple):
    """The arrays of a data set. known: the labels that are the classes. names: of the classes."""

    images: Source
    labels: Source | None
    known: Source | None
    of: str = ""  # the data set's name in the files' names, such as "emnist-letters"
    names: Source | None = None


def read_arrays(folder: Path, sources: list[Source], split: str) -> Dataset:
    """The data set of the arrays in `folder`.

    split: "train" or "test". Raises NoTestSet where a test set is asked for and there is none, and
    UserError for arrays that cannot be read or do not fit together."""
    roles = roles_of(folder, sources, split)
    notes = list[str]()
    pixels, said = as_bytes(image_array(roles, notes), roles.images)
    notes += [said] if said else []
    if roles.of.lower().startswith("emnist"):  # its images are stored by columns
        pixels = np.ascontiguousarray(pixels.swapaxes(1, 2))
        notes.append(f"{roles.of}: the images of EMNIST lie on their side, and are turned upright")
    numbers = known = None
    if roles.labels is not None and roles.known is not None:
        numbers, known = label_array(roles.labels, notes), label_array(roles.known, [])
        check_labels(roles, pixels, numbers, known)
        if roles.names is not None:
            numbers, known = (named(roles.names, labels) for labels in (numbers, known))
    factor, said = stretch(int(pixels.max()), roles.images)
    if said:
        pixels = pixels * np.uint8(factor)
        notes.append(said)
    dataset = dataset_from_arrays(readable(folder.resolve().name), pixels, numbers, known)
    return replace(dataset, notes=tuple(notes))


def check_labels(
    roles: Roles, pixels: NDArray[Any], numbers: NDArray[Any], known: NDArray[Any]
) -> None:
    """Raises UserError where there is no label for each image, or one that is no class."""
    if len(numbers) != len(pixels):
        raise UserError(
            f"{roles.labels} has {len(numbers)} labels for the {len(pixels)} images of "
            f"{roles.images}; get both again"
        )
    strange = np.setdiff1d(numbers, known)
    if len(strange):
        raise UserError(
            f"{roles.labels} has the label {strange[0]}, which {roles.known} lacks; give both the "
            "same classes"
        )


def role_of(name: str) -> tuple[str, str, str] | None:
    """(the data set's name, "train" or "test", "images" or "labels") of an array; None if unknown.

    name: that of a file or of an array."""
    if found := OF_KERAS.match(name):
        return "", found[2].lower(), {"x": "images", "y": "labels"}[found[1].lower()]
    if found := ROLE.match(name):
        kind = "labels" if found[3].lower() == "labels" else "images"
        return found[1], "train" if found[2].lower().startswith("train") else "test", kind
    return None


def roles_of(folder: Path, sources: list[Source], split: str) -> Roles:
    """Which of the arrays in a folder holds what.

    Raises NoTestSet and UserError as `read_arrays` does."""
    by_set: dict[str, dict[tuple[str, str], Source]] = {}
    for source in sources:
        if found := role_of(source.name):
            of, *role = found
            by_set.setdefault(of, {})[role[0], role[1]] = source
    sets = {of: roles for of, roles in by_set.items() if ("train", "images") in roles}
    if len(sets) > 1:
        listed = ", ".join(roles["train", "images"].name for roles in sets.values())
        raise UserError(
            f"{folder} holds several data sets ({listed}); give a folder with the files of one"
        )
    for of, roles in sets.items():
        labelled = ("train", "labels") in roles
        if split == "test":
            needed = [("test", "images"), *([("test", "labels")] if labelled else [])]
            if missing := [role for role in needed if role not in roles]:
                lacks = ", ".join("-".join(role) for role in missing)
                raise NoTestSet(f"{folder} has no test set: it lacks a file of {lacks}")
        known = roles.get(("train", "labels"))
        labels = roles[split, "labels"] if labelled else None
        return Roles(roles[split, "images"], labels, known, of)
    if split == "test":
        raise NoTestSet(f"{folder} has no test set: it lacks files of train-images and test-images")
    plain = {source.member.lower(): source for source in sources}
    if "images" in plain:  # as undiffuse writes samples
        files = sorted({source.file.name for source in sources if source.member})
        if len(files) > 1:
            raise UserError(
                f"{folder} holds several files of arrays ({', '.join(files)}); keep one, or give "
                "the arrays names such as train_images and test_images"
            )
        labels = plain.get("labels")
        return Roles(plain["images"], labels, labels, names=plain.get("classes"))
    return roles_by_shape(folder, sources)


def roles_by_shape(folder: Path, sources: list[Source]) -> Roles:
    """Which of the arrays in a folder holds what, by their numbers of dimensions."""
    solid = any(source.dimensions > 2 for source in sources)
    flat = 2 if solid else 1  # beside images of 3 or 4 dimensions, 2 are labels in columns
    of_images = [source for source in sources if source.dimensions > flat]
    of_labels = [source for source in sources if source.dimensions <= flat]
    if len(of_images) != 1 or len(of_labels) > 1:
        kind = "arrays" if sources[0].member else "IDX files"
        held = f"{kind}, {len(of_images)} of images and {len(of_labels)} of labels"
        raise UserError(
            f"{folder} holds {held}; it must hold one of images and at most one of labels, or "
            "names such as train-images-idx3-ubyte for files and train_images for arrays"
        )
    labels = next(iter(of_labels), None)
    return Roles(of_images[0], labels, labels)


def image_array(roles: Roles, notes: list[str]) -> NDArray[Any]:
    """The images (N, H, W) or (N, H, W, C). Flat images (N, H W) are squares.

    Of (N, C, H, W) the channels are put last. notes: where a sentence about that is added."""
    pixels = roles.images.read(2, 3, 4)
    if not pixels.size:
        raise UserError(f"{roles.images} is empty; get it again")
    if pixels.ndim == 4 and pixels.shape[3] not in (1, 3):
        if pixels.shape[1] not in (1, 3):
            raise UserError(
                f"{roles.images} has {pixels.shape[3]} channels; images (N, H, W, C) must have 1 "
                "or 3, C last"
            )
        notes.append(f"{roles.images}: its channels stand before height and width")
        pixels = pixels.transpose(0, 2, 3, 1)
    if pixels.ndim > 2:
        return pixels
    side = math.isqrt(pixels.shape[1])
    if side**2 != pixels.shape[1]:
        raise UserError(
            f"{roles.images} has {pixels.shape[1]} numbers for each image, which is no square; "
            "store images as (N, H, W)"
        )
    return pixels.reshape(-1, side, side)


def label_array(source: Source, notes: list[str]) -> NDArray[Any]:
    """The labels (N,): whole numbers, or names. Of several columns the first is the class.

    Rows of zeros and one 1 stand for the number of the column with the 1. notes: where a sentence
    about columns is added. Raises UserError for labels of another kind."""
    labels = source.read(1, 2)
    if labels.ndim == 2 and labels.shape[1] > 1:
        if labels.dtype.kind in "fiub" and one_hot(labels):
            notes.append(f"{source}: the column with a 1 is the class")
            labels = labels.argmax(axis=1)[:, None]
        else:
            notes.append(f"{source}: of its {labels.shape[1]} columns the first is the class")
    if labels.ndim == 2:
        labels = labels[:, 0]
    if labels.dtype.kind == "S":
        return np.array([readable(os.fsdecode(name)) for name in labels.tolist()])
    if labels.dtype.kind == "U":
        return labels
    if labels.dtype.kind not in "fiub":
        raise UserError(f"{source} has labels of type {labels.dtype}; give each class a number")
    numbers = np.asarray(labels, np.float64)
    if not (np.abs(numbers) < 2**53).all() or not np.equal(numbers, np.rint(numbers)).all():
        raise UserError(f"{source} has labels that are no whole numbers; give each class a number")
    return labels.astype(np.int64)


def one_hot(labels: NDArray[Any]) -> bool:
    """Whether each row of labels (N, K) has one 1 and is 0 elsewhere."""
    return bool(((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all())


def named(names: Source, labels: NDArray[Any]) -> NDArray[Any]:
    """The names of labels (N,). names: the array of names, by number.

    Names that are numbers are numbers, so that 10 follows 9."""
    called = names.read(1)
    if called.dtype.kind != "U":
        raise UserError(f"{names} holds {called.dtype}; class names must be text")
    if labels.dtype.kind != "i" or labels.min() < 0 or labels.max() >= len(called):
        raise UserError(f"{names} has {len(called)} names, which do not fit the labels")
    if all(name.isdecimal() and name == str(int(name)) for name in called):
        called = called.astype(np.int64)
    return called[labels]
