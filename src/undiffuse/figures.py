"""Figures of a run, drawn from its folder: the loss curve, and the timeline of samples."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from undiffuse import images
from undiffuse.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#9ab3c9", "#1f4e79", "#c8501e")  # told apart in grey too


def new_figure(width: float, height: float) -> Figure:
    """A figure without a window: no global state, no display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=120)


def save(run: Run, name: str, figure: Figure) -> None:
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    run.write(name, out.getvalue())


def loss_curve(run: Run) -> None:
    """loss.png: the training loss of each step and its running mean, the validation loss, and that by noise level."""
    import numpy as np

    steps = run.events("step")
    validations = run.events("validation")
    figure = new_figure(9, 3.6)
    left, right = figure.subplots(1, 2)
    x = np.array([e["step"] for e in steps])
    y = np.array([e["loss"] for e in steps])
    window = max(1, len(y) // 50)
    left.plot(x, y, color=COLOURS[0], linewidth=0.6, label="training loss of a step")
    if len(y) > window:
        smooth = np.convolve(y, np.ones(window) / window, mode="valid")
        left.plot(x[window - 1 :], smooth, color=COLOURS[1], label=f"mean of {window} steps")
    if validations:
        left.plot(
            [e["step"] for e in validations],
            [e["loss"] for e in validations],
            "o-",
            color=COLOURS[2],
            markersize=3,
            label="held-out images",
        )
    left.set(xlabel="step", ylabel="loss (6)", yscale="log", title="Loss")
    left.legend(fontsize=8)
    shown = [e for e in validations if e["step"] > 0] or validations
    for i, event in enumerate(shown):
        levels = sorted(event["levels"])
        shade = str(round(0.85 - 0.85 * (i + 1) / len(shown), 3))
        ends = i in (0, len(shown) - 1)
        right.plot(
            [a for a, _ in levels],
            [b for _, b in levels],
            ".-",
            color=shade,
            label=f"step {event['step']}" if ends else None,
        )
    right.set(
        xlabel="log-SNR (left: noise, right: image)", ylabel="held-out loss", yscale="log", title="Loss by noise level"
    )
    if shown:
        right.legend(fontsize=8)
    else:
        right.text(0.5, 0.5, "no held-out images", ha="center", transform=right.transAxes)
    save(run, "loss.png", figure)


def timeline(run: Run, each: int = 10) -> None:
    """timeline.png: the first images of every snapshot, a row a snapshot: the same noise, as training goes on."""
    from PIL import Image

    _, height, width = run.about().facts.shape
    rows = []
    for event in run.events("snapshot"):
        with Image.open(run.path / event["file"]) as sheet:
            rows.append((event["step"], images.tiles(sheet, height, width)[:each]))
    figure = new_figure(0.62 * each + 1.2, 0.62 * len(rows) + 0.5)
    axes = figure.subplots(len(rows), each, squeeze=False)
    for row, (step, tiles) in zip(axes, rows, strict=True):
        for axis in row:
            axis.set_axis_off()
        for axis, tile in zip(row, tiles, strict=False):
            axis.imshow(tile, cmap="gray", vmin=0, vmax=255)
        row[0].text(-0.15, 0.5, f"step {step:,}", ha="right", va="center", fontsize=8, transform=row[0].transAxes)
    figure.suptitle("The same noise, as training goes on", fontsize=10)
    save(run, "timeline.png", figure)
