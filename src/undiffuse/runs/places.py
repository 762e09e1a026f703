"""Where the data of a run are. They may have moved since the run was begun.

The images of a run are known by their hash. Where they lie is only a way to find them.
"""

from __future__ import annotations

import os
from pathlib import Path

from undiffuse.base.errors import UserError, listed
from undiffuse.base.files import is_clutter, readable
from undiffuse.data.loading import DATASETS


def places_of(data: str, run: Path) -> tuple[str, ...]:
    """Where a folder of data lies: as an absolute path, and as seen from the run folder.

    data: as the run was told. () for a data set that comes with the package, and for a path that is
    not UTF-8."""
    if data in DATASETS:
        return ()
    absolute = os.path.abspath(data)  # noqa: PTH100 - links stay links
    if readable(absolute) != absolute:
        return ()
    try:
        return absolute, os.path.relpath(absolute, run)
    except ValueError:  # on another drive of Windows
        return (absolute,)


def found_data(data: str, places: tuple[str, ...], run: Path) -> str:
    """Where the data of a run are now: a data set's name, or a folder that exists.

    data: as the run was told. places: from `places_of`. Raises UserError where there is no such
    folder."""
    if data in DATASETS:
        return data
    absolute, beside = places[:1], places[1:]
    for place in (*absolute, *(str(run / path) for path in beside), data):
        if Path(place).is_dir():
            return place
    raise UserError(
        f"the images of {run} are not in {(*absolute, data)[0]} any more; give data=FOLDER, where "
        "they are now"
    )


def only_data(folder: Path, data: str) -> bool:
    """Whether a folder for a new run holds the run's data and nothing else that counts.

    The data may lie in the folder, or in one of its sub-folders."""
    if not folder.is_dir():
        return not folder.exists()
    place = Path(data).resolve()
    return all(
        is_clutter(entry) or (data not in DATASETS and place.is_relative_to(entry.resolve()))
        for entry in folder.iterdir()
    )


def refuse_no_run(folder: Path) -> None:
    """Raises UserError where a path is no run folder. Run folders directly below it are named."""
    if folder.is_file():
        raise UserError(f"{folder} is a file; give a run folder, unpacked if it is in one")
    if (folder / "config.json").is_file():
        return
    if below := sorted(str(found.parent) for found in folder.glob("*/config.json")):
        raise UserError(f"{folder} is no run folder; give one of those in it: {listed(below)}")
    raise UserError(f"{folder} is no run folder: it has no config.json; undiffuse train makes one")


def refuse_occupied(folder: Path, data: str) -> None:
    """Raises UserError where a new run cannot be made in a folder, because of what is there."""
    if folder.is_symlink() and not folder.exists():
        raise UserError(
            f"{folder} is a link to {folder.readlink()}, which does not exist; make it, or choose "
            "another folder with out=FOLDER"
        )
    if not only_data(folder, data):
        raise UserError(
            f"{folder} exists and is no run folder; choose another folder with out=FOLDER"
        )
