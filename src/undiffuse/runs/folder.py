"""The run folder: all files that a training writes.

    config.json              the configuration with its reasons, facts of the data, the version
    log.jsonl                one record a line: sessions, decisions, steps, snapshots, the end
    data.png                 a grid of training images
    samples/step_*.png       grids of samples during training, from the same noise each time
    averages/step_*.safetensors  the averaged weights at these steps, in bfloat16
    averages/wide_*.safetensors  the same, averaged over about twice as many steps
    checkpoint.safetensors   the state that a session resumes: weights, average, moments
    model.safetensors        the model of a finished run, which `Model.load` reads without the run
    before-decay.safetensors the state before the learning rate fell, for a longer run
    start.safetensors        of a longer run: the state from which it began
    loss.png, timeline.png   figures, drawn at the end

All files are data and none is code. A file is written beside its place and then renamed, so a file
with its final name is complete. The log is the exception: lines are appended to it.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from pydantic import TypeAdapter, ValidationError

from undiffuse import __version__
from undiffuse.base.errors import UserError
from undiffuse.base.files import cannot_write, sync, write_atomic
from undiffuse.base.tensors import load_tensors, not_finite, save_tensors
from undiffuse.diffusion.conditioning import Conditioning
from undiffuse.model import Description, Model
from undiffuse.runs.lock import NO_LOCK, lock_folder
from undiffuse.runs.log import follow_log, log_line, read_log
from undiffuse.runs.longer import Start
from undiffuse.runs.places import found_data, places_of, refuse_no_run, refuse_occupied
from undiffuse.training.config import BUDGETS, Config, validated
from undiffuse.training.experiment import DataFacts
from undiffuse.training.presets import as_command, reasons
from undiffuse.training.records import (
    Finished,
    Quality,
    Record,
    SessionStarted,
    Snapshot,
    Validation,
    of_kind,
)

if TYPE_CHECKING:
    from torch import Tensor

Where: TypeAlias = str | os.PathLike[str]
R = TypeVar("R", bound=Record)

FORMAT = 4
FORMER_FORMATS = (1, 2)  # of version 0.1
LARGEST_CONFIG = 2**22  # bytes


@dataclass(frozen=True)
class About:
    """The content of config.json.

    facts: what the run knows of its data. reasons: by field of config. version: of undiffuse.
    replay_of: the run that this one repeats, or None. places: where the data lie, see places.py.
    start: where a longer run began, or None. decided: the fields whose values were decided from the
    data, with why."""

    config: Config
    facts: DataFacts
    conditioning: Conditioning
    reasons: dict[str, str]
    version: str
    replay_of: str | None
    places: tuple[str, ...] = ()
    start: Start | None = None
    decided: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ValueError where facts, conditioning and configuration contradict each other."""
        clusters = self.conditioning.clusters
        if self.config.conditional and not self.facts.classes:
            raise ValueError("the run is conditional, and its data have no classes")
        if self.conditioning.classes != (self.facts.classes if self.config.conditional else ()):
            raise ValueError("the run is conditioned on other classes than its data have")
        possible = not clusters or 0 < sum(clusters) == self.facts.training
        if len(clusters) > max(self.config.clusters, len(self.facts.classes)) or not possible:
            raise ValueError(f"the clusters do not fit {self.facts.training:,} training images")

    def description(self, step: int) -> Description:
        """The description of the run's model after `step` steps."""
        config = self.config
        return Description(
            config.net,
            config.schedule,
            config.predict,
            self.facts.shape,
            self.conditioning,
            config.sampling(step, self.conditioning),
            config.chain,
            step,
        )


@dataclass(frozen=True)
class Run:
    """A run folder, by its path. Making this object reads and writes nothing."""

    path: Path

    @property
    def checkpoint_path(self) -> Path:
        return self.path / "checkpoint.safetensors"

    @property
    def model_path(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def log_path(self) -> Path:
        return self.path / "log.jsonl"

    def exists(self) -> bool:
        """Whether the path is a run folder, of any version."""
        return (self.path / "config.json").is_file()

    @contextmanager
    def locked(self) -> Iterator[list[str]]:
        """A context in which no other process can train in the folder. Its value: notes for users.

        Raises UserError where another process trains. The lock ends with its process, also after
        SIGKILL. Where a file system cannot lock, a note says so."""
        try:
            held = lock_folder(self.path)
        except BlockingIOError:
            raise UserError(
                f"{self.path} is being trained by another process; wait for it to end, or stop it"
            ) from None
        try:
            yield [] if held is not None else [NO_LOCK]
        finally:
            if held is not None:
                os.close(held)

    # --- config.json ---

    def create(
        self,
        config: Config,
        facts: DataFacts,
        conditioning: Conditioning,
        replay_of: str | None,
        start: Start | None = None,
        decided: dict[str, str] | None = None,
    ) -> None:
        """Make the folder and write config.json. The arguments are the fields of `About`.

        Raises UserError where the folder already has files, other than its own data, and where
        config.json could not be read again."""
        refuse_occupied(self.path, config.data)
        content = {
            "format": FORMAT,
            "version": __version__,
            "replay_of": replay_of,
            "start": start and asdict(start),
            "places": places_of(config.data, self.path),
            "data": asdict(facts),
            "conditioning": asdict(conditioning),
            "config": config.model_dump(mode="json"),
            "reasons": reasons(config) | (decided or {}),
            "decided": decided or {},
        }
        self.write_about(content)

    def write_about(self, content: dict[str, Any]) -> None:
        """Write config.json. Raises UserError where it could not be read again."""
        path, written = self.path / "config.json", json.dumps(content, indent=2).encode()
        if len(written) > LARGEST_CONFIG:
            raise UserError(
                f"{path} would be larger than the {LARGEST_CONFIG:,} bytes that are read; give "
                "fewer classes, or shorter names"
            )
        try:
            about_of(json.loads(written))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise UserError(f"{path} cannot hold {where}: {first['msg']}") from error
        write_atomic(path, written)

    def note_place(self, data: str) -> None:
        """Write into config.json where the data are now."""
        content = json.loads((self.path / "config.json").read_bytes())
        content["config"]["data"] = data
        content["places"] = places_of(data, self.path)
        self.write_about(content)

    def about(self) -> About:
        """The content of config.json.

        Raises UserError for a missing or damaged file, or for one of another version."""
        path = self.path / "config.json"
        refuse_no_run(self.path)
        try:
            if path.stat().st_size > LARGEST_CONFIG:
                raise ValueError(f"it is larger than the {LARGEST_CONFIG:,} bytes that are read")
            content = json.loads(path.read_bytes())
            found = content["format"]
            if found == FORMAT:
                return about_of(content)
        except KeyError as error:
            raise UserError(f"{path} is damaged: it has no {error}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise UserError(
                f"{path} is damaged: {where or 'a value'} can't be so ({first['msg']})"
            ) from error
        except (ValueError, TypeError, OSError, RecursionError) as error:
            raise UserError(f"{path} can't be read: {error}") from error
        raise UserError(other_version(path, found))

    def data_place(self) -> str:
        """Where the run's data are now. Raises UserError where they cannot be found."""
        about = self.about()
        return found_data(about.config.data, about.places, self.path)

    def command(self) -> str:
        """The command that continues the run."""
        about = self.about()
        if about.replay_of:
            words = ["undiffuse", "train", "--replay", about.replay_of, "--out", str(self.path)]
            return shlex.join(words)
        if about.start:
            budgets = [(name, getattr(about.config, name)) for name in BUDGETS]
            own = [[f"--{name}", f"{value:g}"] for name, value in budgets if value is not None]
            words = ["undiffuse", "train", "--from", about.start.run, *own[0]]
            return shlex.join([*words, "--out", str(self.path)])
        return as_command(about.config, self.path, about.decided)

    def command_for(self, *verb: str, after: Sequence[str] = ()) -> str:
        """Another command on the run, such as `undiffuse study samplers RUN`.

        after: flags."""
        return shlex.join(["undiffuse", *verb, str(self.path), *after])

    # --- log.jsonl ---

    def records(self) -> Iterator[Record]:
        """The records of the run in order. An incomplete last line, after a crash, is left out."""
        return read_log(self.log_path)

    def follow(self, position: int = 0) -> Iterator[tuple[Record, int]]:
        """The records after a position in the log: (record, the position after it).

        position: 0 for all records. Call it again with the last position to get newer records. One
        record is in memory at a time."""
        return follow_log(self.log_path, position)

    def of(self, kind: type[R]) -> list[R]:
        """The records of one kind, in order."""
        return of_kind(kind, self.records())

    def append(self, record: Record) -> None:
        """Add a record to the log."""
        try:
            with self.log_path.open("ab") as file:
                file.write(log_line(record))
        except OSError as error:
            raise cannot_write(self.log_path, error) from error

    def sync_log(self) -> None:
        """Have the system write the log to the disk, so that it survives a power cut."""
        try:
            with self.log_path.open("ab") as file:
                sync(file.fileno())
        except OSError as error:
            raise cannot_write(self.log_path, error) from error

    def rewind_log(self, step: int) -> None:
        """Remove the records after `step` steps, and those of an interrupted snapshot.

        The resumed run makes these records again."""
        done = {snapshot.step for snapshot in self.of(Snapshot)}

        def kept(record: Record) -> bool:
            if isinstance(record, SessionStarted) or record.step < step:
                return True
            of_snapshot = isinstance(record, Validation | Quality)
            return record.step == step and (not of_snapshot or step in done)

        write_atomic(self.log_path, b"".join(map(log_line, filter(kept, self.records()))))

    def finished(self) -> Finished | None:
        """The record that ended the run; None where the run is unfinished."""
        ends = self.of(Finished)
        return ends[-1] if ends else None

    def write(self, name: str, content: bytes) -> None:
        """Write a picture or another whole file into the folder."""
        write_atomic(self.path / name, content)

    # --- weights ---

    def load_tensors(self, path: Path, prefix: str = "") -> tuple[dict[str, Tensor], int]:
        """(the tensors whose names begin with `prefix`, by the rest of the name; their step).

        Raises UserError for a damaged file, or for tensors that are not finite."""
        tensors, metadata = load_tensors(path, prefix)
        if strange := not_finite(tensors):
            raise UserError(f"{path} is damaged or no checkpoint: its {strange} is not finite")
        step = metadata.get("step", "")
        if not (step.isascii() and step.isdecimal() and len(step) <= 15):
            raise UserError(f"{path} is damaged or no checkpoint: it has no step")
        return tensors, int(step)

    def save_checkpoint(self, tensors: dict[str, Tensor], step: int) -> None:
        """Write checkpoint.safetensors. Raises UserError for tensors that are not finite."""
        refuse_not_finite(self.checkpoint_path, tensors)
        save_tensors(self.checkpoint_path, tensors, {"step": str(step)})

    def save_model(self, weights: dict[str, Tensor], step: int) -> None:
        """Write model.safetensors. Raises UserError for weights that are not finite."""
        refuse_not_finite(self.model_path, weights)
        description = self.about().description(step)
        network = description.build(device="meta")
        network.load_state_dict(weights, assign=True)
        Model(description, network).save(self.model_path)

    def model(self) -> Model:
        """The run's model with averaged weights.

        They are those of the end of the run, or else of the last checkpoint. Raises UserError where
        there are none yet."""
        if self.model_path.is_file():
            path, prefix = self.model_path, ""
        elif self.checkpoint_path.is_file():
            path, prefix = self.checkpoint_path, "ema/"
        else:
            raise UserError(f"{self.path} has no weights yet; continue it with: {self.command()}")
        about = self.about()
        weights, step = self.load_tensors(path, prefix)
        return Model.of_tensors(about.description(step), weights, path)


def about_of(content: dict[str, Any]) -> About:
    """The content of a config.json, checked. Raises KeyError, TypeError or ValueError."""
    return About(
        config=validated(content["config"]),
        facts=TypeAdapter(DataFacts).validate_python(content["data"]),
        conditioning=TypeAdapter(Conditioning).validate_python(content["conditioning"]),
        reasons=of_fields(content["reasons"]),
        version=str(content["version"]),
        replay_of=TypeAdapter(str | None).validate_python(content["replay_of"]),
        decided=of_fields(content.get("decided", {})),
        start=TypeAdapter(Start | None).validate_python(content.get("start")),
        places=TypeAdapter(tuple[str, ...]).validate_python(content.get("places", ())),
    )


def other_version(path: Path, found: object) -> str:
    """The error for a config.json of another format: which version wrote it, and what to do."""
    if found in FORMER_FORMATS:
        return (
            f"{path.parent} is a run folder of version 0.1, which this version cannot read; train "
            f"a new run, or use undiffuse 0.1 (config.json has format {found})"
        )
    shown = str(found)[:40] if isinstance(found, int | str) else type(found).__name__
    return (
        f"{path} has format {shown}, and this version reads format {FORMAT}; train a new run, or "
        "use the version of undiffuse that wrote the folder"
    )


def of_fields(found: object) -> dict[str, str]:
    """The reasons by field. Raises ValueError for what is no field of the configuration."""
    given = TypeAdapter(dict[str, str]).validate_python(found)
    if strange := given.keys() - Config.model_fields.keys():
        raise ValueError(f"it gives a reason for {min(strange)}, which is no hyperparameter")
    return given


def refuse_not_finite(path: Path, tensors: dict[str, Tensor]) -> None:
    """Raises UserError where a tensor is not finite. path: the file that is not written."""
    if strange := not_finite(tensors):
        raise UserError(
            f"{path} is not written, because {strange} is not finite; the same command continues "
            "from the last checkpoint"
        )
