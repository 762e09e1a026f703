"""`make signals`: Ctrl-C and SIGTERM at many moments of a training with the default preset.

It measures how long a training takes to save and to end after a signal. Each training is a process
of its own, with an empty compiler cache. It begins a run or resumes it. Half of the signals go to
the process only. The others also go to its child processes, as Ctrl-C in a terminal does. A second
signal follows within 2 seconds, unless the process has ended. The exit code must be 130 or 143, and
the next training must be able to resume the run.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from undiffuse.runs.folder import Run
from undiffuse.training.records import SessionStarted

PATIENCE = 60.0  # seconds until a training that does not end counts as hanging


def interrupted(folder: Path, after: float, number: int, everyone: bool, again: float) -> float:
    """Train in `folder`, send a signal and wait: the seconds from the signal to the exit.

    after: seconds from the start to the signal. number: the signal. everyone: send it to the child
    processes too, as a terminal does. again: seconds until a second signal. Ends the script with a
    message for a wrong exit code, and raises UserError for a damaged checkpoint."""
    name = f"after {after:.1f} s, {signal.Signals(number).name}"
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryFile() as output:

        def said() -> str:
            output.seek(0)
            return output.read().decode()[-500:]

        train = ["train", "--minutes", "30", "--conditional", "--out", str(folder)]
        process = subprocess.Popen(
            [sys.executable, "-m", "undiffuse", *train],
            stdout=output,
            stderr=output,
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache},
            start_new_session=True,
        )
        time.sleep(after)
        if process.poll() is not None:
            sys.exit(
                f"signals: the training ended before the signal, with exit code "
                f"{process.returncode}: {said()}"
            )
        sent, send = time.monotonic(), os.killpg if everyone else os.kill
        send(process.pid, number)
        try:
            code = process.wait(again)
        except subprocess.TimeoutExpired:
            send(process.pid, number)
            try:
                code = process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                sys.exit(f"signals: {name}: the process did not end within {PATIENCE:.0f} s")
        seconds = time.monotonic() - sent
        begun = bool(Run(folder).of(SessionStarted))
        # Before the run exists, the process may still have the system's own signal handler.
        if code != 128 + number and (begun or code != -number):
            sys.exit(f"signals: {name}: exit code {code}: {said()}")
    if Run(folder).checkpoint_path.is_file():
        Run(folder).load_tensors(Run(folder).checkpoint_path)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument(
        "--longest", type=float, default=90.0, help="seconds from a start to the latest signal"
    )
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    chance = random.Random(chosen.seed)
    took = []
    with tempfile.TemporaryDirectory() as place:
        for k in range(chosen.times):
            after = max(1.0, chosen.longest * (k + chance.random()) / chosen.times)
            number = (signal.SIGINT, signal.SIGTERM)[k % 2]
            again = chance.uniform(0, 2)
            seconds = interrupted(Path(place) / "run", after, number, k % 4 < 2, again)
            took.append(seconds)
            print(f"{after:6.1f} s  {number.name:8} {seconds:5.2f} s", flush=True)
    print(f"{len(took)} signals; the slowest exit took {max(took):.2f} s")


if __name__ == "__main__":
    main()
