"""The stages of a network, found by running it on the device `meta`, and a drawing of them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from undiffuse.base.lazy import lazy
from undiffuse.runs import figures

if TYPE_CHECKING:
    from matplotlib import patches
    from matplotlib.figure import Figure

    from undiffuse.report.source import Source
else:
    patches = lazy("matplotlib.patches")


@dataclass(frozen=True)
class Stage:
    """A part of a network that gives an image or tokens.

    name: of the module. parts: what it contains, such as ("ResidualBlock", "Attention"). shape: of
    what it gives, without the batch: (C, H, W), or (tokens, C)."""

    name: str
    parts: tuple[str, ...]
    shape: tuple[int, ...]

    @property
    def pixels(self) -> int:
        """How many pixels or tokens it gives."""
        return self.shape[1] * self.shape[2] if len(self.shape) == 3 else self.shape[0]


def stages(source: Source) -> list[Stage]:
    """The stages of the run's network in the order in which they are computed.

    A stage is a child of the network, or a child of one of its lists, that gives an image (B, C, H,
    W) or tokens (B, N, C) and has weights."""
    found, children = list[Stage](), list[tuple[str, nn.Module]]()
    for name, child in source.network.named_children():
        if type(child) is nn.ModuleList:
            children += [(f"{name}.{key}", part) for key, part in child.named_children()]
        else:
            children.append((name, child))

    def note(name: str, module: nn.Module, out: Any) -> None:
        out = out[0] if isinstance(out, tuple) else out
        has_weights = next(module.parameters(), None) is not None
        if isinstance(out, Tensor) and out.ndim in (3, 4) and has_weights:
            inner = tuple(type(part).__name__ for part in module.children())
            found.append(Stage(name, inner or (type(module).__name__,), tuple(out.shape[1:])))

    hooks = [
        module.register_forward_hook(lambda module, _, out, name=name: note(name, module, out))
        for name, module in children
    ]
    try:
        source.run_network()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def drawing(source: Source) -> Figure:
    """A box for each stage, lower where it works on fewer pixels, with arrows between them."""
    found = stages(source)
    levels = sorted({stage.pixels for stage in found}, reverse=True)
    figure = figures.new_figure(7.2, 0.9 + 0.75 * len(levels))
    axis = figure.subplots()
    axis.set(xlim=(-0.6, len(found) - 0.4), ylim=(-len(levels) + 0.35, 0.75))
    axis.set_axis_off()
    places = [(i, -levels.index(stage.pixels)) for i, stage in enumerate(found)]
    for (x, y), stage in zip(places, found, strict=True):
        box = patches.FancyBboxPatch(
            (x - 0.43, y - 0.3), 0.86, 0.6, boxstyle="round,pad=0,rounding_size=0.05",
            facecolor="#e6edf4", edgecolor=figures.COLOURS[1],
        )  # fmt: skip
        axis.add_patch(box)
        size = " x ".join(map(str, stage.shape))
        axis.text(x, y, f"{stage.name}\n{size}", ha="center", va="center", fontsize=5.8)
    for (x, y), (next_x, next_y) in pairwise(places):
        arrow(axis, (x + 0.43, y), (next_x - 0.43, next_y), "-", 0.0)
    for i, j in skips(found):
        (x, y), (to_x, _) = places[i], places[j]
        arrow(axis, (x + 0.1, y + 0.3), (to_x - 0.1, y + 0.3), "--", -0.25)
    return figure


def arrow(
    axis: Any, start: tuple[float, float], end: tuple[float, float], style: str, bend: float
) -> None:
    drawn = patches.FancyArrowPatch(
        start, end, arrowstyle="-|>", mutation_scale=8, linestyle=style,
        color=figures.COLOURS[2 if bend else 1], connectionstyle=f"arc3,rad={bend}",
    )  # fmt: skip
    axis.add_patch(drawn)


def skips(found: list[Stage]) -> list[tuple[int, int]]:
    """The pairs of stages, one on the way down and one on the way up, of the same resolution.

    A network has these if its lists are called `down...` and `up...`."""
    down = {s.pixels: i for i, s in enumerate(found) if s.name.startswith(("down.", "down_"))}
    up = {s.pixels: i for i, s in reversed(list(enumerate(found))) if s.name.startswith("up.")}
    return [(i, up[pixels]) for pixels, i in down.items() if up.get(pixels, -1) > i + 1]
