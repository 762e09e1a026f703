"""What a report reads: the files of a run folder, as one `Source`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import nn

from undiffuse.base.errors import UserError
from undiffuse.base.images import columns_for, note_of
from undiffuse.measuring.results import check_results
from undiffuse.report.words import STUDY_NAMES
from undiffuse.runs.averages import kept_averages
from undiffuse.runs.folder import About, Run
from undiffuse.runs.studies import SHEETS, check_study
from undiffuse.training.config import Config
from undiffuse.training.records import Finished, Record, Snapshot, of_kind

R = TypeVar("R", bound=Record)

LARGEST_RESULTS = 2**24  # bytes


PICTURE_FILES = (
    "data.png",
    "loss.png",
    "timeline.png",
    "samples.png",
    "bits.png",
    "novelty.png",
    "unsure.png",
    "inpaint.png",
    "edit.png",
    "interpolate.png",
    "restore.png",
)
"""The pictures of a run folder that a report may show."""


@dataclass(frozen=True)
class Source:
    """What a report reads of a run folder.

    records: of the run, in order. metrics, samplers, progress, guidance, grids, restoration: None
    where the run has none.
    trainings: the studies of trainings, by name. pictures: the bytes of the pictures that exist, by
    file name. class_lies_in: how samples.png shows classes. "row": each row is a class. "column":
    each column. None: neither."""

    run: Run
    about: About
    records: tuple[Record, ...]
    metrics: dict[str, Any] | None
    samplers: dict[str, Any] | None
    progress: dict[str, Any] | None = None
    guidance: dict[str, Any] | None = None
    grids: dict[str, Any] | None = None
    restoration: dict[str, Any] | None = None
    trainings: dict[str, dict[str, Any]] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    class_lies_in: str | None = None

    def of(self, kind: type[R]) -> list[R]:
        """The records of a kind, in order."""
        return of_kind(kind, self.records)

    @property
    def config(self) -> Config:
        return self.about.config

    @property
    def condition(self) -> str:
        """A word for what the network is conditioned on, where it is conditional."""
        return "class" if self.about.conditioning.kind == "class" else "cluster"

    @cached_property
    def network(self) -> nn.Module:
        """The run's network on the device `meta`: its weights have shapes and no memory."""
        return self.about.description(self.steps).build(device="meta").eval().to("meta")

    def run_network(self) -> None:
        """Call the network on the device `meta`, for those who watch what it computes."""
        with torch.no_grad(), torch.device("meta"):
            condition = torch.zeros(1, dtype=torch.long) if self.about.conditioning.kind else None
            self.network(torch.zeros(1, *self.about.facts.shape), torch.zeros(1), condition)

    @cached_property
    def steps(self) -> int:
        return max((record.step for record in self.records), default=0)

    @cached_property
    def minutes(self) -> float:
        return max((record.time for record in self.records), default=0.0) / 60

    @cached_property
    def finished(self) -> bool:
        return bool(self.of(Finished))

    @property
    def has_weights(self) -> bool:
        """Whether there is a model to sample from."""
        return self.run.model_path.is_file() or self.run.checkpoint_path.is_file()

    @property
    def averages(self) -> list[int]:
        """The steps whose averaged weights the run kept."""
        return kept_averages(self.run)

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """The content of metrics.json, where it is of the current weights."""
        current = self.metrics is not None and self.is_current(self.metrics["of"]["step"])
        return self.metrics if current else None

    @property
    def comparison(self) -> dict[str, Any] | None:
        """The study of samplers, where it is of the current weights."""
        current = self.samplers is not None and self.is_current(self.samplers["step"])
        return self.samplers if current else None

    @property
    def over_time(self) -> dict[str, Any] | None:
        """The study of quality over time, where it is of this run's end and has rows."""
        return self.current(self.progress)

    @property
    def guided(self) -> dict[str, Any] | None:
        """The study of guidance, where it is of the current weights and has rows."""
        return self.current(self.guidance)

    @property
    def gridded(self) -> dict[str, Any] | None:
        """The study of grids, where it is of the current weights and has rows."""
        return self.current(self.grids)

    @property
    def restored(self) -> dict[str, Any] | None:
        """The study of restoration, where it is of the current weights and has rows."""
        return self.current(self.restoration)

    def current(self, study: dict[str, Any] | None) -> dict[str, Any] | None:
        """A study, where it is of the current weights and has rows."""
        return study if study and study["rows"] and self.is_current(study["step"]) else None

    def edited(self, verb: str) -> dict[str, Any] | None:
        """The note of the picture that a verb such as "inpaint" made, of the current weights."""
        note = note_of(self.pictures.get(f"{verb}.png", b""))
        step = note.get("step")
        usable = note.get("verb") == verb and isinstance(step, int) and self.is_current(step)
        return note if usable else None

    def is_current(self, step: int) -> bool:
        """Whether results at this step describe the run. A finished run has its last step only."""
        return not self.finished or step == self.steps


def read(run: Run) -> Source:
    """Read a run folder. Raises UserError where there is no run, or where a file is damaged."""
    about = run.about()
    metrics = content_of(run.path / "metrics.json", check_results, run.command_for("evaluate"))
    studies = {
        path.stem: content_of(
            path, partial(check_study, path.stem), run.command_for("study", path.stem)
        )
        for path in study_files(run)
    }
    existing = [name for name in PICTURE_FILES if (run.path / name).is_file()]
    pictures = {name: (run.path / name).read_bytes() for name in existing}
    for study in filter(None, studies.values()):
        for picture in [row["picture"] for row in study["rows"] if "picture" in row]:
            pictures[f"study-{picture}"] = picture_of(run.path / "study", picture)
    of_run: dict[str, Any] = {name: studies.pop(name, None) for name in SHEETS}
    samplers = of_run["samplers"]
    trainings = {name: study for name, study in studies.items() if study}
    source = Source(
        run,
        about,
        tuple(run.records()),
        metrics,
        **of_run,
        trainings=trainings,
        pictures=pictures,
    )
    if samplers and source.is_current(samplers["step"]):
        for name in ("denoising.png", "collapse.png"):
            pictures[name] = picture_of(run.path / "study", name)
        if about.conditioning.unconditional:  # else the study shows none
            pictures["denoised.png"] = picture_of(run.path / "study", "denoised.png")
    return with_samples(source)


def study_files(run: Run) -> list[Path]:
    """The files of a run's studies. Those of STUDY_NAMES come first, in that order."""
    known = (*SHEETS, *STUDY_NAMES)
    found = {path.stem: path for path in (run.path / "study").glob("*.json")}
    others = sorted(name for name in found.keys() - known if re.fullmatch(r"[\w-]+", name))
    return [found[name] for name in (*known, *others) if name in found]


def with_samples(source: Source) -> Source:
    """The source with its samples.png, if that file shows the usual samples of the current weights.

    Else the last snapshot takes its place. Without snapshots there is no samples.png."""
    classes = len(source.about.conditioning.classes)
    pictures = dict(source.pictures)
    snapshots = [(record.step, source.run.path / record.file) for record in source.of(Snapshot)]
    latest = max((snapshot for snapshot in snapshots if snapshot[1].is_file()), default=None)
    note = note_of(pictures.pop("samples.png", b""))
    step = note.get("step")
    current = isinstance(step, int) and source.is_current(step) and step >= (latest or (0,))[0]
    if current and note.get("usual") is True:
        pictures["samples.png"] = source.pictures["samples.png"]
        in_rows = note.get("rows") == classes > 1
        return replace(source, pictures=pictures, class_lies_in="row" if in_rows else None)
    if latest:
        pictures["samples.png"] = latest[1].read_bytes()
    in_columns = classes > 1 and columns_for(source.config.snapshot_images, classes) % classes == 0
    return replace(source, pictures=pictures, class_lies_in="column" if in_columns else None)


def picture_of(folder: Path, name: object) -> bytes:
    """A picture that a study names.

    Raises UserError where the file does not exist, or where its name leads out of the folder."""
    path = folder / Path(str(name)).name
    if path.name != name or not path.is_file():
        raise UserError(
            f"{folder} has no picture {name}; remove the folder, and make the study anew"
        )
    return path.read_bytes()


def content_of(
    path: Path, check: Callable[[Any], dict[str, Any]], command: str
) -> dict[str, Any] | None:
    """The content of one of our JSON files, or None where the file does not exist.

    check: returns the content, and raises ValueError where it does not fit the file's format.
    Raises UserError where it is damaged, with the command that makes it again."""
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > LARGEST_RESULTS:
            raise ValueError(f"it is larger than {LARGEST_RESULTS:,} bytes")
        return check(json.loads(path.read_bytes()))
    except (ValueError, TypeError, OSError, RecursionError) as error:
        folder = path.with_suffix("")  # of a study's trainings
        what = f"it and {folder}" if folder.is_dir() else "it"
        raise UserError(
            f"{path} can't be read ({reason(error)}); remove {what}, and make it anew with: "
            f"{command}"
        ) from error


def reason(error: Exception) -> str:
    """What is wrong with a file, in a line."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"]
