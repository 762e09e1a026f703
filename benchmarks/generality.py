"""`make generality`: how good the defaults are on images that are not MNIST's.

Each image set of image_sets.py is trained with the defaults for the same minutes, sampled, and
compared with its own training images. The ratio is the Frechet distance of the samples divided by
that of real test images, both of as many images, in the features of the set's own classifier, as
`undiffuse evaluate` gives it. 1 means as near as real images. Two sets are trained on without
labels. Their classifier was told labels, and is trained on more images of the same kind.

--before FOLDER trains and measures with the package in FOLDER/src too, in turns, so that both have
the same machine. --aside takes the sets that nothing is tuned on.

Finished trainings and measurements are kept, so an interrupted run can be continued. Everything is
in `runs/generality`: generality.json, and one picture of samples beside real images.
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

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from image_sets import ASIDE, SETS, make_set
from undiffuse.base import engine

SHOWN = 20
"""Samples, and real images, of each set in the picture."""

UNDIFFUSE = [sys.executable, "-m", "undiffuse"]


def one(
    run: Path, told: Path, whole: Path, minutes: float, n: int, source: Path | None
) -> dict[str, float]:
    """Train on a set and measure n samples, unless that was done before. Returns the ratio.

    told, whole: the folders to train on and to judge by. source: a folder with the package to use;
    None for the installed one."""
    result = run / "ratio.json"
    if result.is_file():
        return dict(json.loads(result.read_text()))
    environment = dict(os.environ)
    if source is not None:
        environment["PYTHONPATH"] = str(source.resolve())

    def undiffuse(*words: object) -> None:
        subprocess.run([*UNDIFFUSE, *map(str, words)], check=True, env=environment)

    with tempfile.TemporaryDirectory() as empty:
        environment["TORCHINDUCTOR_CACHE_DIR"] = empty
        flags = ["--conditional"] if told == whole else []
        undiffuse(
            "train", "--data", told, *flags, "--minutes", minutes, "--quality-share", 0,
            "--out", run,
        )  # fmt: skip
    samples = run / "samples.npz"
    precision = engine.fastest()
    undiffuse("sample", run, "--n", n, "--precision", precision, "--out", samples)
    measured = run / "of-samples.json"
    undiffuse("evaluate", "--images", samples, "--data", whole, "--out", measured)
    found = json.loads(measured.read_text())
    kept = {name: found["frechet"][name] for name in ("ratio", "ratio_low", "ratio_high")}
    kept |= {name: found[name]["value"] for name in ("precision", "recall")}
    result.write_text(json.dumps(kept))
    return kept


def strip(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The first SHOWN images side by side, 48 pixels high, in colour."""
    colour = images if images.ndim == 4 else np.repeat(images[..., None], 3, axis=3)
    large = [
        np.asarray(Image.fromarray(image).resize((48, 48), Image.Resampling.NEAREST))
        for image in colour[:SHOWN]
    ]
    return np.concatenate(large, axis=1)


def main() -> None:
    """Train and measure all sets, write generality.json and the picture, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--sets", nargs="+", choices=list(SETS))
    parser.add_argument("--aside", action="store_true", help="the sets that are kept aside")
    parser.add_argument("--before", type=Path, help="a checkout to compare with")
    parser.add_argument("--out", type=Path, default=Path("runs/generality"))
    chosen = parser.parse_args()
    names = chosen.sets or (ASIDE if chosen.aside else [x for x in SETS if x not in ASIDE])
    sources = {"now": None} | ({"before": chosen.before / "src"} if chosen.before else {})
    rows: list[dict[str, Any]] = []
    strips: dict[str, list[NDArray[np.uint8]]] = {version: [] for version in sources}
    for name in names:
        told, whole = make_set(name, chosen.out / "sets")
        row: dict[str, Any] = {"set": name}
        for version, source in sources.items():
            run = chosen.out / f"{name}-{chosen.minutes:g}min-{version}"
            row[version] = one(run, told, whole, chosen.minutes, chosen.n, source)
            with np.load(told / "data.npz") as real, np.load(run / "samples.npz") as drawn:
                strips[version] += [strip(real["train_images"]), strip(drawn["images"])]
        rows.append(row)
    for version, shown in strips.items():
        Image.fromarray(np.concatenate(shown)).save(chosen.out / f"samples-{version}.png")
    means = {
        version: statistics.geometric_mean(row[version]["ratio"] for row in rows)
        for version in sources
    }
    content = {
        "date": time.strftime("%Y-%m-%d"),
        "minutes": chosen.minutes,
        "n": chosen.n,
        "machine": engine.machine_facts(),
        "geometric_mean": means,
        "rows": rows,
    }
    (chosen.out / "generality.json").write_text(json.dumps(content, indent=2))
    print(f"{'set':16}" + "".join(f"{version + ' (95%)':>26}{'recall':>8}" for version in sources))
    for row in rows:
        cells = [
            f"{f['ratio']:10.2f} ({f['ratio_low']:.2f} to {f['ratio_high']:.2f})".rjust(26)
            + f"{f['recall']:8.3f}"
            for f in (row[version] for version in sources)
        ]
        print(f"{row['set']:16}" + "".join(cells))
    print("geometric mean  " + "".join(f"{mean:10.2f}{'':24}" for mean in means.values()))


if __name__ == "__main__":
    main()
