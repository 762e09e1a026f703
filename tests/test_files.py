"""Files of tensors: the seal finds every changed byte, and broken and malicious ones get a sentence, quickly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from undiffuse.errors import UserError
from undiffuse.files import LARGEST, load_tensors, save_tensors

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
    """Each byte of the file, by a flipped bit, and by the inverse of all eight; and the file cut off at each."""
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


def test_changed_bytes_of_a_large_file_are_found(tmp_path: Path) -> None:
    path, g = tmp_path / "x.safetensors", np.random.default_rng(0)
    save_tensors(path, {"x": torch.randn(300_000)}, {"step": "1"})
    content = path.read_bytes()
    for place in g.integers(len(content), size=100).tolist():
        path.write_bytes(content[:place] + bytes([content[place] ^ (1 << int(g.integers(8)))]) + content[place + 1 :])
        with pytest.raises(UserError, match="damaged"):
            load_tensors(path)


def header_only(content: object, extra: bytes = b"") -> bytes:
    header = json.dumps(content).encode()
    return len(header).to_bytes(8, "little") + header + extra


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        (2**40).to_bytes(8, "little") + b"{}",
        header_only({}),
        header_only([]),
        header_only({"__metadata__": {"sha256": "0" * 64}}),
        header_only({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, b"abcd"),
        b"\x80\x04\x95" + b"pickled" * 10,
        b"PK\x03\x04" + b"zipped" * 10,
    ],
)
def test_what_is_no_file_of_ours_gets_a_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.safetensors is damaged or no checkpoint"):
        load_tensors(path)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(UserError, match="bytes, and a header of"):
        load_tensors(path)
