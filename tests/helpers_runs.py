"""Plain functions on sessions of training and on the folders that these leave."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from undiffuse.base import rng
from undiffuse.runs.folder import Run
from undiffuse.runs.session import train_session
from undiffuse.runs.signals import Interrupted
from undiffuse.training.config import Config
from undiffuse.training.options import SessionOptions, make_options
from undiffuse.training.presets import make_config
from undiffuse.training.records import (
    Decision,
    Finished,
    Record,
    SessionStarted,
    StepTaken,
    Stopped,
)

PLAIN = SessionOptions(precision="fp32", compile="off")
"""The session options of the fixture `tiny`."""

Files = dict[str, tuple[bytes, int]]


def split(**fields: Any) -> tuple[Config, SessionOptions]:
    """(the configuration, the session options) of fields of either, as `api.train` takes them."""
    own = {name: fields.pop(name) for name in SessionOptions.model_fields if name in fields}
    return make_config(**fields), make_options(**own)


def configured(**fields: Any) -> Config:
    """The configuration of these fields; those of the session's options are left out."""
    return split(**fields)[0]


# A session


def session(
    config: Config, path: Path, options: SessionOptions = PLAIN, **more: Any
) -> closing[Iterator[Record]]:
    """The records of a session. Within the context; at its end the session ceases to exist."""
    return closing(train_session(config, path, options, **more))


def go_on(config: Config, path: Path, options: SessionOptions = PLAIN, **more: Any) -> list[Record]:
    """The records of a session to its end; none of a finished run."""
    with session(config, path, options, **more) as records:
        return list(islice(records, 2000))


def finish(config: Config, path: Path, options: SessionOptions = PLAIN, **more: Any) -> None:
    """Train to the end, which must come."""
    *_, last = go_on(config, path, options, **more)
    assert isinstance(last, Finished)


def receive(number: int, config: Config, path: Path, kind: type, at: int, **more: Any) -> None:
    """Train, and receive this signal after a record of this kind and step."""
    with session(config, path, **more) as records:
        for record in islice(records, 2000):
            if record.step == at and isinstance(record, kind):
                signal.raise_signal(number)


def stop(config: Config, path: Path, at: int, **more: Any) -> None:
    """Train, and be stopped after step `at`."""
    with pytest.raises(Interrupted) as caught:
        receive(signal.SIGTERM, config, path, StepTaken, at, **more)
    assert caught.value.signal == signal.SIGTERM


def crash(config: Config, path: Path, kind: type, at: int, **more: Any) -> None:
    """Train, and cease to exist after a record of this kind and step, within a line of the log."""
    with session(config, path, **more) as records:
        for record in records:
            if record.step == at and isinstance(record, kind):
                break
    with Run(path).log_path.open("ab") as file:
        file.write(b'{"event": "step", "st')


def started(
    config: Config, path: Path, options: SessionOptions = PLAIN, **more: Any
) -> SessionStarted:
    """The first record of a session, which ends there."""
    with session(config, path, options, **more) as records:
        first = next(records)
    assert isinstance(first, SessionStarted)
    return first


def spoil_noise(monkeypatch: pytest.MonkeyPatch, due: Callable[[int], bool]) -> None:
    """Training's noise is not a number in each step, counted from 1, where due(step) is true."""
    normal_each = rng.normal_each

    def spoilt(samples: Any, shape: Any, seed: int, purpose: str, step: int) -> torch.Tensor:
        noise = normal_each(samples, shape, seed, purpose, step)
        return noise * math.nan if purpose == "noise" and due(step + 1) else noise

    monkeypatch.setattr(rng, "normal_each", spoilt)


# A folder


def files(folder: Path) -> Files:
    """The files of a folder, with their content and time of change."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in found
    }


def without_time(record: Record) -> Record:
    """The record without what is another each time: the times, and a picture's tensor."""
    own = {"time": 0.0, "seconds": 0.0, "images": None}
    return replace(record, **{name: own[name] for name in own if hasattr(record, name)})


def history(path: Path) -> list[Record]:
    """The records without times and sessions.

    A replay begins with the decisions, so these come last here."""
    kept = [
        without_time(record)
        for record in Run(path).records()
        if not isinstance(record, SessionStarted | Stopped)
    ]
    return sorted(kept, key=lambda record: isinstance(record, Decision))


def assert_same_run(one: Path, other: Path) -> None:
    """The same tensors to the bit, the same log, the same pictures."""
    for name in ("checkpoint.safetensors", "model.safetensors"):
        left, right = load_file(one / name), load_file(other / name)
        assert left.keys() == right.keys()
        assert [key for key in left if not torch.equal(left[key], right[key])] == []
    assert history(one) == history(other)
    pictures = sorted(path.relative_to(one) for path in one.rglob("*.png"))
    assert pictures == sorted(path.relative_to(other) for path in other.rglob("*.png"))
    changed = [
        name for name in pictures if (one / name).read_bytes() != (other / name).read_bytes()
    ]
    assert changed == []
