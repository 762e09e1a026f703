"""What the terminal shows of a session: a live line where there is a terminal, a line now and then where there is none."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table

FIGURES = {
    "frechet": "Frechet distance to the training images",
    "frechet_to_test": "Frechet distance to the test images",
    "kid": "kernel distance (KID)",
    "precision": "precision (k = 3)",
    "recall": "recall (k = 3)",
    "density": "density (k = 5)",
    "coverage": "coverage (k = 5)",
    "class_balance": "class balance: total variation from the data's",
    "confidence": "classifier's mean confidence",
    "unsure": "share of images it is less than 90% sure of",
    "label_agreement": "share with the label that was asked for",
    "train_on_synthetic": "accuracy of a classifier trained on them",
}


def scores(found: dict[str, Any]) -> Group:
    """The content of metrics.json for the terminal: each figure, its 95% interval, and the same of real images."""
    table = Table(
        "figure",
        "value",
        "95% interval",
        f"real ({found['reference']['control']})",
        box=box.SIMPLE_HEAD,
    )

    def number(x: float | None) -> str:
        return "-" if x is None else f"{x:.4g}"

    def row(name: str, figure: dict[str, Any], control: float | None) -> None:
        interval = f"{number(figure['low'])} to {number(figure['high'])}"
        table.add_row(name, number(figure["value"]), interval, number(control))

    for key, name in FIGURES.items():
        if key in found:
            row(name, found[key], found[key].get("floor", found[key].get("control")))
        if key == "frechet" and key in found:
            ratio = {
                name: found[key][f"ratio{part}"]
                for name, part in (("value", ""), ("low", "_low"), ("high", "_high"))
            }
            row("  over that of real images, its floor", ratio, 1)
    lines = []
    bits = found.get("bits_per_dim")
    if bits:
        row(
            f"bits/dim, test: bound of the {bits['chain']}-step chain",
            {**bits, "value": bits["test"]},
            None,
        )
        row("  training images", bits["training"], None)
        row(
            f"  continuous-time bound, {bits['continuous']['n']:,} test images",
            {**bits["continuous"], "value": bits["continuous"]["test"]},
            None,
        )
        if "ode" in bits:
            row(
                "  probability-flow ODE, test (another model)",
                {**bits["ode"], "value": bits["ode"]["test"]},
                None,
            )
        lines.append(f"the bound is that of {bits['assumes']}")
        if "ode" in bits:
            lines.append(f"the ODE's is that of {bits['ode']['assumes']}: neither bounds the other")
    audit = found.get("novelty")
    if audit:
        for what in ("pixels", "features"):
            if what in audit:
                near, c_t = audit[what]["nearer"], audit[what]["c_t"]
                row(
                    f"share nearer to training images than 99% of real ones, {what}",
                    near,
                    near["control"],
                )
                table.add_row(
                    f"C_T, {what} (far below 0: copies)",
                    number(c_t["value"]),
                    "",
                    number(c_t["control"]),
                )
        verdict = (
            "ALARM: some images are copies of training images"
            if audit["alarm"]
            else f"no copies found; {audit['detectable']:.2%} of them would have been"
        )
        lines.append(
            f"novelty: {verdict} (d1/d2 below {audit['threshold']:.3f}: {audit['share']:.2%} of them, {audit['expected']:.2%} of real ones; p = {audit['p_value']:.2g})"
        )
    lines += [f"note: {warning}" for warning in found["warnings"]]
    lines += [f"not given: {name}, as {why}" for name, why in found["missing"].items()]
    return Group(table, *lines)
