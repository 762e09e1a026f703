"""The figures of images that a report draws: the chain, the noise, and images compared.

To add one: a function (source) -> Figure with `@PICTURES.add`. A block `Figure` names it. The
charts are in charts.py."""

from __future__ import annotations

import io
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from undiffuse.base import rng
from undiffuse.base.images import as_picture, tiles
from undiffuse.base.lazy import lazy
from undiffuse.base.pixels import to_float, to_uint8
from undiffuse.base.table import Table
from undiffuse.diffusion import process
from undiffuse.diffusion.schedule import SCHEDULES, noise_level
from undiffuse.report import mistakes
from undiffuse.report.source import Source
from undiffuse.report.words import SAMPLER_NAMES, sampler_name, shown
from undiffuse.runs import figures

if TYPE_CHECKING:
    import matplotlib
    from matplotlib import patches
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:  # a setting that matplotlib refuses is reported where a picture is drawn
    matplotlib, patches = lazy("matplotlib"), lazy("matplotlib.patches")

PICTURES = Table("picture", "undiffuse.report.charts")


def svg(figure: Figure) -> bytes:
    """A figure as SVG. The same figure gives the same bytes: no date, no random names."""
    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "undiffuse", "svg.fonttype": "path"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def examples(source: Source, count: int) -> Tensor:
    """The first `count` training images of data.png, float (count, C, H, W).

    Fewer, if it has fewer."""
    channels, height, width = source.about.facts.shape
    with Image.open(io.BytesIO(source.pictures["data.png"])) as sheet:
        shown = tiles(sheet, height, width)[:count]
    arrays = [np.asarray(tile.resize((width, height), Image.Resampling.NEAREST)) for tile in shown]
    pixels = torch.from_numpy(np.stack(arrays)).reshape(len(shown), height, width, channels)
    return to_float(pixels.movedim(-1, 1))


def noised(source: Source, x_0: Tensor, t: float) -> Tensor:
    level = noise_level(SCHEDULES[source.config.schedule], torch.tensor(t, dtype=torch.float64))
    return process.jump(x_0, rng.normal(x_0.shape, 0, "report"), level.alpha, level.sigma)


def show(axis: Axes, x: Tensor) -> None:
    """One image, float (C, H, W)."""
    axis.imshow(as_picture(to_uint8(x)), cmap="gray", vmin=0, vmax=255)
    axis.set_axis_off()


@PICTURES.add
def noising(source: Source) -> Figure:
    times, x_0 = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1], examples(source, 3)
    figure = figures.new_figure(7.2, 2.2)
    axes = figure.subplots(len(x_0), len(times), squeeze=False)
    for column, t in enumerate(times):
        x_t = noised(source, x_0, t)
        for row, axis in enumerate(axes[:, column]):
            show(axis, x_t[row])
        axes[0, column].set_title(f"t = {t:g}", fontsize=9)
    return figure


@PICTURES.add
def chain(source: Source) -> Figure:
    figure = figures.new_figure(8, 2.2)
    figure.set_layout_engine("none")
    x_0 = examples(source, 1)
    places = [
        (0.01, 0.0, "$x_0$"),
        (0.19, 0.15, "$x_1$"),
        (0.42, 0.4, "$x_{t-1}$"),
        (0.64, 0.6, "$x_t$"),
        (0.87, 1.0, "$x_T$"),
    ]
    for left, t, name in places:
        axis = figure.add_axes((left, 0.27, 0.12, 0.55))
        show(axis, noised(source, x_0, t)[0])
        figure.text(left + 0.06, 0.16, name, ha="center", fontsize=12)
    for (a, _, name), (b, *_) in pairwise(places):
        left, right = a + 0.13, b - 0.005
        if name in ("$x_1$", "$x_t$"):  # many steps lie between these and the next
            figure.text((left + right) / 2, 0.52, r"$\cdots$", ha="center", fontsize=14)
        for y, start, end in ((0.68, left, right), (0.41, right, left)):
            arrow = patches.FancyArrowPatch(
                (start, y), (end, y), arrowstyle="-|>", mutation_scale=11, color=figures.COLOURS[1]
            )
            figure.add_artist(arrow)
    figure.text(0.59, 0.89, "$q(x_t|x_{t-1})$: adds noise", ha="center", fontsize=10)
    figure.text(0.59, 0.02, "$p_\\theta(x_{t-1}|x_t)$: takes it away", ha="center", fontsize=10)
    return figure


@PICTURES.add
def denoised(source: Source) -> Figure:
    """The study's images at each noise level, with the times above."""
    return labelled(source, "denoised.png", [f"t = {k / 10:g}" for k in range(11)])


@PICTURES.add
def denoising(source: Source) -> Figure:
    """The study's images on their way by (8) in 50 steps, with the times above."""
    steps = [round(k * 49 / 10) for k in range(11)]
    return labelled(source, "denoising.png", [f"t = {1 - step / 50:.2g}" for step in steps])


@PICTURES.add
def collapse(source: Source) -> Figure:
    """The study's images of one condition, with the ways at the left."""
    _, height, width = source.about.facts.shape
    with Image.open(io.BytesIO(source.pictures["collapse.png"])) as sheet:
        shown = tiles(sheet, height, width)
    rows = {
        "(7)": shown[:10],
        "(8) as printed": shown[10:20],
        "(8)": shown[20:30],
        "DDIM": shown[30:],
    }
    figure = figures.new_figure(7.2, 2.4)
    axes = figure.subplots(len(rows), 10, squeeze=False)
    for (words, images), line in zip(rows.items(), axes, strict=True):
        for axis, image in zip(line, images, strict=True):
            axis.imshow(image, cmap="gray", vmin=0, vmax=255)
            axis.set_axis_off()
        beside(line[0], words)
    return figure


def labelled(source: Source, name: str, columns: list[str]) -> Figure:
    """A sheet of pairs of rows, x_t and below it the denoised image, with words at its sides."""
    _, height, width = source.about.facts.shape
    with Image.open(io.BytesIO(source.pictures[name])) as sheet:
        shown = tiles(sheet, height, width)
    rows = len(shown) // len(columns)
    figure = figures.new_figure(7.2, 0.3 + 0.58 * rows)
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for axis, tile in zip(axes.flat, shown, strict=True):
        axis.imshow(tile, cmap="gray", vmin=0, vmax=255)
        axis.set_axis_off()
    for axis, words in zip(axes[0], columns, strict=True):
        axis.set_title(words, fontsize=8)
    for row, axis in enumerate(axes[:, 0]):
        beside(axis, (r"$x_t$", r"$\hat{x}_\theta$")[row % 2])
    return figure


@PICTURES.named("noising-printed")
def noising_printed(source: Source) -> Figure:
    return in_rows(mistakes.noising(source.config.schedule, examples(source, 1)), 0.75)


@PICTURES.named("mistakes")
def sampling_mistakes(source: Source) -> Figure:
    return in_rows(mistakes.sampling(source.run.model().denoiser))


def in_rows(rows: dict[str, Tensor], height: float = 0.5) -> Figure:
    """A row of images for each entry, float (N, C, H, W), with its name to the left."""
    figure = figures.new_figure(7.2, 0.2 + height * len(rows))
    axes = figure.subplots(len(rows), max(map(len, rows.values())), squeeze=False)
    for (words, images), line in zip(rows.items(), axes, strict=True):
        for axis, image in zip(line, images, strict=True):
            show(axis, image)
        beside(line[0], words)
    return figure


def beside(axis: Axes, words: str) -> None:
    """Words to the left of a row of images."""
    axis.text(-0.15, 0.5, words, ha="right", va="center", fontsize=8, transform=axis.transAxes)


def by_guidance(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(the rows with guidance, the rows without)."""
    guided = [row for row in rows if row["guidance"] != 1]
    return guided, [row for row in rows if row not in guided]


def sampler_names(rows: list[dict[str, Any]]) -> list[str]:
    """The samplers in a study's rows, those of SAMPLER_NAMES first."""
    there = dict.fromkeys(row["sampler"] for row in rows)
    return [
        *(name for name in SAMPLER_NAMES if name in there),
        *(name for name in there if name not in SAMPLER_NAMES),
    ]


@PICTURES.add
def ways(source: Source) -> Figure:
    """A row of images for each sampler, with its largest number of calls.

    The images of a column start from the same noise."""
    assert source.samplers is not None
    _, unguided = by_guidance(source.samplers["rows"])
    last = {row["sampler"]: row for row in sorted(unguided, key=lambda row: int(row["calls"]))}
    names = {
        name: sampler_name(name).replace(", ", ",\n").replace(" (", "\n(")
        for name in sampler_names(unguided)
    }
    return below_one_another(
        source,
        {
            f"{words}\n{last[name]['steps']} steps": last[name]["picture"]
            for name, words in names.items()
        },
    )


def images_compared(source: Source, name: str) -> Figure:
    """A row of images for each training of a study with the first seed."""
    study = source.trainings[name]
    first = [row for row in study["rows"] if row["seed"] == study["rows"][0]["seed"]]
    return below_one_another(
        source, {shown(study["field"], row["value"]): row["picture"] for row in first}
    )


def below_one_another(source: Source, named: dict[str, str], count: int = 10) -> Figure:
    """A row for each of some pictures of a study: words, and the picture's first images."""
    _, height, width = source.about.facts.shape
    figure = figures.new_figure(7.2, 0.2 + 0.5 * len(named))
    axes = figure.subplots(len(named), count, squeeze=False)
    for (words, name), line in zip(named.items(), axes, strict=True):
        for axis in line:
            axis.set_axis_off()
        with Image.open(io.BytesIO(source.pictures[f"study-{name}"])) as sheet:
            for axis, tile in zip(line, tiles(sheet, height, width), strict=False):
                axis.imshow(tile, cmap="gray", vmin=0, vmax=255)
        beside(line[0], words)
    return figure
