"""`make generality`: how good the defaults are on images that are not MNIST's.

Each image set of image_sets.py is trained with the defaults for the same minutes, sampled, and
compared with its own training images. The ratio is the Frechet distance of the samples divided by
that of real test images, both of as many images. Sets with labels are compared in the features of
their own classifier, as `undiffuse evaluate` does; sets without labels in the features of a fixed
random convolution network. 1 means as near as real images.

--before FOLDER trains and measures with the package in FOLDER/src too, in turns, so that both have
the same machine. --aside takes the sets that nothing is tuned on.

Finished trainings and measurements are kept, so an interrupted run can be continued. Everything is
in `runs/generality`: generality.json, and one picture of samples beside real images.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from image_sets import ASIDE, SETS, make_set
from undiffuse.base import engine, rng
from undiffuse.measuring.distances import frechet, frechet_interval, moments

SHOWN = 20
"""Samples, and real images, of each set in the picture."""

UNDIFFUSE = [sys.executable, "-m", "undiffuse"]


@torch.no_grad()
def random_features(images: NDArray[np.uint8]) -> torch.Tensor:
    """Features (N, 64) of a network of random convolutions, which is the same for all images.

    At each of four depths: the mean of 8 filters, and the spread of 8 others that do not see the
    mean of their pixels, so that fine structure counts."""
    x = torch.from_numpy(images if images.ndim == 4 else images[..., None])
    x = x.permute(0, 3, 1, 2).float() / 127.5 - 1
    found = []
    for depth in range(4):
        shape = (32, x.shape[1], 3, 3)
        filters = rng.normal(shape, 0, "random features", depth) / math.sqrt(9 * x.shape[1])
        filters[8:] -= filters[8:].mean(dim=(2, 3), keepdim=True)
        x = F.conv2d(x, filters, padding=1)
        found += [x[:, :8].mean(dim=(2, 3)), x[:, 8:16].std(dim=(2, 3)).log1p()]
        x = F.avg_pool2d(F.leaky_relu(x, 0.2), 2) if min(x.shape[2:]) > 3 else F.leaky_relu(x, 0.2)
    return torch.cat(found, dim=1)


def ratio_without_labels(data: Path, samples: Path) -> dict[str, float]:
    """The ratio of samples, with its interval, in `random_features`."""
    with np.load(data / "data.npz") as real:
        training, test = real["train_images"], real["test_images"]
    of_training = moments(random_features(training))
    generated = np.load(samples)["images"][: len(test)]
    floor = frechet(moments(random_features(test)), of_training)
    value = frechet_interval(random_features(generated), of_training)
    return {
        "ratio": value.value / floor,
        "ratio_low": value.low / floor,
        "ratio_high": value.high / floor,
    }


def one(run: Path, data: Path, minutes: float, n: int, source: Path | None) -> dict[str, float]:
    """Train on a set and measure n samples, unless that was done before. Returns the ratio.

    source: a folder with the package to use; None for the installed one."""
    result = run / "ratio.json"
    if result.is_file():
        return dict(json.loads(result.read_text()))
    labels = "train_labels" in np.load(data / "data.npz")
    environment = dict(os.environ)
    if source is not None:
        environment["PYTHONPATH"] = str(source.resolve())

    def undiffuse(*words: object) -> None:
        subprocess.run([*UNDIFFUSE, *map(str, words)], check=True, env=environment)

    with tempfile.TemporaryDirectory() as empty:
        environment["TORCHINDUCTOR_CACHE_DIR"] = empty
        flags = ["--conditional"] if labels else []
        undiffuse(
            "train", "--data", data, *flags, "--minutes", minutes, "--quality-share", 0,
            "--out", run,
        )  # fmt: skip
    samples = run / "samples.npz"
    precision = engine.fastest()
    undiffuse("sample", run, "--n", n, "--precision", precision, "--out", samples)
    if labels:
        measured = run / "of-samples.json"
        undiffuse("evaluate", "--images", samples, "--data", data, "--out", measured)
        found = json.loads(measured.read_text())
        kept = {name: found["frechet"][name] for name in ("ratio", "ratio_low", "ratio_high")}
        kept |= {name: found[name]["value"] for name in ("precision", "recall")}
    else:
        kept = ratio_without_labels(data, samples)
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
        data = make_set(name, chosen.out / "sets")
        row: dict[str, Any] = {"set": name}
        for version, source in sources.items():
            run = chosen.out / f"{name}-{chosen.minutes:g}min-{version}"
            row[version] = one(run, data, chosen.minutes, chosen.n, source)
            with np.load(data / "data.npz") as real, np.load(run / "samples.npz") as drawn:
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
            + (f"{f['recall']:8.3f}" if "recall" in f else f"{'':8}")
            for f in (row[version] for version in sources)
        ]
        print(f"{row['set']:16}" + "".join(cells))
    print("geometric mean  " + "".join(f"{mean:10.2f}{'':24}" for mean in means.values()))


if __name__ == "__main__":
    main()
