"""Files of tensors: the checksum finds every changed byte. A broken file gets a sentence, soon."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from undiffuse.base.errors import UserError
from undiffuse.base.files import is_clutter, remove_left_over, write_atomic
from undiffuse.base.tensors import LARGEST, load_tensors, save_tensors
from undiffuse.nets import build_network
from undiffuse.training.presets import make_config
from undiffuse.training.state import stepped_tensors

TENSORS = {
    "a/weight": torch.arange(6.0).reshape(2, 3),
    "a/step": torch.tensor(7),
    "b": torch.ones(5, dtype=torch.bfloat16),
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_tensors(tmp_path / "x.safetensors", TENSORS, {"step": "12"})
    return tmp_path / "x.safetensors"


def test_tensors_come_back_and_others_can_read_them(saved: Path) -> None:
    tensors, metadata = load_tensors(saved)
    assert metadata["step"] == "12"
    for found in (tensors, load_file(saved)):
        assert found.keys() == TENSORS.keys()
        assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)
    assert load_tensors(saved, "a/")[0].keys() == {"weight", "step"}


def test_the_same_tensors_make_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    for _ in range(20):
        save_tensors(tmp_path / "y", TENSORS, {"step": "12"})
        assert (tmp_path / "y").read_bytes() == saved.read_bytes()


def test_every_changed_byte_is_found(saved: Path) -> None:
    """One bit of each byte is flipped, then all eight. The file is also cut off at each byte."""
    content = saved.read_bytes()
    for place in range(len(content)):
        for mask in (1 << place % 8, 255):
            changed = bytearray(content)
            changed[place] ^= mask
            saved.write_bytes(changed)
            with pytest.raises(UserError, match=r"x\.safetensors is damaged"):
                load_tensors(saved)
        saved.write_bytes(content[:place])
        with pytest.raises(UserError, match=r"x\.safetensors is damaged"):
            load_tensors(saved)
    saved.write_bytes(content + b"\0")
    with pytest.raises(UserError, match="checksum"):
        load_tensors(saved)


@pytest.mark.parametrize(
    ("channels", "count"),
    [((8, 16), 100), pytest.param((64, 128), 10_000, marks=pytest.mark.slow)],
)
def test_changed_bytes_of_a_runs_checkpoint_are_found(
    tmp_path: Path, channels: tuple[int, int], count: int
) -> None:
    """At random places. The slow form has the default network."""
    config = make_config(conditional=True, channels=channels)
    network = build_network(config.net, (1, 28, 28), 10)
    path, g = tmp_path / "x.safetensors", np.random.default_rng(0)
    save_tensors(path, stepped_tensors(config, network), {"step": "1"})
    with path.open("r+b", buffering=0) as file:
        size = path.stat().st_size
        places, bits = g.integers(size, size=count).tolist(), g.integers(8, size=count).tolist()
        for place, bit in zip(places, bits, strict=True):
            file.seek(place)
            kept = file.read(1)
            file.seek(place)
            file.write(bytes([kept[0] ^ (1 << bit)]))
            with pytest.raises(UserError, match="damaged"):
                load_tensors(path)
            file.seek(place)
            file.write(kept)
    load_tensors(path)


def header_only(content: object, extra: bytes = b"") -> bytes:
    header = json.dumps(content).encode()
    return len(header).to_bytes(8, "little") + header + extra


BROKEN_SEAL = {"__metadata__": {"sha256": "0" * 64}}
PROMISE = {"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
NO_TENSORS = {
    "nothing": b"",
    "zeros": bytes(1000),
    "a header without end": b"\xff" * 8,
    "a header of a terabyte": (2**40).to_bytes(8, "little") + b"{}",
    "an empty header": header_only({}),
    "no header": header_only([]),
    "no seal": header_only({"__metadata__": {"step": "12"}}),
    "a broken seal": header_only(BROKEN_SEAL),
    "a promise of terabytes": header_only(PROMISE, b"abcd"),
    "a promise under a seal": header_only({**BROKEN_SEAL, **PROMISE}),
    "a pickle": b"\x80\x04\x95" + b"pickled" * 10,
    "a zip": b"PK\x03\x04" + b"zipped" * 10,
}


@pytest.mark.parametrize("case", NO_TENSORS)
def test_what_is_no_file_of_ours_gets_a_sentence(tmp_path: Path, case: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(NO_TENSORS[case])
    with pytest.raises(UserError, match=r"x\.safetensors is damaged or no checkpoint"):
        load_tensors(path)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(UserError, match="bytes, and a header of"):
        load_tensors(path)


# Faults within a write

STEPS = ["open", "write", "half written", "flush", "fsync", "rename", "open folder", "fsync folder"]
"""The steps of `write_atomic`, in their order."""


def plant(monkeypatch: pytest.MonkeyPatch, step: str, fault: Callable[[], None]) -> None:
    """Calls `fault` just before this step of writing a file, or in the middle of it."""
    path_open, replace, fsync, os_open = Path.open, Path.replace, os.fsync, os.open
    synced: list[int] = []

    class Faulty:
        """A file that is being written."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Faulty:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, content: bytes) -> int:
            if step == "half written":
                self.file.write(content[: len(content) // 2])
                self.file.flush()
            if step in ("write", "half written"):
                fault()
            return int(self.file.write(content))

        def flush(self) -> None:
            if step == "flush":
                fault()
            self.file.flush()

    def faulty_open(path: Path, *arguments: Any, **options: Any) -> Any:
        if step == "open":
            fault()
        return Faulty(path_open(path, *arguments, **options))

    def faulty_replace(path: Path, target: Path) -> Path:
        if step == "rename":
            fault()
        return replace(path, target)

    def faulty_fsync(number: int) -> None:
        synced.append(number)
        if step == ["fsync", "fsync folder"][len(synced) - 1]:
            fault()
        fsync(number)

    def faulty_os_open(*arguments: Any, **options: Any) -> int:
        if step == "open folder":
            fault()
        return os_open(*arguments, **options)

    monkeypatch.setattr(Path, "open", faulty_open)
    monkeypatch.setattr(Path, "replace", faulty_replace)
    monkeypatch.setattr(os, "fsync", faulty_fsync)
    monkeypatch.setattr(os, "open", faulty_os_open)


IN_TURN = zip(STEPS, cycle([errno.ENOSPC, errno.EIO, errno.EACCES]), strict=False)
"""Each step with one of the errors, which changes only what the message says."""


@pytest.mark.parametrize(("step", "number"), list(IN_TURN))
def test_a_write_that_fails_leaves_the_old_or_the_new_file(
    monkeypatch: pytest.MonkeyPatch, saved: Path, step: str, number: int
) -> None:
    """Nothing lies beside the file, the error says what happened, and the next write succeeds."""

    def fails() -> None:
        raise OSError(number, os.strerror(number))

    old, other = saved.read_bytes(), {"b": torch.zeros(5)}
    with monkeypatch.context() as patched:
        plant(patched, step, fails)
        said = f"x.safetensors could not be written .{os.strerror(number)}.; make room"
        with pytest.raises(UserError, match=said):
            save_tensors(saved, other, {"step": "13"})
    assert list(saved.parent.iterdir()) == [saved]
    if STEPS.index(step) <= STEPS.index("rename"):
        assert saved.read_bytes() == old
    else:
        assert load_tensors(saved)[1]["step"] == "13"
    save_tensors(saved, other, {"step": "14"})
    assert load_tensors(saved)[1]["step"] == "14"


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.parametrize("step", [*STEPS, "never"])
def test_a_kill_within_a_write_leaves_the_old_or_the_new_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, step: str
) -> None:
    path, old, new = tmp_path / "file", b"old" * 1000, b"new" * 1000
    write_atomic(path, old)
    if not (child := os.fork()):
        plant(monkeypatch, step, lambda: os.kill(os.getpid(), signal.SIGKILL))
        write_atomic(path, new)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == (0 if step == "never" else signal.SIGKILL)
    order = [*STEPS, "never"]
    assert path.read_bytes() == (old if order.index(step) <= order.index("rename") else new)
    write_atomic(path, b"next")
    assert path.read_bytes() == b"next"
    left = [file for file in tmp_path.iterdir() if file != path]  # of the killed process
    assert all(is_clutter(file) for file in left)
    remove_left_over(tmp_path)
    assert {*tmp_path.iterdir()} == {path, *left}  # it might still be written
    for file in left:
        os.utime(file, (0, 0))
    remove_left_over(tmp_path)
    assert [*tmp_path.iterdir()] == [path]
