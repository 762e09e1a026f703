"""The figures of metrics.json, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

from rich import box
from rich.console import Group
from rich.table import Table

from undiffuse.measuring.quality import METRICS, metric_of

Row: TypeAlias = tuple[str, str, str, str]


def figures_table(found: dict[str, Any]) -> Group:
    """Each figure, its 95% interval, and the same of real images; then what is to be said."""
    control = f"real ({found['reference']['control']})"
    table = Table("figure", "value", "95% interval", control, box=box.SIMPLE_HEAD)
    for rows in (quality_rows, bits_rows, novelty_rows):
        for row in rows(found):
            table.add_row(*row)
    return Group(table, *remarks(found))


def number(x: float | None) -> str:
    return "-" if x is None else f"{x:.4g}"


def row(name: str, figure: dict[str, Any], control: float | None = None) -> Row:
    interval = f"{number(figure['low'])} to {number(figure['high'])}"
    return name, number(figure["value"]), interval, number(control)


def quality_rows(found: dict[str, Any]) -> Iterator[Row]:
    for name in filter(found.__contains__, METRICS):
        figure = found[name]
        yield row(metric_of(name).heading, figure, figure.get("floor", figure.get("control")))
        if "ratio" in figure:
            ratio = {"value": figure["ratio"], "low": figure["ratio_low"]}
            high = {"high": figure["ratio_high"]}
            yield row("  over that of real images, its floor", ratio | high, 1)


def bits_rows(found: dict[str, Any]) -> Iterator[Row]:
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
    audit = found.get("novelty") or {}
    for what in ("pixels", "features"):
        if what not in audit:
            continue
        near, c_t = audit[what]["nearer"], audit[what]["c_t"]
        name = f"share nearer to training images than 99% of real ones, {what}"
        yield row(name, near, near["control"])
        values = number(c_t["value"]), "", number(c_t["control"])
        yield f"C_T, {what} (far below 0: copies)", *values


def remarks(found: dict[str, Any]) -> Iterator[str]:
    """What is to be said of the figures."""
    if bits := found.get("bits_per_dim"):
        yield f"the bound is that of {bits['assumes']}"
        if "ode" in bits:
            yield f"the ODE's is that of {bits['ode']['assumes']}: neither bounds the other"
    if audit := found.get("novelty"):
        verdict = (
            "ALARM: some images are copies of training images"
            if audit["alarm"]
            else f"no copies found; {audit['detectable']:.2%} of them would have been"
        )
        yield (
            f"novelty: {verdict} (d1/d2 below {audit['threshold']:.3f}: {audit['share']:.2%} of "
            f"them, {audit['expected']:.2%} of real ones; p = {audit['p_value']:.2g})"
        )
    yield from (f"note: {warning}" for warning in found["warnings"])
    yield from (f"not given: {name}, as {why}" for name, why in found["missing"].items())
