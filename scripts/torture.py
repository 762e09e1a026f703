"""`make torture`: kill a training with SIGKILL at random moments and resume it.

A run must end in the same bytes as a run that was not disturbed. The run is tiny and saves after
every step. A write is short, so a random kill seldom hits one. Therefore at least half of the kills
wait until a write begins. Each training is a fork of this process, which has imported everything
and computed nothing, so a kill costs about one second.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from undiffuse.runs.session import train_session
from undiffuse.training.config import Config
from undiffuse.training.options import SessionOptions
from undiffuse.training.presets import make_config

TINY: dict[str, Any] = {
    "steps": 40, "subset": 200, "net": "unet:channels=8/16,blocks=1/1,heads=2,dropout=0.1",
    "batch_size": 8, "warmup": 2, "snapshots": 4, "snapshot_images": 4, "sample_calls": 2,
    "guidance": 1.0, "quality_share": 0.0, "clusters": 0,
}  # fmt: skip
OPTIONS = SessionOptions(compile="off", checkpoint_every=1)


def begin(config: Config, folder: Path) -> int:
    """Train in a child process. Returns the process id."""
    child = os.fork()
    if child:
        return child
    try:
        torch.set_num_threads(1)
        for _ in train_session(config, folder, OPTIONS):
            pass
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def written(path: Path | None) -> int:
    """The time at which a file was last written, in nanoseconds; 0 where there is no file.

    path: with the name that the file will have; it has another one while it is written."""
    times = [0]
    if path is not None:
        with contextlib.suppress(FileNotFoundError):  # it may go meanwhile
            found = [path] if path.is_file() else path.parent.glob(f".{path.name}.*.tmp")
            times += [each.stat().st_mtime_ns for each in found]
    return max(times)


def ended(child: int, seconds: float, writes: Path | None = None) -> bool:
    """Whether the child ended by itself within so many seconds. Otherwise it is killed.

    writes: kill it only when this file is being written. Ends the script where the child failed."""
    # The file may be left from an earlier kill: it counts once it is written again.
    until, before = time.monotonic() + seconds, written(writes)
    while True:
        number, status = os.waitpid(child, os.WNOHANG)
        if number:
            if status:
                sys.exit(f"torture: a training failed with status {status}")
            return True
        if time.monotonic() >= until and (writes is None or written(writes) not in (0, before)):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False
        time.sleep(0.002 if writes is None else 0.0001)


def unfinished(folder: Path) -> set[tuple[Path, int]]:
    """The files that were being written: (path, time of the last write in nanoseconds)."""
    return {(path, written(path)) for path in folder.rglob(".*.tmp")}


def remains(folder: Path) -> dict[str, Any]:
    """The content of a run folder, without times, durations and the number of sessions."""
    found: dict[str, Any] = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.name not in ("log.jsonl", "config.json")
        and not path.name.startswith(".")  # what a killed process was writing
    }
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    found["log"] = [
        {k: v for k, v in line.items() if k not in ("time", "seconds")}
        for line in lines
        if line["event"] not in ("session", "stopped")
    ]
    return found


def torture(kills: int, seed: int, place: Path) -> tuple[int, int, int]:
    """(kills, those of them within a write, finished runs).

    Ends the script with a message where a run does not end as the undisturbed one."""
    config, chance = make_config(**TINY), random.Random(seed)
    start = time.monotonic()
    assert ended(begin(config, place / "whole"), 600)
    seconds = time.monotonic() - start
    expected = remains(place / "whole")
    killed = writing = runs = 0
    while killed < kills:
        folder = place / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        written_whole = ("checkpoint.safetensors", "log.jsonl", "model.safetensors")
        aim = chance.choice([None, *written_whole])
        while True:
            before = unfinished(folder)
            seconds_left = chance.uniform(0, 0.7 * seconds)
            if ended(begin(config, folder), seconds_left, folder / aim if aim else None):
                break
            killed += 1
            writing += bool(unfinished(folder) - before)
            so_far = f"\r{killed} of {kills} kills, {runs} finished runs"
            print(so_far, end="", file=sys.stderr, flush=True)
            aim = chance.choice([None, "checkpoint.safetensors"])
        runs += 1
        found = remains(folder)
        names = sorted(expected.keys() | found.keys())
        wrong = [name for name in names if expected.get(name) != found.get(name)]
        if wrong:
            sys.exit(f"torture: after {killed} kills these differ: {', '.join(wrong)}")
    print(file=sys.stderr)
    return killed, writing, runs


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        killed, writing, runs = torture(chosen.kills, chosen.seed, Path(place))
    print(
        f"{killed} kills, {writing} of them within a write; {runs} runs ended in the bytes of the "
        "undisturbed run"
    )


if __name__ == "__main__":
    main()
