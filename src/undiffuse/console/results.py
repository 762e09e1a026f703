"""The figures of metrics.json as a table, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

from rich import box
from rich.console import Group
from rich.table import Table

from undiffuse.measuring.quality import METRICS, metric_of

Row: TypeAlias = tuple[str, str, str, str]


def figures_table(found: dict[str, Any]) -> Group:
    """A table of the figures, their 95% intervals and their controls. Remarks follow it.

    found: the content of metrics.json."""
    control = f"real ({found['reference']['control']})"
    table = Table("figure", "value", "95% interval", control, box=box.SIMPLE_HEAD)
    for rows in (quality_rows, bits_rows, novelty_rows):
        for row in rows(found):
            table.add_row(*row)
    return Group(table, *remarks(found))


def number(x: float | None) -> str:
    """A number with 4 significant digits; "-" for None."""
    return "-" if x is None else f"{x:.4g}"


def row(name: str, figure: dict[str, Any], control: float | None = None) -> Row:
    """The row of a figure that has `value`, `low` and `high`."""
    interval = f"{number(figure['low'])} to {number(figure['high'])}"
    return name, number(figure["value"]), interval, number(control)


def quality_rows(found: dict[str, Any]) -> Iterator[Row]:
    """The rows of the metrics of quality."""
    for name in filter(found.__contains__, METRICS):
        figure = found[name]
        yield row(metric_of(name).heading, figure, figure.get("floor", figure.get("control")))
        if "ratio" in figure:
            ratio = {"value": figure["ratio"], "low": figure["ratio_low"]}
            high = {"high": figure["ratio_high"]}
            yield row("  divided by that of real images (the floor)", ratio | high, 1)


def bits_rows(found: dict[str, Any]) -> Iterator[Row]:
    """The rows of the likelihood."""
    bits = found.get("bits_per_dim")
    if not bits:
        return
    of_test = {**bits, "value": bits["test"]}
    yield row(f"bits/dim, test: bound of the {bits['chain']}-step chain", of_test)
    yield row("  training images", bits["training"])
    continuous = {**bits["continuous"], "value": bits["continuous"]["test"]}
    yield row(f"  continuous-time bound, {continuous['n']:,} test images", continuous)
    if "ode" in bits:
        ode = {**bits["ode"], "value": bits["ode"]["test"]}
        yield row("  probability-flow ODE, test (another model)", ode)


def novelty_rows(found: dict[str, Any]) -> Iterator[Row]:
    """The rows of the audit for copies."""
    audit = found.get("novelty") or {}
    for what in ("pixels", "features"):
        if what not in audit:
            continue
        near, c_t = audit[what]["nearer"], audit[what]["c_t"]
        name = f"share nearer to training images than 99% of real images, {what}"
        yield row(name, near, near["control"])
        values = number(c_t["value"]), "", number(c_t["control"])
        yield f"C_T, {what} (far below 0: copies)", *values


def remarks(found: dict[str, Any]) -> Iterator[str]:
    """The assumptions, the audit's verdict, the warnings and what was not measured."""
    if bits := found.get("bits_per_dim"):
        yield f"the bound assumes {bits['assumes']}"
        if "ode" in bits:
            yield f"the ODE assumes {bits['ode']['assumes']}"
            yield "the ODE is another model of the images, so neither value bounds the other"
    if audit := found.get("novelty"):
        verdict = (
            "ALARM: some images are copies of training images"
            if audit["alarm"]
            else f"no copies found; copies are found from a share of {audit['detectable']:.2%} on"
        )
        yield (
            f"novelty: {verdict} (d1/d2 below {audit['threshold']:.3f}: {audit['share']:.2%} of "
            f"generated and {audit['expected']:.2%} of real images; p = {audit['p_value']:.2g})"
        )
    yield from (f"note: {warning}" for warning in found["warnings"])
    yield from (f"not measured: {name}, because {why}" for name, why in found["missing"].items())
