"""Tests whether two versions of the code give the same bits.

    python scripts/pin.py [COMMIT]    # default: HEAD~1

A refactor must not change what a run computes. The script trains twelve steps of each network with
the code of COMMIT and with the working tree. Both run with the same environment, because bits
depend on the instruction set, on torch and on the number of threads. The script compares the
weights, the averaged weights, the optimiser's moments, the losses and the samples of one seed. It
uses the command only, so tensors may have new names.

Exit code 0: identical. Exit code 1: different; the names of the parts that differ are printed.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

ROOT = Path(__file__).resolve().parent.parent

COMMON = [
    *["--steps", "12", "--subset", "2500", "--batch-size", "16", "--seed", "3"],
    *["--snapshots", "2", "--snapshot-images", "4", "--sample-calls", "4"],
    *["--compile", "off", "--precision", "bf16"],
]
"""Flags of all trainings."""

CASES = {
    "unet, classes": ["--conditional"],
    "unet, no classes": [],
    "unet2d": ["--preset", "handout"],
    "categorical": ["--preset", "likelihood"],
}
"""name -> further flags of its training."""


def command(source: Path, *arguments: str | Path) -> None:
    """Run `undiffuse ARGUMENTS` with the package in the folder `source`."""
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "2"}
    line = [sys.executable, "-m", "undiffuse", *map(str, arguments)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(line)}: exit code {done.returncode}\n{done.stderr}")


def digests(file: Path) -> list[str]:
    """The SHA-256 of each tensor of a checkpoint, sorted, so that names do not matter."""
    with safe_open(file, framework="np") as tensors:
        return sorted(
            hashlib.sha256(tensors.get_tensor(name).tobytes()).hexdigest()
            for name in tensors.keys()  # noqa: SIM118 - no mapping
        )


def measured(source: Path, flags: list[str], folder: Path) -> dict[str, Any]:
    """Train twelve steps and sample 8 images with the package in `source`: what was computed."""
    run = folder / "run"
    command(source, "train", *COMMON, *flags, "--out", run)
    command(source, "sample", run, "--n", "8", "--seed", "1", "--out", folder / "samples.npz")
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {
        "losses": [line["loss"] for line in lines if line["event"] == "step"],
        "checkpoint": digests(run / "checkpoint.safetensors"),
        "model": digests(run / "model.safetensors"),
        "samples": hashlib.sha256(np.load(folder / "samples.npz")["images"].tobytes()).hexdigest(),
    }


def differences(here: dict[str, Any], there: dict[str, Any]) -> list[str]:
    """The names of the parts that differ."""
    return [part for part in here if here[part] != there[part]]


def main(commit: str = "HEAD~1") -> None:
    """Compare the working tree with `commit`, case by case. Ends the process."""
    different = False
    with tempfile.TemporaryDirectory() as place:
        other = Path(place, "code")
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "-q", "--detach", str(other), commit], check=True)
        try:
            for number, (name, flags) in enumerate(CASES.items()):
                results = []
                for side, source in enumerate((ROOT / "src", other / "src")):
                    folder = Path(place, f"{number}-{side}")
                    folder.mkdir()
                    results.append(measured(source, flags, folder))
                found = differences(*results)
                different |= bool(found)
                print(
                    f"{name}: {'DIFFERENT: ' + ', '.join(found) if found else 'identical'}",
                    flush=True,
                )
        finally:
            subprocess.run([*git, "remove", "--force", str(other)], check=True)
    raise SystemExit(int(different))


if __name__ == "__main__":
    main(*sys.argv[1:])
