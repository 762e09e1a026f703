"""`make speedrun`: the quality of the digits that a budget of minutes gives.

For each budget and mode it trains a few seeds from random weights, with an empty compiler cache.
Start-up and compilation are inside the budget. Then it samples 10,000 digits with at most 25
network calls each, calls of guidance included, and measures them with `undiffuse evaluate`.
Training measures no quality (--quality-share 0), all sampled digits count, and the test images are
used in the evaluation only.

The results are ratios: the Frechet distance to the training digits, divided by that of real test
digits. The median over the seeds goes into speedrun.json and a table.

Finished trainings and evaluations are kept, so an interrupted speedrun can be continued. Everything
is in `runs/speedrun`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from undiffuse.base import engine
from undiffuse.runs.folder import Run

UNDIFFUSE = [sys.executable, "-m", "undiffuse"]
MODES = {
    "unconditional": [],
    "conditional": ["--conditional"],
}
"""mode -> flags of training."""

MOST_CALLS = 25  # network calls for a digit


def one(folder: Path, mode: str, minutes: float, seed: int, n: int) -> dict[str, Any]:
    """Train a run and evaluate n of its digits, unless that was done before.

    Returns the content of metrics.json."""
    with tempfile.TemporaryDirectory() as empty:
        budget = ["--minutes", f"{minutes:g}", "--seed", str(seed), "--quality-share", "0"]
        flags = [*budget, *MODES[mode], "--out", str(folder)]
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": empty}
        subprocess.run([*UNDIFFUSE, "train", *flags], check=True, env=environment)
    metrics = folder / "metrics.json"
    earlier = json.loads(metrics.read_text()) if metrics.is_file() else {}
    end = Run(folder).finished()
    assert end is not None
    if (earlier.get("of", {}).get("step"), earlier.get("sampling", {}).get("n")) != (end.step, n):
        precision = engine.fastest()  # as it was trained
        flags = ["--no-likelihood", "--n", str(n), "--seed", str(seed), "--precision", precision]
        subprocess.run([*UNDIFFUSE, "evaluate", str(folder), *flags], check=True)
    found = json.loads(metrics.read_text())
    assert found["sampling"]["network_calls"] <= MOST_CALLS
    return dict(found)


def main() -> None:
    """Train and evaluate all runs, write speedrun.json and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--minutes", type=float, nargs="+", default=[3, 10])
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=Path("runs/speedrun"))
    chosen = parser.parse_args()
    rows = []
    for minutes in chosen.minutes:
        for mode in chosen.modes:
            runs = [
                one(chosen.out / f"{mode}-{minutes:g}min-seed{seed}", mode, minutes, seed, chosen.n)
                for seed in range(chosen.seeds)
            ]
            ratios = [run["frechet"]["ratio"] for run in runs]
            rows.append(
                {
                    "minutes": minutes,
                    "mode": mode,
                    "median": statistics.median(ratios),
                    "seeds": ratios,
                    "precision": statistics.median(run["precision"]["value"] for run in runs),
                    "recall": statistics.median(run["recall"]["value"] for run in runs),
                    "alarms": sum(run["novelty"]["alarm"] for run in runs),
                    "calls": runs[0]["sampling"]["network_calls"],
                    "digits_per_second": chosen.n
                    / statistics.median(run["sampling"]["seconds"] for run in runs),
                }
            )
            content = {
                "date": time.strftime("%Y-%m-%d"),
                "n": chosen.n,
                "machine": engine.machine_facts(),
                "rows": rows,
            }
            (chosen.out / "speedrun.json").write_text(json.dumps(content, indent=2))
    print(
        f"{'minutes':>8}  {'mode':14} {'Frechet / floor':>16}  {'seeds':24} {'precision':>9} "
        f"{'recall':>7} {'alarms':>6}"
    )
    for row in rows:
        seeds = ", ".join(f"{ratio:.2f}" for ratio in row["seeds"])
        print(
            f"{row['minutes']:8g}  {row['mode']:14} {row['median']:16.2f}  {seeds:24} "
            f"{row['precision']:9.3f} {row['recall']:7.3f} {row['alarms']:6}"
        )


if __name__ == "__main__":
    main()
