"""The run folder: everything that training leaves.

    config.json              the configuration with its reasons, the data's facts, the version
    log.jsonl                one event a line: sessions, the clock's decisions, steps, validations, snapshots, the end
    data.png                 a grid of training images
    samples/step_*.png       grids of the same noise, drawn during training
    checkpoint.safetensors   all that is needed to go on: weights, their average, the optimiser's moments
    model.safetensors        the averaged weights of a finished run
    loss.png, timeline.png   drawn at the end

All files are data, none is code. Whole files are written beside their place and then renamed, so that what has a
name is complete.
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
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from undiffuse import __version__
from undiffuse.base.errors import UserError
from undiffuse.base.files import cannot_write, write_atomic
from undiffuse.base.tensors import load_tensors, save_tensors
from undiffuse.diffusion.denoiser import Denoiser, Told, told
from undiffuse.runs.log import log_line, read_log
from undiffuse.training.config import Config, validated
from undiffuse.training.experiment import DataFacts, build_network, make_denoiser, shapes
from undiffuse.training.presets import as_command, reasons

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 2


LARGEST_CONFIG = 2**20  # bytes


@dataclass(frozen=True)
class About:
    """The content of config.json. reasons: for each field of config. replay_of: the run that this one repeats."""

    config: Config
    facts: DataFacts
    reasons: dict[str, str]
    version: str
    replay_of: str | None

    def __post_init__(self) -> None:
        """ValueError where the facts can't be those of the configuration."""
        facts = self.facts
        if self.config.conditional and not facts.classes:
            raise ValueError("a conditional run has classes, and this has none")
        if len(facts.groups) > self.config.groups or (facts.groups and not 0 < sum(facts.groups) == facts.training):
            raise ValueError(f"its groups can't be those of {facts.training:,} images")
        parts = set(range(len(facts.classes))) if facts.groups and self.config.conditional else set[int]()
        if set(facts.class_of) != parts or (parts and len(facts.class_of) != len(facts.groups)):
            raise ValueError("its groups are not parts of its classes")

    @property
    def told(self) -> Told | None:
        """What the network is told of an image."""
        return told(self.facts.classes if self.config.conditional else (), self.facts.groups)

    @property
    def guesses_unlabelled(self) -> bool:
        """Whether the network learns to guess without a label: it is told none, or not always."""
        return not self.told or self.config.label_dropout > 0


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
        """Within: no other process trains in the folder. Raises UserError where one does. The lock goes with its process, however that
        ends; Windows has no such locks."""
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
                    f"{self.path} is being trained by another process; wait for it to end, or stop it"
                ) from None
            except OSError as error:
                raise UserError(
                    f"{self.path} can't be locked ({error.strerror}); take a folder on another disk"
                ) from error
            yield
        finally:
            os.close(folder)

    # --- config.json ---

    def create(self, config: Config, facts: DataFacts, replay_of: str | None) -> None:
        """Begin the folder. Raises UserError where it holds other things than a beginning that was cut off."""
        if self.path.exists() and (
            not self.path.is_dir() or any(file.name != "config.json.tmp" for file in self.path.iterdir())
        ):
            raise UserError(f"{self.path} exists and is no run folder; choose another with --out")
        content = {
            "format": FORMAT,
            "version": __version__,
            "replay_of": replay_of,
            "data": asdict(facts),
            "config": config.model_dump(mode="json"),
            "reasons": reasons(config),
        }
        write_atomic(self.path / "config.json", json.dumps(content, indent=2).encode())

    def command(self) -> str:
        """The command that goes on with the run."""
        about = self.about()
        if about.replay_of:
            return shlex.join(["undiffuse", "train", "--replay", about.replay_of, "--out", str(self.path)])
        return as_command(about.config, self.path)

    def command_for(self, *verb: str, after: Sequence[str] = ()) -> str:
        """Another command on the run, such as `undiffuse study samplers RUN`, with the flags `after`."""
        return shlex.join(["undiffuse", *verb, str(self.path), *after])

    def about(self) -> About:
        """What config.json says. Raises UserError, which names the file, where there is none or it cannot be so."""
        path = self.path / "config.json"
        if not path.is_file():
            raise UserError(f"{self.path} is no run folder: it has no config.json; undiffuse train makes one")
        try:
            if path.stat().st_size > LARGEST_CONFIG:
                raise ValueError(f"it is larger than the {LARGEST_CONFIG:,} bytes that are read")
            content = json.loads(path.read_bytes())
            if content["format"] != FORMAT:
                raise UserError(f"it has format {content['format']}, and this version reads format {FORMAT}")
            return About(
                config=validated(content["config"]),
                facts=TypeAdapter(DataFacts).validate_python(content["data"]),
                reasons=of_fields(content["reasons"]),
                version=str(content["version"]),
                replay_of=TypeAdapter(str | None).validate_python(content["replay_of"]),
            )
        except KeyError as error:
            raise UserError(f"{path} is damaged: it has no {error}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise UserError(f"{path} is damaged: {where or 'a value'} can't be so ({first['msg']})") from error
        except (ValueError, TypeError, OSError, RecursionError) as error:
            raise UserError(f"{path} can't be read: {error}") from error

    # --- log.jsonl ---

    def log(self) -> Iterator[dict[str, Any]]:
        """The log's events in order. A last line that a crash cut off is passed over."""
        return read_log(self.log_path)

    def append(self, event: dict[str, Any]) -> None:
        """Add one event to the log: it has at least `event`, its kind, `step` and `time`, seconds of the run so far."""
        try:
            with self.log_path.open("ab") as file:
                file.write(log_line(event))
        except OSError as error:
            raise cannot_write(self.log_path, error) from error

    def sync_log(self) -> None:
        """Have the log on the disk, so that it outlives a power cut."""
        try:
            with self.log_path.open("ab") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(self.log_path, error) from error

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.log() if event["event"] == kind]

    def rewind_log(self, step: int) -> None:
        """Drop what was logged after `step` steps, or of a snapshot that was cut off: the resumed run logs it again."""
        looked = {event["step"] for event in self.events("snapshot")}
        kept = [
            event
            for event in self.log()
            if event["event"] == "session"
            or event["step"] < step
            or (event["step"] == step and (event["event"] not in ("validation", "score") or step in looked))
        ]
        write_atomic(self.log_path, b"".join(map(log_line, kept)))

    def finished(self) -> dict[str, Any] | None:
        """The event that ended the run, None where it is unfinished."""
        ends = self.events("finished")
        return ends[-1] if ends else None

    def write(self, name: str, content: bytes) -> None:
        """Write a picture or another whole file into the folder."""
        write_atomic(self.path / name, content)

    # --- weights ---

    def load_tensors(self, path: Path, prefix: str = "") -> tuple[dict[str, Tensor], int]:
        """(the tensors whose names begin with `prefix`, without it; the step that they are of). They are finite."""
        tensors, metadata = load_tensors(path, prefix)
        if strange := not_finite(tensors):
            raise UserError(f"{path} is damaged or no checkpoint: its {strange} is not finite")
        step = metadata.get("step", "")
        if not (step.isascii() and step.isdecimal() and len(step) <= 15):
            raise UserError(f"{path} is damaged or no checkpoint: it has no step")
        return tensors, int(step)

    def save_tensors(self, path: Path, tensors: dict[str, Tensor], step: int) -> None:
        """Write them, all of which must be finite."""
        if strange := not_finite(tensors):
            raise UserError(
                f"{path} is not written, since {strange} is not finite; the same command goes on from the last checkpoint"
            )
        save_tensors(path, tensors, {"step": str(step)})

    def denoiser(self) -> tuple[Denoiser, int]:
        """(the run's denoiser with averaged weights, in evaluation mode; the step that they are of)."""
        if self.model_path.is_file():
            path, prefix = self.model_path, ""
        elif self.checkpoint_path.is_file():
            path, prefix = self.checkpoint_path, "ema/"
        else:
            raise UserError(f"{self.path} has no weights yet; train it on with: {self.command()}")
        about = self.about()
        weights, step = self.load_tensors(path, prefix)
        # Compared before there is memory for them: config.json may say anything.
        promised = build_network(about.config, about.facts, device="meta").state_dict()
        if shapes(weights) != shapes(promised):
            raise UserError(f"{path} does not fit the network in config.json")
        network = build_network(about.config, about.facts)
        network.load_state_dict(weights)
        return make_denoiser(network.eval(), about.config, about.facts), step


def of_fields(reasons: object) -> dict[str, str]:
    """The reasons for the fields of a configuration, checked to be that."""
    found = TypeAdapter(dict[str, str]).validate_python(reasons)
    if strange := found.keys() - Config.model_fields.keys():
        raise ValueError(f"it gives a reason for {min(strange)}, which is no hyperparameter")
    return found


def not_finite(tensors: dict[str, Tensor]) -> str | None:
    """The name of a tensor that is not finite, None if all are."""
    return next((name for name, value in tensors.items() if not value.isfinite().all()), None)
