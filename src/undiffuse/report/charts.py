"""The charts that a report draws: curves against the step, the noise level or the network calls.

To add one: a function (source) -> Figure with `@PICTURES.add`. A block `Figure` names it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from undiffuse.diffusion.schedule import SCHEDULES, noise_level
from undiffuse.report import architecture
from undiffuse.report.pictures import PICTURES, by_guidance, images_compared, sampler_names
from undiffuse.report.source import Source
from undiffuse.report.words import sampler_name, shown
from undiffuse.runs import figures
from undiffuse.training.records import StepTaken

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def drawings(source: Source) -> dict[str, Callable[[Source], Figure]]:
    """What draws each picture, by name: those of PICTURES, and two for each study of trainings."""
    found: dict[str, Callable[[Source], Figure]] = {name: PICTURES[name] for name in PICTURES}
    for name in source.trainings:
        found[f"{name}-compared"] = partial(errors_compared, name=name)
        found[f"{name}-images"] = partial(images_compared, name=name)
    return found


@PICTURES.add
def network(source: Source) -> Figure:
    return architecture.drawing(source)


@PICTURES.named("learning-rate")
def learning_rate(source: Source) -> Figure:
    taken = source.of(StepTaken)
    figure = figures.new_figure(4.6, 1.8)
    axis = figure.subplots()
    axis.plot([s.step for s in taken], [s.lr for s in taken], color=figures.COLOURS[1])
    axis.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    return figure


@PICTURES.add
def quality(source: Source) -> Figure:
    """The study `progress`, against the steps below and the epochs and minutes above."""
    study = source.over_time
    assert study is not None
    rows = study["rows"]
    steps, values = [row["step"] for row in rows], [row["frechet"] for row in rows]
    bars = [
        # The axis is logarithmic, and an interval may begin below 0.
        [row["frechet"] - max(row["frechet_low"], row["frechet"] / 10) for row in rows],
        [row["frechet_high"] - row["frechet"] for row in rows],
    ]
    figure = figures.new_figure(5.4, 3.2)
    axis = figure.subplots()
    axis.errorbar(
        steps, values, bars, marker="o", markersize=4, capsize=3, color=figures.COLOURS[1]
    )
    if study["real_frechet"] is not None:
        axis.axhline(study["real_frechet"], color="#111111", linewidth=0.8, label="real images")
        axis.legend(fontsize=8)
    axis.set(yscale="log", xlabel="step", ylabel="Fréchet distance")
    figures.in_decimals(axis)
    epochs = source.config.batch_size / source.about.facts.training

    def scaled(by: float) -> Callable[[Any], Any]:
        return lambda steps: np.asarray(steps) * by

    above = axis.secondary_xaxis("top", functions=(scaled(epochs), scaled(1 / epochs)))
    above.set_xlabel("epochs; minutes of training are written at the points", fontsize=8)
    for row in rows:
        axis.annotate(
            f"{row['minutes']:.1f}", (row["step"], row["frechet_high"]), xytext=(0, 3),
            textcoords="offset points", ha="center", fontsize=7,
        )  # fmt: skip
    return figure


@PICTURES.add
def samplers(source: Source) -> Figure:
    assert source.samplers is not None
    figure = figures.new_figure(7.2, 3.4)
    axis = figure.subplots()
    styles = {
        "posterior-mean": ("v", ":"),
        "ddpm-printed": ("^", "--"),
        "ddpm": ("o", "-"),
        "ddim": ("s", "-."),
        "heun": ("x", (0, (5, 1))),
        "dpmpp-2m": ("D", (0, (3, 1, 1, 1))),
        "dpmpp-2m-sde": ("*", (0, (1, 3))),
    }
    guided, unguided = by_guidance(source.samplers["rows"])
    for number, name in enumerate(sampler_names(unguided)):
        marker, style = styles.get(name, ("P", "-"))
        rows = [row for row in unguided if row["sampler"] == name]
        calls, distance = [row["calls"] for row in rows], [row["frechet"] for row in rows]
        colour = figures.LINES[number % len(figures.LINES)]
        axis.plot(
            calls,
            distance,
            linestyle=style,
            marker=marker,
            markersize=5,
            color=colour,
            label=sampler_name(name),
        )
    for row in guided:
        axis.plot(row["calls"], row["frechet"], "*", color="#111111", label="as on page 1")
    if source.samplers["real_frechet"] is not None:
        axis.axhline(
            source.samplers["real_frechet"], color="#111111", linewidth=0.8, label="real images"
        )
    axis.set(xscale="log", yscale="log", xlabel="network calls an image", ylabel="Fréchet distance")
    axis.set_xticks(sorted({row["calls"] for row in unguided if row["sampler"] != "heun"}))
    axis.set_xticks([], minor=True)
    axis.xaxis.set_major_formatter("{x:g}")
    figures.in_decimals(axis)
    figure.legend(fontsize=9, loc="outside right upper")
    return figure


@PICTURES.named("guidance")
def guidance_compared(source: Source) -> Figure:
    """The study `guidance`: distance, precision and recall against the strength, by method."""
    study = source.guided
    assert study is not None
    figure = figures.new_figure(7.2, 3.0)
    axes = figure.subplots(1, 3)
    methods = dict.fromkeys(row["method"] for row in study["rows"] if row["guidance"] != 1)
    marks, styles = "osDv^*", ["-", "--", "-.", ":", (0, (5, 1))]
    none = next((row for row in study["rows"] if row["guidance"] == 1), None)
    for number, method in enumerate(methods):
        rows = [row for row in study["rows"] if row["method"] == method]
        rows = [*([none] if none and "DDIM" not in method else []), *rows]
        for axis, name in zip(axes, ("frechet", "precision", "recall"), strict=True):
            axis.plot(
                [row["guidance"] for row in rows],
                [row[name] for row in rows],
                marker=marks[number % len(marks)],
                markersize=4,
                linestyle=styles[number % len(styles)],
                color=figures.LINES[number % len(figures.LINES)],
                label=method,
            )
    for axis, name in zip(axes, ("Fréchet distance", "precision", "recall"), strict=True):
        axis.set(xlabel="strength", ylabel=name)
    axes[0].set(yscale="log")
    figures.in_decimals(axes[0])
    figure.legend(
        *axes[0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=3
    )
    return figure


def errors_compared(source: Source, name: str) -> Figure:
    """The errors of each training, relative to the smallest error at the same noise level.

    Dotted lines where the amount of data differs: errors of images that were trained on."""
    study = source.trainings[name]
    rows = [row for row in study["rows"] if row["seed"] == study["rows"][0]["seed"]]
    smallest = [min(errors) for errors in zip(*(row["unseen"] for row in rows), strict=True)]
    figure = figures.new_figure(5.4, 3.0)
    axis = figure.subplots()
    styles = ["-", "--", "-.", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1))]
    for number, row in enumerate(rows):
        look: dict[str, Any] = {
            "color": figures.LINES[number % len(figures.LINES)],
            "linewidth": 1.4,
        }
        relative = [error / least for error, least in zip(row["unseen"], smallest, strict=True)]
        axis.plot(
            row["levels"],
            relative,
            linestyle=styles[number % len(styles)],
            label=shown(study["field"], row["value"]),
            **look,
        )
        if study["field"] == "subset":
            relative = [error / least for error, least in zip(row["seen"], smallest, strict=True)]
            axis.plot(row["levels"], relative, linestyle=":", **look)
    axis.set(xlabel="log SNR", ylabel="error, relative to the smallest", yscale="log")
    figures.in_decimals(axis)
    axis.legend(fontsize=8, title=study["field"], title_fontsize=8)
    return figure


@PICTURES.add
def schedules(source: Source) -> Figure:
    own = source.config.schedule
    t = torch.linspace(0, 1, 400, dtype=torch.float64)[1:]
    figure = figures.new_figure(7.2, 2.9)
    left, right = figure.subplots(1, 2)
    styles = ["-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1))]
    names = [name for name in SCHEDULES if name != own.partition(":")[0]] + [own]
    for number, name in enumerate(names):
        style = "-" if name == own else styles[1 + number % (len(styles) - 1)]
        level = noise_level(SCHEDULES[name], t)
        width = 2.6 if name == own else 1.2
        look: dict[str, Any] = {"color": figures.LINES[number % len(figures.LINES)], "lw": width}
        left.plot(
            t,
            level.alpha**2 / (level.alpha**2 + level.sigma**2),
            linestyle=style,
            label=f"{name} (this run)" if name == own else name,
            **look,
        )
        right.plot(t, level.log_snr, linestyle=style, **look)
    left.set(xlabel="t", ylabel=r"$\bar\alpha$")
    right.set(xlabel="t", ylabel="log SNR")
    left.legend(fontsize=8)
    return figure
