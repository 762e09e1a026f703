"""Whole files: written so that what has a name is complete; tensors as data, never as code; the cache."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from undiffuse.base.errors import UserError
from undiffuse.base.files import write_atomic

if TYPE_CHECKING:
    from torch import Tensor

METADATA = b'{"__metadata__":{"format":"pt"}'


UNSEALED = b'"sha256":"' + b"0" * 64 + b'"'


SEAL = re.compile(rb'"sha256":"([0-9a-f]{64})"')


LARGEST, LARGEST_HEADER = 2**30, 2**22  # bytes


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors by name, safetensors, with a seal in the metadata: the SHA-256 of the whole file, in which the seal itself is zeros."""
    from safetensors.torch import save

    content = save({k: v.contiguous() for k, v in tensors.items()}, metadata={"format": "pt"})
    end = 8 + int.from_bytes(content[:8], "little")
    # Put there by hand: the library writes several metadata in a new order each time.
    own = json.dumps(metadata or {"format": "pt"}, ensure_ascii=False, separators=(",", ":"))
    ours = b'{"__metadata__":{' + UNSEALED + b"," + own[1:].encode()
    header = content[8:end].rstrip().replace(METADATA, ours, 1)
    header += b" " * (-len(header) % 8)
    content = len(header).to_bytes(8, "little") + header + content[end:]
    seal = f'"sha256":"{hashlib.sha256(content).hexdigest()}"'.encode()
    write_atomic(path, content.replace(UNSEALED, seal, 1))


def load_tensors(
    path: Path, prefix: str = "", *, sealed: bool = True
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(the tensors whose names begin with `prefix`, without it; the file's metadata). UserError for a damaged file.

    sealed: whether its seal is checked; not for files that are pinned by another hash."""
    from safetensors import SafetensorError, safe_open

    try:
        if sealed:
            check_seal(path)
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - no mapping
            return {name.removeprefix(prefix): file.get_tensor(name) for name in names}, dict(
                file.metadata() or {}
            )
    except (SafetensorError, TypeError, ValueError, OSError) as error:
        raise UserError(f"{path} is damaged or no checkpoint: {error}") from error


def check_seal(path: Path) -> None:
    """ValueError where a file's seal is not there, or broken by any change of any byte. Reads a piece at a time."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(start := file.read(8), "little")
        if size > LARGEST or length > min(LARGEST_HEADER, size):
            raise ValueError(f"it has {size:,} bytes, and a header of {length:,}")
        header = file.read(length)
        seal = SEAL.search(header)
        if seal is None:
            raise ValueError("it has no checksum")
        digest = hashlib.sha256(start + header[: seal.start()] + UNSEALED + header[seal.end() :])
        while piece := file.read(2**20):
            digest.update(piece)
    if digest.hexdigest().encode() != seal[1]:
        raise ValueError("its content does not match its checksum")
