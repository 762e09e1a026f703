"""The figures of images that a report draws: the chain, the noise, and images compared.

To add one: a function (source) -> Figure with `@PICTURES.add`. A block `Figure` names it. The
charts are in charts.py."""

from __future__ import annotations

import io
from collections.abc import Sequence
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
    shown = sheet(source, "data.png")[:count]
    arrays = [np.asarray(tile.resize((width, height), Image.Resampling.NEAREST)) for tile in shown]
    pixels = torch.from_numpy(np.stack(arrays)).reshape(len(shown), height, width, channels)
    return to_float(pixels.movedim(-1, 1))


def noised(source: Source, x_0: Tensor, t: float) -> Tensor:
    level = noise_level(SCHEDULES[source.config.schedule], torch.tensor(t, dtype=torch.float64))
    return process.jump(x_0, rng.normal(x_0.shape, 0, "report"), level.alpha, level.sigma)


def show(axis: Axes, x: Tensor | Image.Image) -> None:
    """One image: float (C, H, W), or a tile of a sheet."""
    picture = as_picture(to_uint8(x)) if isinstance(x, Tensor) else x
    axis.imshow(picture, cmap="gray", vmin=0, vmax=255)


def in_rows(
    rows: Sequence[tuple[str, Sequence[Tensor | Image.Image]]],
    titles: Sequence[str] = (),
    height: float = 0.5,
) -> Figure:
    """Rows of images, with words to the left of each, and titles above the columns.

    height: of a row, in inches."""
    columns = max(len(images) for _, images in rows)
    figure = figures.new_figure(7.2, (0.3 if titles else 0.2) + height * len(rows))
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for (words, images), line in zip(rows, axes, strict=True):
        for axis, image in zip(line, images, strict=False):  # a row may be shorter
            show(axis, image)
        line[0].text(
            -0.15, 0.5, words, ha="right", va="center", fontsize=8, transform=line[0].transAxes
        )
    for axis, title in zip(axes[0], titles, strict=False):
        axis.set_title(title, fontsize=8)
    return figure


def sheet(source: Source, name: str) -> list[Image.Image]:
    """The images of one of the run's sheets, row by row."""
    _, height, width = source.about.facts.shape
    with Image.open(io.BytesIO(source.pictures[name])) as whole:
        return tiles(whole, height, width)


@PICTURES.add
def noising(source: Source) -> Figure:
    times, x_0 = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1], examples(source, 3)
    figure = figures.new_figure(7.2, 2.2)
    axes = figure.subplots(len(x_0), len(times), squeeze=False)
    for column, t in enumerate(times):
        x_t = noised(source, x_0, t)
        for row, axis in enumerate(axes[:, column]):
            show(axis, x_t[row])
            axis.set_axis_off()
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
        axis.set_axis_off()
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
    shown, names = sheet(source, "collapse.png"), ("(7)", "(8) as printed", "(8)", "DDIM")
    return in_rows([(name, shown[10 * i : 10 * i + 10]) for i, name in enumerate(names)])


def labelled(source: Source, name: str, titles: list[str]) -> Figure:
    """A sheet of pairs of rows, x_t and below it the denoised image, with words at its sides."""
    shown, count = sheet(source, name), len(titles)
    rows = [shown[i : i + count] for i in range(0, len(shown), count)]
    words = (r"$x_t$", r"$\hat{x}_\theta$")
    return in_rows([(words[i % 2], row) for i, row in enumerate(rows)], titles, 0.58)


@PICTURES.named("noising-printed")
def noising_printed(source: Source) -> Figure:
    rows = mistakes.noising(source.config.schedule, examples(source, 1))
    return in_rows([(words, list(images)) for words, images in rows.items()], height=0.75)


@PICTURES.named("mistakes")
def sampling_mistakes(source: Source) -> Figure:
    rows = mistakes.sampling(source.run.model().denoiser)
    return in_rows([(words, list(images)) for words, images in rows.items()])


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
    return in_rows(
        [(words, sheet(source, f"study-{name}")[:count]) for words, name in named.items()]
    )
