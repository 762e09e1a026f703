"""The run folder: everything that training leaves, and every file format.

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
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import Field, NonNegativeInt, TypeAdapter, ValidationError

from undiffuse import __version__, files, nets
from undiffuse.config import Config, reasons, validated
from undiffuse.denoiser import Denoiser
from undiffuse.errors import UserError
from undiffuse.files import cannot_write, write_atomic

if TYPE_CHECKING:
    from torch import Tensor, nn

FORMAT = 1
LARGEST_CONFIG = 2**20  # bytes


Side: TypeAlias = Annotated[int, Field(ge=1, le=4096)]


@dataclass(frozen=True)
class DataFacts:
    """What a run must know of its data: its name, an image's shape, the class names, how many images it trains on
    and holds out, and the SHA-256 of them, so that another data set in the same place is noticed.

    groups: how many training images there are in each group, where there are some."""

    name: str
    shape: tuple[Side, Side, Side]
    classes: tuple[str, ...]
    training: NonNegativeInt
    validation: NonNegativeInt
    sha256: str
    groups: tuple[NonNegativeInt, ...] = ()

    def same_images(self, other: DataFacts) -> bool:
        """Whether these are facts of the same images. Groups do not count: on another machine rounding may move an image into another."""
        return replace(self, groups=()) == replace(other, groups=())


@dataclass(frozen=True)
class About:
    """The content of config.json. reasons: for each field of config. replay_of: the run that this one repeats."""

    config: Config
    facts: DataFacts
    reasons: dict[str, str]
    version: str
    replay_of: str | None


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
                reasons=dict(content["reasons"]),
                version=str(content["version"]),
                replay_of=content["replay_of"],
            )
        except KeyError as error:
            raise UserError(f"{path} is damaged: it has no {error}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise UserError(f"{path} is damaged: its data.{where} can't be so ({first['msg']})") from error
        except (ValueError, TypeError, OSError, RecursionError) as error:
            raise UserError(f"{path} can't be read: {error}") from error

    # --- log.jsonl ---

    def log(self) -> Iterator[dict[str, Any]]:
        """The log's events in order. A last line that a crash cut off is passed over."""
        if not self.log_path.is_file():
            return
        for number, line in enumerate(self.log_path.read_bytes().splitlines(keepends=True), start=1):
            if not line.endswith(b"\n"):
                return
            try:
                event = json.loads(line)
                if not {"event", "step", "time"} <= event.keys():
                    raise ValueError("it lacks an event, a step or a time")
            except (ValueError, AttributeError, RecursionError) as error:
                raise UserError(f"{self.log_path} line {number} is damaged: {error}") from error
            yield event

    def append(self, event: dict[str, Any]) -> None:
        """Add one event to the log: it has at least `event`, its kind, `step` and `time`, seconds of the run so far."""
        try:
            with self.log_path.open("ab") as file:
                file.write(json.dumps(event).encode() + b"\n")
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
        write_atomic(self.log_path, b"".join(json.dumps(e).encode() + b"\n" for e in kept))

    def finished(self) -> dict[str, Any] | None:
        """The event that ended the run, None where it is unfinished."""
        ends = self.events("finished")
        return ends[-1] if ends else None

    def write(self, name: str, content: bytes) -> None:
        """Write a picture or another whole file into the folder."""
        write_atomic(self.path / name, content)

    # --- weights ---

    def load_tensors(self, path: Path, prefix: str = "") -> tuple[dict[str, Tensor], int]:
        """(the tensors whose names begin with `prefix`, without it; the step that they are of)."""
        tensors, metadata = files.load_tensors(path, prefix)
        try:
            return tensors, int(metadata["step"])
        except (KeyError, ValueError) as error:
            raise UserError(f"{path} is damaged or no checkpoint: it has no step") from error

    def save_tensors(self, path: Path, tensors: dict[str, Tensor], step: int) -> None:
        files.save_tensors(path, tensors, {"step": str(step)})

    def denoiser(self) -> tuple[Denoiser, int]:
        """(the run's denoiser with averaged weights, in evaluation mode; the step that they are of)."""
        if self.model_path.is_file():
            path, prefix = self.model_path, ""
        elif self.checkpoint_path.is_file():
            path, prefix = self.checkpoint_path, "ema/"
        else:
            self.about()
            raise UserError(f"{self.path} has no weights yet; train it on with: undiffuse train --out {self.path}")
        about = self.about()
        network = build_network(about.config, about.facts)
        weights, step = self.load_tensors(path, prefix)
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            raise UserError(f"{path} does not fit the network in config.json") from error
        return make_denoiser(network.eval(), about.config, about.facts), step


def build_network(config: Config, facts: DataFacts) -> nn.Module:
    """The configured network for images like the data's, with the seed's random weights."""
    import torch

    torch.manual_seed(config.seed)
    network: nn.Module = nets.NETWORKS[config.net](
        shape=facts.shape,
        classes=len(facts.classes if config.conditional else facts.groups),
        channels=config.channels,
        blocks=config.blocks,
        attention=config.attention,
        heads=config.heads,
        dropout=config.dropout,
    )
    only = getattr(network, "predicts", None)
    if only is not None and config.predict != only:
        raise UserError(f"network '{config.net}' goes with --predict {only} only, not with '{config.predict}'")
    return network


def make_denoiser(network: nn.Module, config: Config, facts: DataFacts) -> Denoiser:
    known = {"classes": facts.classes} if config.conditional else {"groups": facts.groups}
    return Denoiser(network, config.schedule, config.predict, facts.shape, **known)
