"""The run folder: everything that training leaves.

    config.json              the configuration with its reasons, facts of the data, the version
    log.jsonl                one record a line: sessions, decisions, steps, snapshots, the end
    data.png                 a grid of training images
    samples/step_*.png       grids of the same noise, sampled during training
    checkpoint.safetensors   what is needed to go on: weights, average, optimiser's moments
    model.safetensors        the model of a finished run: `Model.load` reads it anywhere
    loss.png, timeline.png   drawn at the end

All files are data, none is code. Whole files are written beside their place and then renamed, so
that what has a name is complete.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from pydantic import TypeAdapter, ValidationError

from undiffuse import __version__
from undiffuse.base.errors import UserError
from undiffuse.base.files import cannot_write, write_atomic
from undiffuse.base.tensors import load_tensors, not_finite, save_tensors
from undiffuse.diffusion.conditioning import Conditioning
from undiffuse.model import Description, Model
from undiffuse.runs.log import follow_log, log_line, read_log
from undiffuse.training.config import Config, validated
from undiffuse.training.experiment import DataFacts
from undiffuse.training.presets import as_command, reasons
from undiffuse.training.records import (
    Finished,
    Quality,
    Record,
    SessionStarted,
    Snapshot,
    Validation,
)

if TYPE_CHECKING:
    from torch import Tensor

Where: TypeAlias = str | os.PathLike[str]
R = TypeVar("R", bound=Record)

FORMAT, FORMATS_OF_0_1 = 3, (1, 2)
LARGEST_CONFIG = 2**20  # bytes


@dataclass(frozen=True)
class About:
    """The content of config.json.

    reasons: for each field of config. replay_of: the run that this one repeats."""

    config: Config
    facts: DataFacts
    conditioning: Conditioning
    reasons: dict[str, str]
    version: str
    replay_of: str | None

    def __post_init__(self) -> None:
        """ValueError where the facts can't be those of the configuration."""
        clusters = self.conditioning.clusters
        if self.config.conditional and not self.facts.classes:
            raise ValueError("a conditional run has classes, and this has none")
        if self.conditioning.classes != (self.facts.classes if self.config.conditional else ()):
            raise ValueError("it is conditioned on other classes than the data have")
        possible = not clusters or 0 < sum(clusters) == self.facts.training
        if len(clusters) > max(self.config.clusters, len(self.facts.classes)) or not possible:
            raise ValueError(f"its clusters can't be those of {self.facts.training:,} images")

    def description(self, step: int) -> Description:
        """The model of the run after `step` steps, without its weights."""
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
    """A run folder, by its path. Nothing is read or written before it is asked for."""

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
        return (self.path / "config.json").is_file()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Within: no other process trains in the folder. Raises UserError where one does.

        The lock goes with its process, however that ends. Windows has no such locks."""
        if sys.platform == "win32":
            yield
            return
        import fcntl

        folder = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{self.path} is being trained by another process; wait for it to end, or "
                    "stop it"
                ) from None
            except OSError as error:
                raise UserError(
                    f"{self.path} can't be locked ({error.strerror}); take a folder on another disk"
                ) from error
            yield
        finally:
            os.close(folder)

    # --- config.json ---

    def create(
        self, config: Config, facts: DataFacts, conditioning: Conditioning, replay_of: str | None
    ) -> None:
        """Begin the folder. UserError where it holds other things than a beginning cut off."""
        if self.path.exists() and (
            not self.path.is_dir()
            or any(file.name != "config.json.tmp" for file in self.path.iterdir())
        ):
            raise UserError(f"{self.path} exists and is no run folder; choose another with --out")
        content = {
            "format": FORMAT,
            "version": __version__,
            "replay_of": replay_of,
            "data": asdict(facts),
            "conditioning": asdict(conditioning),
            "config": config.model_dump(mode="json"),
            "reasons": reasons(config),
        }
        write_atomic(self.path / "config.json", json.dumps(content, indent=2).encode())

    def about(self) -> About:
        """What config.json says. Raises UserError, which names the file, where that can't be."""
        path = self.path / "config.json"
        if not path.is_file():
            raise UserError(
                f"{self.path} is no run folder: it has no config.json; undiffuse train makes one"
            )
        try:
            if path.stat().st_size > LARGEST_CONFIG:
                raise ValueError(f"it is larger than the {LARGEST_CONFIG:,} bytes that are read")
            content = json.loads(path.read_bytes())
            if content["format"] in FORMATS_OF_0_1:
                raise UserError(
                    f"{self.path} is a run folder of version 0.1, which this version cannot read; "
                    "train a new run, or use undiffuse 0.1"
                )
            if content["format"] != FORMAT:
                raise UserError(
                    f"it has format {content['format']}, and this version reads format {FORMAT}"
                )
            return About(
                config=validated(content["config"]),
                facts=TypeAdapter(DataFacts).validate_python(content["data"]),
                conditioning=TypeAdapter(Conditioning).validate_python(content["conditioning"]),
                reasons=of_fields(content["reasons"]),
                version=str(content["version"]),
                replay_of=TypeAdapter(str | None).validate_python(content["replay_of"]),
            )
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

    def command(self) -> str:
        """The command that goes on with the run."""
        about = self.about()
        if about.replay_of:
            words = ["undiffuse", "train", "--replay", about.replay_of, "--out", str(self.path)]
            return shlex.join(words)
        return as_command(about.config, self.path)

    def command_for(self, *verb: str, after: Sequence[str] = ()) -> str:
        """Another command on the run, such as `undiffuse evaluate RUN`, with flags `after`."""
        return shlex.join(["undiffuse", *verb, str(self.path), *after])

    # --- log.jsonl ---

    def records(self) -> Iterator[Record]:
        """The records of the run in order. A last line that a crash cut off is passed over."""
        return read_log(self.log_path)

    def follow(self, position: int = 0) -> Iterator[tuple[Record, int]]:
        """What is new since a position in the log, as (record, position after it); 0: all.

        One record is in memory at a time. Call it again with the last position for more."""
        return follow_log(self.log_path, position)

    def of(self, kind: type[R]) -> list[R]:
        """The records of a kind."""
        return [record for record in self.records() if isinstance(record, kind)]

    def append(self, record: Record) -> None:
        """Add a record to the log."""
        try:
            with self.log_path.open("ab") as file:
                file.write(log_line(record))
        except OSError as error:
            raise cannot_write(self.log_path, error) from error

    def sync_log(self) -> None:
        """Have the log on the disk, so that it outlives a power cut."""
        try:
            with self.log_path.open("ab") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(self.log_path, error) from error

    def rewind_log(self, step: int) -> None:
        """Drop what was recorded after `step` steps, or of a snapshot that was cut off.

        The resumed run records it again."""
        done = {snapshot.step for snapshot in self.of(Snapshot)}

        def kept(record: Record) -> bool:
            if isinstance(record, SessionStarted) or record.step < step:
                return True
            of_snapshot = isinstance(record, Validation | Quality)
            return record.step == step and (not of_snapshot or step in done)

        write_atomic(self.log_path, b"".join(map(log_line, filter(kept, self.records()))))

    def finished(self) -> Finished | None:
        """The record that ended the run, None where it is unfinished."""
        ends = self.of(Finished)
        return ends[-1] if ends else None

    def write(self, name: str, content: bytes) -> None:
        """Write a picture or another whole file into the folder."""
        write_atomic(self.path / name, content)

    # --- weights ---

    def load_tensors(self, path: Path, prefix: str = "") -> tuple[dict[str, Tensor], int]:
        """(the tensors whose names begin with `prefix`, without it; their step). All are finite."""
        tensors, metadata = load_tensors(path, prefix)
        if strange := not_finite(tensors):
            raise UserError(f"{path} is damaged or no checkpoint: its {strange} is not finite")
        step = metadata.get("step", "")
        if not (step.isascii() and step.isdecimal() and len(step) <= 15):
            raise UserError(f"{path} is damaged or no checkpoint: it has no step")
        return tensors, int(step)

    def save_checkpoint(self, tensors: dict[str, Tensor], step: int) -> None:
        """Write the tensors of a state, all of which must be finite."""
        refuse_not_finite(self.checkpoint_path, tensors)
        save_tensors(self.checkpoint_path, tensors, {"step": str(step)})

    def save_model(self, weights: dict[str, Tensor], step: int) -> None:
        """Write model.safetensors; the weights must be finite."""
        refuse_not_finite(self.model_path, weights)
        description = self.about().description(step)
        network = description.build(device="meta")
        network.load_state_dict(weights, assign=True)
        Model(description, network).save(self.model_path)

    def model(self) -> Model:
        """The run's model with averaged weights, of the end of the run or the last checkpoint."""
        if self.model_path.is_file():
            path, prefix = self.model_path, ""
        elif self.checkpoint_path.is_file():
            path, prefix = self.checkpoint_path, "ema/"
        else:
            raise UserError(f"{self.path} has no weights yet; train it on with: {self.command()}")
        about = self.about()
        weights, step = self.load_tensors(path, prefix)
        return Model.of_tensors(about.description(step), weights, path)


def of_fields(found: object) -> dict[str, str]:
    """The reasons for the fields of a configuration, checked to be that."""
    given = TypeAdapter(dict[str, str]).validate_python(found)
    if strange := given.keys() - Config.model_fields.keys():
        raise ValueError(f"it gives a reason for {min(strange)}, which is no hyperparameter")
    return given


def refuse_not_finite(path: Path, tensors: dict[str, Tensor]) -> None:
    """Raises UserError for tensors that are not all finite."""
    if strange := not_finite(tensors):
        raise UserError(
            f"{path} is not written, since {strange} is not finite; the same command goes on from "
            "the last checkpoint"
        )
