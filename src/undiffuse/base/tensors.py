"""Tensors in files: safetensors with a checksum, read as data and never as code."""

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
ZERO_CHECKSUM = b'"sha256":"' + b"0" * 64 + b'"'
CHECKSUM = re.compile(rb'"sha256":"([0-9a-f]{64})"')

LARGEST, LARGEST_HEADER = 2**30, 2**22
"""The most bytes of a file, and of its header, that are read."""


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors by name, and metadata, to a safetensors file with a checksum.

    The checksum is the metadata entry "sha256". It is the SHA-256 of the whole file, computed with
    zeros in place of the checksum itself. Raises UserError where the file cannot be written."""
    from safetensors.torch import save

    content = save({k: v.contiguous() for k, v in tensors.items()}, metadata={"format": "pt"})
    end = 8 + int.from_bytes(content[:8], "little")
    # Put there by hand: the library writes several metadata in a new order each time.
    own = json.dumps(metadata or {"format": "pt"}, ensure_ascii=False, separators=(",", ":"))
    ours = b'{"__metadata__":{' + ZERO_CHECKSUM + b"," + own[1:].encode()
    header = content[8:end].rstrip().replace(METADATA, ours, 1)
    header += b" " * (-len(header) % 8)
    content = len(header).to_bytes(8, "little") + header + content[end:]
    checksum = f'"sha256":"{hashlib.sha256(content).hexdigest()}"'.encode()
    write_atomic(path, content.replace(ZERO_CHECKSUM, checksum, 1))


def load_tensors(
    path: Path, prefix: str = "", *, checksum: bool = True
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors by name, metadata) of a safetensors file.

    prefix: only the tensors whose names begin with it, which is then removed. checksum: whether to
    verify the file's checksum; a file that is pinned by another hash need not have one. Raises
    UserError for a damaged file."""
    from safetensors import SafetensorError, safe_open

    try:
        if checksum:
            verify_checksum(path)
        with safe_open(path, framework="pt") as file:
            # The file is no mapping: it has keys, but cannot be iterated.
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            tensors = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, TypeError, ValueError, OSError) as error:
        raise UserError(f"{path} is damaged or no checkpoint: {error}") from error


def verify_checksum(path: Path) -> None:
    """Raises ValueError unless a file has a checksum that fits its content.

    Any changed byte is found. The file is read 1 MiB at a time."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(start := file.read(8), "little")
        if size > LARGEST or length > min(LARGEST_HEADER, size):
            raise ValueError(f"it has {size:,} bytes, and a header of {length:,}")
        header = file.read(length)
        found = CHECKSUM.search(header)
        if found is None:
            raise ValueError("it has no checksum")
        before, after = header[: found.start()], header[found.end() :]
        digest = hashlib.sha256(start + before + ZERO_CHECKSUM + after)
        while piece := file.read(2**20):
            digest.update(piece)
    if digest.hexdigest().encode() != found[1]:
        raise ValueError("its content does not match its checksum")


def not_finite(tensors: dict[str, Tensor]) -> str | None:
    """The name of a tensor that is not finite, None if all are."""
    return next((name for name, value in tensors.items() if not value.isfinite().all()), None)
