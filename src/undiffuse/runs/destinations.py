"""Where sampled images are written: a grid, an archive, a folder of PNG files, or a trajectory."""

from __future__ import annotations

import io
import re
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from undiffuse.base.errors import UserError
from undiffuse.base.files import (
    cannot_write,
    is_clutter,
    refuse_unwritable,
    safe_name,
    write_atomic,
)
from undiffuse.base.images import (
    NOTE,
    animation_bytes,
    as_array,
    as_picture,
    columns_for,
    image_grid,
    is_drawn,
    png_bytes,
)

if TYPE_CHECKING:
    from torch import Tensor


COLUMNS = 8
"""Columns of a grid with images before the others."""

DRAWN = re.compile(r"\d{5,}(_.*)?\.png")
"""The names of the images in a folder: 00012.png, or 00012_CLASS.png."""


@dataclass(frozen=True)
class Destination:
    """A file or folder to write images to. kind: "png", "npz" or "folder"."""

    path: Path
    kind: str

    def __str__(self) -> str:
        return str(self.path)


def destination(text: str, name: str = "out", *, overwrite: bool = False) -> Destination:
    """The destination that a text names: FILE.png, FILE.npz or FOLDER/.

    A folder ends in a slash or exists. name: the parameter, for errors. overwrite: the images that
    an earlier call wrote into the folder are replaced, and so is any file of that name; without it
    a file is replaced only if undiffuse wrote it. Raises UserError for other files, for a folder
    that is not empty, unless it is overwritten, for a file in a folder that does not exist, and
    where nothing can be written."""
    path = Path(text)
    if text.endswith("/") or path.is_dir():
        kind = "folder"
    elif path.suffix.lower() in (".png", ".npz"):
        kind = path.suffix.lower()[1:]
    else:
        raise UserError(
            f"{name}={text}: write FILE.png for a grid, FILE.npz for an archive, or FOLDER/ for a "
            "PNG file of each image"
        )
    if kind == "folder" and path.exists() and not path.is_dir():
        raise UserError(f"{name}={text}: {path} is a file, not a folder; choose another name")
    full = kind == "folder" and path.exists() and not all(map(is_clutter, path.iterdir()))
    if full and not overwrite:
        raise UserError(
            f"{name}={text}: the folder is not empty; choose a new one, or replace the images of "
            "an earlier call in it with overwrite=True"
        )
    if kind != "folder":
        refuse_file(path, f"{name}={text}", overwrite=overwrite)
    refuse_unwritable(path)
    return Destination(path, kind)


def refuse_file(path: Path, given: str, *, overwrite: bool) -> None:
    """Raises UserError where there is no folder for a file, or where the file is someone else's.

    given: the parameter, for errors. overwrite: any file is replaced."""
    if not path.parent.is_dir():
        raise UserError(f"{given}: there is no folder {path.parent}; make it first")
    if path.exists() and not overwrite and not is_own(path):
        raise UserError(
            f"{given}: there is a file of that name that undiffuse did not write; choose another "
            f"name{'' if given.startswith('save') else ', or replace it with overwrite=True'}"
        )


def is_own(path: Path) -> bool:
    """Whether undiffuse wrote a picture or an archive of samples. Pictures and archives say so."""
    from PIL import Image

    try:
        if path.suffix.lower() == ".npz":
            with zipfile.ZipFile(path) as archive:
                return archive.comment == NOTE.encode()
        with Image.open(path) as picture:
            return is_drawn(picture)
    except (OSError, ValueError, SyntaxError, zipfile.BadZipFile, Image.DecompressionBombError):
        return False


def classes_in_turn(labels: Tensor | None) -> int:
    """The number of classes that take turns in labels (N,): a grid has a row for each.

    0 without labels, where the classes do not take turns, and for more than 20 classes."""
    if labels is None:
        return 0
    asked = len(set(labels.tolist()))
    take_turns = torch.equal(labels, labels[torch.arange(len(labels)) % asked])
    return asked if take_turns and 1 < asked <= 20 else 0


def save_images(
    to: Destination,
    images: Tensor,
    labels: Tensor | None,
    classes: tuple[str, ...],
    note: dict[str, Any] | None = None,
    *,
    before: Tensor | None = None,
) -> None:
    """Write images uint8 (N, C, H, W) to a destination.

    labels: class numbers (N,), or None. classes: the names of all classes. note: the metadata of a
    grid. before: images that a grid shows in its first row, before all others. Grids and archives
    are marked as undiffuse's. A file is written completely or not at all. The images of a folder
    are moved into it when all of them are written; those of an earlier call are removed then, and
    no other file. Raises UserError where that is not possible."""
    if to.kind == "png" and before is not None:
        first = torch.zeros(COLUMNS, *images.shape[1:], dtype=torch.uint8)
        first[: len(before)] = before
        sheet = image_grid(torch.cat([first, images]), COLUMNS)
        write_atomic(to.path, png_bytes(sheet, note))
    elif to.kind == "png":
        rows = classes_in_turn(labels)
        sheet = image_grid(images, rows or columns_for(len(images)), down=rows > 0)
        write_atomic(to.path, png_bytes(sheet, {**(note or {}), "rows": rows}))
    elif to.kind == "npz":
        arrays: dict[str, Any] = {"images": as_array(images)}
        if labels is not None:
            arrays |= {"labels": labels.numpy(), "classes": np.array(classes)}
        write_archive(to.path, arrays)
    else:
        try:
            to.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=to.path, prefix=".") as place:
                for i, image in enumerate(images):
                    name = (
                        f"{i:05d}.png"
                        if labels is None
                        else f"{i:05d}_{safe_name(classes[labels[i]])}.png"
                    )
                    Path(place, name).write_bytes(png_bytes(as_picture(image)))
                for file in to.path.iterdir():
                    if DRAWN.fullmatch(file.name):
                        file.unlink()
                for file in Path(place).iterdir():
                    file.rename(to.path / file.name)
        except OSError as error:
            raise cannot_write(to.path, error) from error


def write_archive(path: Path, arrays: dict[str, Any]) -> None:
    """Write an archive, marked as undiffuse's."""
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    with zipfile.ZipFile(out, "a") as archive:
        archive.comment = NOTE.encode()
    write_atomic(path, out.getvalue())


def save_encoded(to: Destination, image: Tensor, noise: Tensor, seen: Tensor, back: Tensor) -> None:
    """Write an image's noise (1, C, H, W) and the image after the way back.

    seen: the noise as a picture, for a grid of all three."""
    if to.kind == "npz":
        write_archive(to.path, {"noise": noise.numpy(), "images": as_array(back)})
    else:
        sheet = image_grid(torch.cat([image, seen, back]), 3)
        write_atomic(to.path, png_bytes(sheet, {"verb": "encode"}))


def check_trajectory(path: Path, images: Destination, *, overwrite: bool = False) -> None:
    """Raises UserError unless a trajectory can be written to `path`.

    images: the destination of the images, which must be another one. overwrite: as for
    `destination`."""
    if path.suffix.lower() not in (".gif", ".png"):
        raise UserError(
            f"trajectory={path}: write FILE.gif for an animation or FILE.png for a grid"
        )
    refuse_file(path, f"trajectory={path}", overwrite=overwrite)
    refuse_unwritable(path)
    if path.resolve() == images.path.resolve():
        raise UserError(f"trajectory={path}: that is where the images go; give it another name")


def save_trajectory(path: Path, stages: list[Tensor]) -> None:
    """Write the stages from noise to images, uint8 (N, C, H, W) each.

    FILE.gif is an animation of all stages. FILE.png is a grid with a row for each image and at most
    12 stages."""
    if path.suffix.lower() == ".gif":
        frames = [
            image_grid(stage, columns=len(stage)).convert("P" if stage.shape[1] == 3 else "L")
            for stage in stages
        ]
        write_atomic(path, animation_bytes(frames))
    else:
        shown = (
            [stages[round(k * (len(stages) - 1) / 11)] for k in range(12)]
            if len(stages) > 12
            else stages
        )
        sheet = torch.stack(shown, dim=1).flatten(0, 1)  # (N * stages, C, H, W)
        write_atomic(path, png_bytes(image_grid(sheet, columns=len(shown)), {}))
