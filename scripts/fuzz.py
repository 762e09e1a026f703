"""A coverage-guided fuzzer for the readers of files that others may have made.

    python scripts/fuzz.py idx|config|log|checkpoint|model|archive --runs 100000

A reader must return or raise UserError for any bytes. Any other exception is a finding. It ends the
fuzzer, which keeps the input. The fuzzer starts from files that the package wrote, so that it
passes the first check.

Half of the changes keep the outer form of the file. They change a value within the JSON (a line of
a log, the header of a checkpoint, a model's description) or an array within an archive, whose
checksums are written again. The other changes are of any bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import io
import json
import random
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris
import numpy as np

with atheris.instrument_imports(include=["undiffuse"]):
    import torch

    from undiffuse.base.errors import UserError
    from undiffuse.base.tensors import load_tensors, save_tensors
    from undiffuse.data.dataset import Dataset
    from undiffuse.data.idx import read_idx
    from undiffuse.diffusion.conditioning import Conditioning
    from undiffuse.measuring import files
    from undiffuse.model import Description, Model
    from undiffuse.runs.fitting import decisions_of
    from undiffuse.runs.folder import Run
    from undiffuse.runs.log import log_line
    from undiffuse.training.clock import Clock
    from undiffuse.training.experiment import DataFacts
    from undiffuse.training.presets import make_config
    from undiffuse.training.records import (
        CompileFallback,
        Cooldown,
        Finished,
        Projection,
        Quality,
        Record,
        Rollback,
        SessionStarted,
        Snapshot,
        StepTaken,
        Stopped,
        Validation,
    )

PLACE = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
"""The folder of the files, in memory where the system has such a folder."""


def idx(content: bytes) -> None:
    """An IDX file of images."""
    path = PLACE / "images-idx3-ubyte"
    path.write_bytes(content)
    read_idx(path, 1, 3, 4)


def config(content: bytes) -> None:
    """A run's config.json."""
    (PLACE / "config.json").write_bytes(content)
    Run(PLACE).about()


def log(content: bytes) -> None:
    """A run's log.jsonl, and the clock's decisions in it."""
    run = Run(PLACE)
    run.log_path.write_bytes(content)
    for _ in run.follow():
        pass
    Clock(lambda: 0.0, 0.4, budget=60.0).read(decisions_of(run.records()))


def checkpoint(content: bytes) -> None:
    """A checkpoint: first without its checksum, so that the parser behind it is reached."""
    path = PLACE / "x.safetensors"
    path.write_bytes(content)
    load_tensors(path, checksum=False)
    Run(PLACE).load_tensors(path)


def model(content: bytes) -> None:
    """The description of a model. The weights are those of TINY, so most others do not fit."""
    path = PLACE / "model.safetensors"
    metadata = {"step": "3", "model": content.decode(errors="replace")}
    save_tensors(path, dict(TINY.build().state_dict()), metadata)
    Model.load(path)


def archive(content: bytes) -> None:
    """An .npz file of images."""
    path = PLACE / "images.npz"
    path.write_bytes(content)
    files.read_images(path, DATASET)


CLASSES = ("0", "1")
IMAGES = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
DATASET = Dataset.of("tiny", IMAGES, torch.arange(4) % 2, CLASSES)
TINY = Description(
    "unet:channels=8,blocks=1,attention=0,heads=1", "cosine", "v", (1, 8, 8), Conditioning(CLASSES)
)
TARGETS: dict[str, Callable[[bytes], None]] = {
    "idx": idx,
    "config": config,
    "log": log,
    "checkpoint": checkpoint,
    "model": model,
    "archive": archive,
}


ODD: list[Any] = [
    *[None, True, False, -1, 0, 1, 7, 2**31, -(2**63), 2**64, 10**400],
    *[0.5, -0.0, 1e-320, 1e308, float("inf"), float("nan")],
    *["", "0", "a" * 300, "../x", "/", "\x00", "\ud800", "F32", "I64"],
    *[[], {}, [0], [[0, 1]], [0, 2**62], {"": 0}],
]
"""Values that a program may fail on when it expects another."""


def changed(value: Any, chance: random.Random) -> Any:
    """A JSON value, one part of which is changed, removed or repeated."""
    if isinstance(value, dict | list) and value and chance.random() < 0.9:
        key = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
        deed = chance.random()
        if deed < 0.1:
            del value[key]
        elif deed < 0.2 and isinstance(value, list):
            value.append(value[key])
        elif deed < 0.2:
            value[chance.choice([*value, "", "a" * 300])] = value[key]
        else:
            value[key] = changed(value[key], chance)
        return value
    if isinstance(value, int | float) and chance.random() < 0.5:
        return value + chance.choice([-1, 1, 0.5, 1e9])
    return chance.choice(ODD)


def changed_json(content: bytes, chance: random.Random) -> bytes:
    """JSON with one value changed; other content stays as it is."""
    try:
        return json.dumps(changed(json.loads(content), chance)).encode()
    except (ValueError, RecursionError, OverflowError):
        return content


def changed_archive(content: bytes, chance: random.Random) -> bytes:
    """An archive with one member changed; other content stays as it is."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        name = chance.choice(list(members))
        members[name] = bytes(atheris.Mutate(members[name], 2048))
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for name, member in members.items():
                archive.writestr(name, member)
        return out.getvalue()
    except Exception:  # zipfile raises many kinds for a broken archive
        return content


def mutated(content: bytes, most: int, seed: int, target: str) -> bytes:
    """The content that libFuzzer tries next, at most `most` bytes."""
    chance = random.Random(seed)
    if target != "idx" and chance.random() < 0.5:
        if target in ("config", "model"):
            content = changed_json(content, chance)
        elif target == "log":
            lines = content.splitlines() or [b"{}"]
            k = chance.randrange(len(lines))
            lines[k] = changed_json(lines[k], chance)
            content = b"\n".join(lines) + b"\n"
        elif target == "archive":
            content = changed_archive(content, chance)
        elif len(content) >= 8:
            length = int.from_bytes(content[:8], "little")
            header = changed_json(content[8 : 8 + length], chance)
            content = len(header).to_bytes(8, "little") + header + content[8 + length :]
        if len(content) <= most:
            return content
    return bytes(atheris.Mutate(content[:most], most))


def seeds(target: str) -> list[bytes]:
    """Valid files, from which the fuzzer starts."""
    if target == "idx":
        images = struct.pack(">HBB3I", 0, 8, 3, 2, 2, 2) + bytes(8)
        return [images, struct.pack(">HBBI", 0, 8, 1, 3) + bytes(3)]
    if target == "config":
        run = Run(PLACE / "run")
        facts = DataFacts("tiny", (1, 8, 8), CLASSES, 4, 0, "0" * 64)
        plain = make_config(steps=3)
        conditional = make_config(steps=3, conditional=True, clusters=2)
        clusters = Conditioning(CLASSES, clusters=(3, 1), class_of_cluster=(0, 1))
        found = []
        for own, conditioning in ((plain, Conditioning()), (conditional, clusters)):
            run.create(own, facts, conditioning, None)
            found.append((run.path / "config.json").read_bytes())
            (run.path / "config.json").unlink()
        return found
    if target == "log":
        records: list[Record] = [
            SessionStarted(0, 0.1, {"threads": 2, "compiler": None}, 1000, ["a note"]),
            CompileFallback(0, 0.1, "no compiler"),
            Validation(0, 0.1, 1.0, [(1.0, 2.0)]),
            Snapshot(0, 0.1, 0.1),
            Projection(0, 0.1, 3, 2),
            Cooldown(0, 0.1, 1, 3),
            StepTaken(1, 0.2, 1.0, 0.1, 0.1),
            Rollback(0, 0.2, 2, "its loss was not finite"),
            Quality(1, 0.3, 5.0, 1.0, 500, 0.1),
            Stopped(1, 0.3),
            Finished(3, 0.3),
        ]
        return [b"".join(map(log_line, records))]
    if target == "model":
        return [json.dumps(dataclasses.asdict(TINY)).encode()]
    if target == "checkpoint":
        path = PLACE / "seed"
        save_tensors(path, {"a": torch.ones(2, 3), "b": torch.tensor(1)}, {"step": "3"})
        return [path.read_bytes()]
    out = io.BytesIO()
    np.savez(out, images=np.zeros((100, 2, 2), np.uint8), labels=np.zeros(100, np.uint8))
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
    mutator = functools.partial(mutated, target=chosen.target)
    atheris.Setup([sys.argv[0], *options, str(corpus)], once, custom_mutator=mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
