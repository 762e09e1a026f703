"""A coverage-guided fuzzer on everything that reads a file which somebody else may have made.

    python scripts/fuzz.py idx|config|log|checkpoint|archive --runs 100000

Whatever the bytes, a reader returns or raises UserError; anything else is a finding, and ends the fuzzer with its input. The seeds are files
that the package itself wrote, so that the fuzzer begins behind the first check. Seals are made to hold, where the rest is to be reached.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris
import numpy as np

with atheris.instrument_imports(include=["undiffuse"]):
    import torch

    from undiffuse import data, evaluation, files
    from undiffuse.config import make_config
    from undiffuse.errors import UserError
    from undiffuse.run import DataFacts, Run
    from undiffuse.session import decided

PLACE = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))


def idx(content: bytes) -> None:
    path = PLACE / "images-idx3-ubyte"
    path.write_bytes(content)
    data._read_idx(path, 1, 3, 4)


def config(content: bytes) -> None:
    (PLACE / "config.json").write_bytes(content)
    Run(PLACE).about()


def log(content: bytes) -> None:
    run = Run(PLACE)
    run.log_path.write_bytes(content)
    decided(run.events("clock"))


def checkpoint(content: bytes) -> None:
    path = PLACE / "x.safetensors"
    path.write_bytes(content)
    files.load_tensors(path, sealed=False)
    Run(PLACE).load_tensors(path)


def archive(content: bytes) -> None:
    path = PLACE / "images.npz"
    path.write_bytes(content)
    evaluation.read_images(path, DATASET)


DATASET = data.Dataset("tiny", torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4) % 2, ("0", "1"))
TARGETS: dict[str, Callable[[bytes], None]] = {
    "idx": idx, "config": config, "log": log, "checkpoint": checkpoint, "archive": archive,
}  # fmt: skip


def seeds(target: str) -> list[bytes]:
    """Files as they should be."""
    if target == "idx":
        return [struct.pack(">HBB3I", 0, 8, 3, 2, 2, 2) + bytes(8), struct.pack(">HBBI", 0, 8, 1, 3) + bytes(3)]
    if target == "config":
        run = Run(PLACE / "run")
        run.create(make_config(steps=3), DataFacts("tiny", (1, 8, 8), ("0", "1"), 4, 0, "0" * 64), None)
        return [(PLACE / "run" / "config.json").read_bytes()]
    if target == "log":
        lines = [
            {"event": "session", "step": 0, "time": 0.1, "machine": {"threads": 2}},
            {"event": "clock", "step": 0, "time": 0.1, "decision": {"step": 1, "end": 3}},
            {"event": "step", "step": 1, "time": 0.2, "loss": 1.0, "lr": 0.1},
            {"event": "validation", "step": 1, "time": 0.2, "loss": 1.0, "levels": [[1.0, 2.0]]},
            {"event": "snapshot", "step": 1, "time": 0.2, "file": "samples/step_000001.png"},
            {"event": "finished", "step": 3, "time": 0.3},
        ]
        return [b"".join(json.dumps(line).encode() + b"\n" for line in lines)]
    if target == "checkpoint":
        path = PLACE / "seed"
        files.save_tensors(path, {"a": torch.ones(2, 3), "b": torch.tensor(1)}, {"step": "3"})
        return [path.read_bytes()]
    out = io.BytesIO()
    np.savez(out, images=np.zeros((3, 8, 8), np.uint8), labels=np.zeros(3, np.int64))
    return [out.getvalue()]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--runs", type=int, default=100_000)
    chosen = parser.parse_args()
    corpus = PLACE / "corpus"
    corpus.mkdir()
    for number, content in enumerate(seeds(chosen.target)):
        (corpus / str(number)).write_bytes(content)

    def once(content: bytes) -> None:
        with contextlib.suppress(UserError):
            TARGETS[chosen.target](content)

    torch.set_num_threads(1)
    options = [f"-runs={chosen.runs}", "-max_len=4096", "-timeout=5", "-rss_limit_mb=2048"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
