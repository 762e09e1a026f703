"""Figures of a run, as PNG files: loss.png, timeline.png, data.png and bits.png."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from undiffuse.base.errors import UserError
from undiffuse.base.images import columns_for, image_grid, png_bytes, tiles
from undiffuse.base.lazy import lazy
from undiffuse.runs.folder import Run
from undiffuse.training.records import Quality, Snapshot, StepTaken, Validation

if TYPE_CHECKING:
    from matplotlib import figure, style, ticker
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from undiffuse.data.dataset import Dataset

else:  # a setting that matplotlib refuses must not keep a run from being trained
    figure, style = lazy("matplotlib.figure"), lazy("matplotlib.style")
    ticker = lazy("matplotlib.ticker")

COLOURS = ("#9ab3c9", "#1f4e79", "#c8501e")  # of different brightness, for prints in grey

LINES = ("#1f4e79", "#c8501e", "#2a8a57", "#8448b0", "#a67c00", "#555555", "#c2427e")
"""The colours of several lines in one chart. Their styles differ too, for prints in grey."""

MOST_LINES = 5
"""The most lines in the chart of the loss by noise level."""


class NotDrawn(UserError):
    """A figure could not be drawn."""


@contextmanager
def own_style() -> Iterator[None]:
    """A context, and a decorator, in which figures have matplotlib's own defaults.

    The user's settings do not reach them, and they stay as they are. Raises NotDrawn where
    matplotlib cannot draw."""
    try:
        with style.context("default"):
            yield
    except UserError:
        raise
    except Exception as error:  # whatever matplotlib or its settings raise
        what = " ".join(str(error).split()) or type(error).__name__
        raise NotDrawn(f"matplotlib cannot draw here ({what}); check its settings") from error


def new_figure(width: float, height: float) -> Figure:
    """A matplotlib figure, width x height inches. It needs no display and no global state."""
    return figure.Figure(figsize=(width, height), layout="constrained", dpi=120)


def png(drawn: Figure) -> bytes:
    """The figure as a PNG file."""
    out = io.BytesIO()
    drawn.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def in_decimals(axis: Axes) -> None:
    """Label the logarithmic y axis with numbers such as 0.05, not with powers of ten."""
    low, high = axis.get_ylim()
    axis.yaxis.set_major_locator(
        ticker.LogLocator(
            subs=(1, 2, 5) if high > 3 * low else (*range(1, 10), 1.1, 1.2, 1.3, 1.4, 1.5)
        )
    )
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(ticker.NullFormatter())


@own_style()
def loss_curve(run: Run) -> None:
    """Write loss.png: the losses by step, the loss by noise level, and the quality by step.

    The panel of quality is left out where the run measured none."""
    steps, validations, qualities = run.of(StepTaken), run.of(Validation), run.of(Quality)
    drawn = new_figure(7.2, 4.7 if qualities else 2.9)
    panels = drawn.subplot_mosaic("LR;QQ" if qualities else "LR")
    losses_by_step(panels["L"], steps, validations)
    loss_by_level(panels["R"], validations)
    if qualities:
        quality_by_step(panels["Q"], qualities)
    for axis in panels.values():
        in_decimals(axis)
    run.write("loss.png", png(drawn))


def losses_by_step(axis: Axes, steps: list[StepTaken], validations: list[Validation]) -> None:
    """Plot the training loss of each step, its running mean, and the held-out loss."""
    x, y = np.array([e.step for e in steps]), np.array([e.loss for e in steps])
    window = max(1, len(y) // 50)
    axis.plot(x, y, color=COLOURS[0], linewidth=0.6, label="training loss of a step")
    if len(y) > window:
        smooth = np.convolve(y, np.ones(window) / window, mode="valid")
        axis.plot(x[window - 1 :], smooth, color=COLOURS[1], label=f"mean of {window} steps")
    if validations:
        at, loss = [e.step for e in validations], [e.loss for e in validations]
        axis.plot(at, loss, "o-", color=COLOURS[2], markersize=3, label="held-out images")
    axis.set(xlabel="step", ylabel="weighted loss", yscale="log", title="Loss")
    axis.legend(fontsize=8)


def loss_by_level(axis: Axes, validations: list[Validation]) -> None:
    """Plot the held-out loss by log-SNR: a line for some of the validations, the last one black."""
    found = [e for e in validations if e.step > 0] or validations
    places = np.linspace(0, len(found) - 1, min(MOST_LINES, len(found))).round().astype(int)
    for i, place in enumerate(dict.fromkeys(places.tolist())):
        levels = sorted(found[place].levels)
        log_snr, loss = [at for at, _ in levels], [value for _, value in levels]
        last = found[place] is found[-1]
        colour = "#000000" if last else LINES[i % len(LINES)]
        axis.plot(log_snr, loss, ".-", color=colour, label=f"step {found[place].step:,}")
    axis.set(
        xlabel="log-SNR (left: noise, right: image)",
        ylabel="held-out loss",
        yscale="log",
        title="Loss by noise level",
    )
    if found:
        axis.legend(fontsize=8)
    else:
        axis.text(0.5, 0.5, "no held-out images", ha="center", transform=axis.transAxes)


def quality_by_step(axis: Axes, qualities: list[Quality]) -> None:
    """Plot the Frechet distance of quick samples by step, and its floor."""
    at, distance = [e.step for e in qualities], [e.frechet for e in qualities]
    axis.plot(at, distance, "o-", color=COLOURS[1], label="samples")
    floor = qualities[0].floor
    axis.axhline(floor, color=COLOURS[2], linestyle="--", label="floor: as many real images")
    axis.set(
        xlabel="step",
        ylabel="Fréchet distance",
        yscale="log",
        title=f"Quality of {qualities[0].n:,} quick samples",
    )
    axis.legend(fontsize=8)


def examples(training: Dataset, classes: tuple[str, ...], count: int = 40) -> bytes:
    """The content of data.png: some training images, with a column for each of few classes."""
    columns = columns_for(count, len(classes))
    chosen = torch.arange(min(count, len(training)))
    if training.labels is not None and len(classes) > 1 and columns % len(classes) == 0:
        each = count // len(classes)
        of_class = [(training.labels == label).nonzero()[:each, 0] for label in range(len(classes))]
        rows = range(min(len(own) for own in of_class))
        chosen = (
            torch.tensor([own[row] for row in rows for own in of_class], dtype=torch.long)
            if rows
            else chosen
        )
    return png_bytes(image_grid(training.read(chosen), columns))


@own_style()
def timeline(run: Run, each: int = 10) -> None:
    """Write timeline.png: a row for each snapshot, with its first `each` images.

    All snapshots start from the same noise."""
    _, height, width = run.about().facts.shape
    rows = []
    for event in run.of(Snapshot):
        if not (run.path / event.file).is_file():
            continue  # a removed picture must not keep the run from finishing
        with Image.open(run.path / event.file) as sheet:
            rows.append((event.step, tiles(sheet, height, width)[:each]))
    if not rows:
        return
    drawn = new_figure(0.5 * each + 1.2, 0.5 * len(rows) + 0.5)
    axes = drawn.subplots(len(rows), each, squeeze=False)
    for row, (step, shown) in zip(axes, rows, strict=True):
        for axis in row:
            axis.set_axis_off()
        for axis, tile in zip(row, shown, strict=False):
            axis.imshow(tile, cmap="gray", vmin=0, vmax=255)
        row[0].text(
            -0.15,
            0.5,
            f"step {step:,}",
            ha="right",
            va="center",
            fontsize=10,
            transform=row[0].transAxes,
        )
    drawn.suptitle("The same noise, as training goes on", fontsize=11)
    run.write("timeline.png", png(drawn))


@own_style()
def bits_by_level(found: dict[str, Any]) -> bytes:
    """The content of bits.png: the bits of the bound by noise level.

    found: `bits_per_dim` of metrics.json."""
    drawn = new_figure(5.2, 3.2)
    axis = drawn.subplots()
    levels = [level for level, *_ in found["levels"]]
    bits = [bit for _, bit, _ in found["levels"]]
    axis.fill_between(levels, bits, color=COLOURS[0])
    axis.plot(levels, bits, ".-", color=COLOURS[1])
    terms = ", ".join(
        f"{name} {found[name]['value']:.3f}" for name in ("prior", "diffusion", "reconstruction")
    )
    axis.set(
        xlabel="log-SNR (left: noise, right: image)",
        ylabel="bits/dim per unit of log-SNR",
        title=f"{found['test']:.3f} bits/dim on test images:\n{terms}",
        ylim=(0, None),
    )
    axis.title.set_fontsize(9)
    return png(drawn)
