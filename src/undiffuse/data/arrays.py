"""Folders of IDX files: which file holds what, and the data set that they make.

The files of MNIST and of the data sets that copy its format are known by their names, such as
emnist-letters-train-images-idx3-ubyte.gz.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undiffuse.base.errors import UserError
from undiffuse.base.files import readable
from undiffuse.base.lazy import lazy
from undiffuse.data.dataset import Dataset, dataset_from_arrays
from undiffuse.data.idx import read_idx
from undiffuse.data.values import as_bytes, stretch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    np = lazy("numpy")

ROLE = re.compile(r"^(.*?)[-_.]?(train(?:ing)?|t10k|test(?:ing)?)[-_.](images|labels)\b", re.I)
"""The names of the files of MNIST, and of data sets in its format: (data set, part, kind)."""


class NoTestSet(UserError):
    """The data set has no test set."""


@dataclass(frozen=True)
class Roles:
    """The IDX files of a data set. known: the file of the labels that are the classes."""

    images: Path
    labels: Path | None
    known: Path | None
    of: str = ""  # the data set's name in the files' names, such as "emnist-letters"


def read_idx_folder(folder: Path, files: dict[Path, int], split: str) -> Dataset:
    """The data set of the IDX files in `folder`.

    files: each with its number of dimensions. split: "train" or "test". Raises NoTestSet where a
    test set is asked for and there is none, and UserError for files that cannot be read or do not
    fit together."""
    roles = roles_of(folder, files, split)
    notes = []
    pixels, said = as_bytes(image_array(roles), roles.images)
    notes += [said] if said else []
    if roles.of.lower().startswith("emnist"):  # its images are stored by columns
        pixels = np.ascontiguousarray(pixels.swapaxes(1, 2))
        notes.append(f"{roles.of}: the images of EMNIST lie on their side, and are turned upright")
    numbers = known = None
    if roles.labels is not None and roles.known is not None:
        numbers, known = label_array(roles.labels, notes), label_array(roles.known, [])
        check_labels(roles, pixels, numbers, known)
    factor, said = stretch(int(pixels.max()), roles.images)
    if said:
        pixels = pixels * np.uint8(factor)
        notes.append(said)
    dataset = dataset_from_arrays(readable(folder.resolve().name), pixels, numbers, known)
    return replace(dataset, notes=tuple(notes))


def check_labels(
    roles: Roles, pixels: NDArray[Any], numbers: NDArray[np.int64], known: NDArray[np.int64]
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


def roles_of(folder: Path, files: dict[Path, int], split: str) -> Roles:
    """Which of the IDX files in a folder holds what.

    Raises NoTestSet and UserError as `read_idx_folder` does."""
    named: dict[str, dict[tuple[str, str], Path]] = {}
    for file in files:
        if found := ROLE.match(file.name):
            part = "train" if found[2].lower().startswith("train") else "test"
            named.setdefault(found[1], {})[part, found[3].lower()] = file
    sets = {of: roles for of, roles in named.items() if ("train", "images") in roles}
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
    return roles_by_shape(folder, files)


def roles_by_shape(folder: Path, files: dict[Path, int]) -> Roles:
    """Which of the IDX files in a folder holds what, by their numbers of dimensions."""
    solid = any(dimensions > 2 for dimensions in files.values())
    flat = 2 if solid else 1  # beside images of 3 or 4 dimensions, 2 are labels in columns
    of_images = [file for file, dimensions in files.items() if dimensions > flat]
    of_labels = [file for file, dimensions in files.items() if dimensions <= flat]
    if len(of_images) != 1 or len(of_labels) > 1:
        held = f"IDX files, {len(of_images)} of images and {len(of_labels)} of labels"
        raise UserError(
            f"{folder} holds {held}; it must hold one of images and at most one of labels, or "
            "files with names such as train-images-idx3-ubyte"
        )
    labels = next(iter(of_labels), None)
    return Roles(of_images[0], labels, labels)


def image_array(roles: Roles) -> NDArray[Any]:
    """The images of an IDX file: (N, H, W) or (N, H, W, C). Flat images (N, H W) are squares."""
    pixels = read_idx(roles.images, 2, 3, 4)
    if pixels.ndim == 4 and pixels.shape[3] not in (1, 3):
        raise UserError(
            f"{roles.images} has {pixels.shape[3]} channels; images (N, H, W, C) must have 1 or 3, "
            "C last"
        )
    if pixels.ndim > 2:
        return pixels
    side = math.isqrt(pixels.shape[1])
    if side**2 != pixels.shape[1]:
        raise UserError(
            f"{roles.images} has {pixels.shape[1]} numbers for each image, which is no square; "
            "store images as (N, H, W)"
        )
    return pixels.reshape(-1, side, side)


def label_array(file: Path, notes: list[str]) -> NDArray[np.int64]:
    """The labels (N,) of an IDX file. Of several columns the first is the class.

    notes: where a sentence about that is added. Raises UserError for labels that are no whole
    numbers."""
    labels = read_idx(file, 1, 2)
    if labels.ndim == 2:
        notes.append(f"{file}: of its {labels.shape[1]} columns the first is the class")
        labels = labels[:, 0]
    if labels.dtype.kind == "f" and not np.equal(labels, np.rint(labels)).all():
        raise UserError(f"{file} has labels that are no whole numbers; give each class a number")
    return labels.astype(np.int64)
