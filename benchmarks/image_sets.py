"""Small data sets, none of them MNIST, made from what packages ship: fonts, photographs, noise.

Each is written as one .npz file with a training set and a test set. The images are a function of
the set's name alone. To add a set: a function random stream -> (images, labels, number of test
images) with `@SETS.add`. A set in `WITHOUT_LABELS` is trained on without its labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from undiffuse.base import rng
from undiffuse.base.table import Table

Random = np.random.Generator
Made = tuple[NDArray[np.uint8], NDArray[np.int64], int]

SETS = Table("image set")

FONTS = Path(mpl.get_data_path()) / "fonts" / "ttf"
UPRIGHT = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif",
    "DejaVuSerif-Bold", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol",
    "STIXGeneralItalic", "cmr10", "cmss10", "cmti10", "cmtt10", "cmb10",
)  # fmt: skip
SYMBOLS = "★♥♣☂☎✈☀☾♫✂"


def written(text: str, font: str, side: int, random: Random) -> NDArray[np.float64]:
    """A character in the middle of a square, slightly turned, moved and scaled: (side, side), 0..1.

    It is drawn four times as large and reduced."""
    large = 4 * side
    size = large * random.uniform(0.6, 0.8)
    sheet = Image.new("L", (large, large))
    place = large / 2 + random.uniform(-0.06, 0.06, 2) * large
    letters = ImageFont.truetype(str(FONTS / f"{font}.ttf"), size)
    ImageDraw.Draw(sheet).text(tuple(place), text, fill=255, font=letters, anchor="mm")
    turned = sheet.rotate(random.uniform(-12, 12), Image.Resampling.BICUBIC)
    return np.asarray(turned.resize((side, side), Image.Resampling.BOX)) / 255.0


@SETS.add
def letters(random: Random) -> Made:
    """26 classes, grey, 28 x 28: the capitals in 15 fonts."""
    labels = random.integers(0, 26, 14_000)
    images = [
        written(chr(65 + label), UPRIGHT[random.integers(len(UPRIGHT))], 28, random)
        for label in labels
    ]
    return as_bytes(np.stack(images)), labels, 2000


def coloured_symbols(n: int, side: int, random: Random) -> tuple[Any, NDArray[np.int64]]:
    """(images uint8 (n, side, side, 3), labels): a symbol in a colour on a slope of two others."""
    labels = random.integers(0, len(SYMBOLS), n)
    slope = np.linspace(0, 1, side)[:, None, None]
    images = []
    for label in labels:
        ink, top, bottom = random.random((3, 3)) * [[1.0], [0.6], [0.6]] + [[0.0], [0.4], [0.4]]
        ground = top + slope * (bottom - top) + np.zeros((1, side, 1))
        mask = written(SYMBOLS[label], "DejaVuSans", side, random)[..., None]
        images.append(mask * ink / 2 + (1 - mask) * ground)
    return as_bytes(np.stack(images)), labels


@SETS.add
def symbols(random: Random) -> Made:
    """10 classes, colour, 32 x 32: symbols of a font on coloured ground."""
    return *coloured_symbols(12_000, 32, random), 2000


@SETS.add
def few_symbols(random: Random) -> Made:
    """10 classes, colour, 64 x 64: symbols as in `symbols`."""
    return *coloured_symbols(8000, 64, random), 2000


@SETS.add
def small_digits(random: Random) -> Made:
    """10 classes, grey, 8 x 8, 1,797 images: the digits of scikit-learn."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = random.permutation(len(found.images))
    return as_bytes(found.images[order] / 16), found.target[order].astype(np.int64), 400


def noise_of_slope(slope: float, side: int, random: Random) -> NDArray[np.float64]:
    """Gaussian noise whose amplitude falls with frequency f as f^-slope, of variance 1."""
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    f[0, 0] = np.inf
    spectrum = np.fft.fft2(random.standard_normal((side, side))) * f**-slope
    found = np.fft.ifft2(spectrum).real
    return found / found.std()


def texture(label: int, side: int, random: Random) -> NDArray[np.float64]:
    """One of ten textures, about 0..1: two kinds of noise, and waves that are bent by noise."""
    if label < 2:
        return 0.5 + 0.2 * noise_of_slope((0.5, 1.5)[label], side, random)
    y, x = np.mgrid[:side, :side] + noise_of_slope(1.5, side, random) * (0.5, 1.5)[label % 2]
    length, angle = random.uniform(3.5, 5 + label / 2), random.uniform(-0.3, 0.3)
    angle += math.pi / 2 * (label // 4)
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    waves = np.sin(2 * math.pi * u / length + random.uniform(0, 6))
    if label >= 6:
        waves = waves * np.sin(2 * math.pi * v / length + random.uniform(0, 6))
    return 0.5 + 0.3 * waves + 0.07 * random.standard_normal((side, side))


@SETS.add
def textures(random: Random) -> Made:
    """10 classes, grey, 28 x 28: noise, stripes and weaves with grain, of any brightness.

    The contrast goes from a tenth to the whole, so that much is decided at low noise."""
    labels = random.integers(0, 10, 12_000)
    images = [
        random.uniform(0.3, 0.7) + 10 ** random.uniform(-1, 0) * (texture(label, 28, random) - 0.5)
        for label in labels
    ]
    return as_bytes(np.stack(images)), labels, 2000


# --- Kept aside: not looked at while anything is tuned ---


@SETS.add
def garments(random: Random) -> Made:
    """10 classes, grey, 28 x 28: outlines on black that are filled with a texture and lit."""
    labels = random.integers(0, 10, 12_000)
    return as_bytes(np.stack([garment(label, random) for label in labels])), labels, 2000


OUTLINES = (
    ((0.3, 0.1), (0.7, 0.1), (0.95, 0.4), (0.8, 0.5), (0.7, 0.35), (0.7, 0.9), (0.3, 0.9),
     (0.3, 0.35), (0.2, 0.5), (0.05, 0.4)),
    ((0.3, 0.05), (0.7, 0.05), (0.75, 0.95), (0.55, 0.95), (0.5, 0.35), (0.45, 0.95), (0.25, 0.95)),
    ((0.25, 0.1), (0.75, 0.1), (0.95, 0.85), (0.78, 0.88), (0.72, 0.4), (0.72, 0.92), (0.28, 0.92),
     (0.28, 0.4), (0.22, 0.88), (0.05, 0.85)),
    ((0.38, 0.05), (0.62, 0.05), (0.6, 0.4), (0.8, 0.95), (0.2, 0.95), (0.4, 0.4)),
    ((0.1, 0.55), (0.3, 0.5), (0.5, 0.6), (0.95, 0.7), (0.95, 0.82), (0.1, 0.82)),
    ((0.05, 0.75), (0.4, 0.55), (0.6, 0.35), (0.7, 0.35), (0.7, 0.55), (0.95, 0.7), (0.95, 0.8),
     (0.05, 0.8)),
    ((0.15, 0.35), (0.35, 0.35), (0.35, 0.15), (0.65, 0.15), (0.65, 0.35), (0.85, 0.35),
     (0.9, 0.85), (0.1, 0.85)),
    ((0.35, 0.1), (0.6, 0.1), (0.6, 0.6), (0.95, 0.75), (0.95, 0.88), (0.35, 0.88)),
    ((0.3, 0.15), (0.7, 0.15), (0.72, 0.9), (0.28, 0.9)),
    ((0.2, 0.3), (0.5, 0.15), (0.8, 0.3), (0.9, 0.6), (0.6, 0.6), (0.5, 0.9), (0.4, 0.6),
     (0.1, 0.6)),
)  # fmt: skip
"""The corners of the outlines of `garments`, (x, y) in 0..1."""


def garment(label: int, random: Random) -> NDArray[np.float64]:
    """One image of `garments`: (28, 28), 0..1."""
    corners = np.array(OUTLINES[label]) - 0.5
    corners = corners * random.uniform(0.8, 1.05, 2) + random.normal(0, 0.015, corners.shape) + 0.5
    sheet = Image.new("L", (112, 112))
    ImageDraw.Draw(sheet).polygon([(float(x) * 112, float(y) * 112) for x, y in corners], fill=255)
    mask = np.asarray(sheet.resize((28, 28), Image.Resampling.BOX)) / 255.0
    cloth = texture(int(random.integers(10)), 28, random) - 0.5
    left, right = random.uniform(0.4, 1.0, 2)
    light = np.linspace(left, right, 28)[None]
    brightness = random.uniform(0.35, 0.9)
    return mask * np.clip((brightness + random.uniform(0.1, 0.6) * cloth) * light, 0.02, 1)


@SETS.add
def photographs(random: Random) -> Made:
    """12 classes, colour, 32 x 32: parts of the two photographs that scikit-learn ships.

    A class is a third of a photograph's width and a half of its height, in which the middle of the
    part lies. Parts overlap, those of the test set too. So the test set is of the same
    distribution, and a ratio says how near that is, but not whether parts were copied."""
    from sklearn.datasets import load_sample_images

    parts, labels = [], []
    for number, photograph in enumerate(load_sample_images().images):
        whole = Image.fromarray(photograph)
        for _ in range(6000):
            side = int(random.integers(32, 97))
            x, y = (int(random.integers(0, length - side + 1)) for length in whole.size)
            part = whole.resize((32, 32), Image.Resampling.BOX, box=(x, y, x + side, y + side))
            parts.append(np.asarray(part))
            column = int(3 * (x + side / 2) / whole.width)
            row = int(2 * (y + side / 2) / whole.height)
            labels.append(6 * number + 3 * row + column)
    order = random.permutation(len(parts))
    return np.stack([parts[i] for i in order]), np.array(labels)[order], 2000


ASIDE = ("garments", "photographs")
"""The sets that nothing is tuned on."""


def as_bytes(images: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Images 0..1 as uint8."""
    return np.rint(images.clip(0, 1) * 255).astype(np.uint8)


WITHOUT_LABELS = {"few-symbols": 500, "photographs": 10_000}
"""The sets that are trained on without labels -> how many of their training images are used."""


def make_set(name: str, folder: Path) -> tuple[Path, Path]:
    """(the folder to train on, the folder to judge by) of a set; written unless they are there.

    Each has one .npz file. They are the same folder unless the set is in WITHOUT_LABELS. Then a
    classifier judges the samples by labels that the run is not told."""
    make: Callable[[Random], Made] = SETS[name]
    whole, told = folder / name, folder / f"{name}-without-labels"
    if not (whole / "data.npz").is_file():
        images, labels, test = make(rng.stream(0, f"image set {name}"))
        write(
            whole,
            train_images=images[:-test],
            train_labels=labels[:-test],
            test_images=images[-test:],
            test_labels=labels[-test:],
        )
    if name not in WITHOUT_LABELS:
        return whole, whole
    if not (told / "data.npz").is_file():
        with np.load(whole / "data.npz") as found:
            write(
                told,
                train_images=found["train_images"][: WITHOUT_LABELS[name]],
                test_images=found["test_images"],
            )
    return told, whole


def write(folder: Path, **arrays: Any) -> None:
    """The arrays as `folder`/data.npz."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "data.npz", **arrays)
