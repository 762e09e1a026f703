"""The studies of trainings: schedules, predictions, or amounts of data, with one training each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from undiffuse.report.blocks import Block, Figure, Heading, Missing, Table, Text, coded
from undiffuse.report.source import Source
from undiffuse.report.words import STUDY_NAMES, distance, number

LEVELS = (-4, 0, 4)
"""The table has the errors at these log-SNRs. The figure has them at all levels."""


def section(source: Source) -> Iterator[Block]:
    yield Heading(1, "Other choices compared")
    if not source.trainings:
        yield Missing(
            "Other schedules have not been tried, nor other predictions or amounts of data "
            "(studies of those are `predictions` and `subset`).",
            source.run.command_for("study", "schedules"),
        )
    for name, study in source.trainings.items():
        if study["rows"]:
            yield from comparison(name, study)
        else:
            yield Missing(
                f"The comparison of {STUDY_NAMES[name]} has only begun.",
                source.run.command_for("study", name),
            )


def comparison(name: str, study: dict[str, Any]) -> Iterator[Block]:
    """One study, which has rows."""
    rows, what = study["rows"], STUDY_NAMES[name]
    scored = all("frechet" in row for row in rows)
    audited = name == "subset" and all("near" in row for row in rows)
    yield Heading(2, f"Comparing {what}")
    yield introduction(study, scored, audited)
    yield table(study, scored, audited)
    dotted = " Dotted: of images that were trained on." if name == "subset" else ""
    yield Figure(
        f"{name}-compared",
        f"Errors of the guess, relative to the smallest of all at each noise level.{dotted}",
        f"Curves of the error against the log-SNR, one for each of the {what}.",
        0.75,
    )
    first = [row for row in rows if row["seed"] == rows[0]["seed"]]
    seed = f" with seed {rows[0]['seed']}" if len(first) < len(rows) else ""
    yield Figure(
        f"{name}-images",
        f"The same noises, drawn after each training{seed}.",
        f"Rows of drawn images, a row for each of the {what}.",
    )
    if scored and len(first) > 1:
        yield Text(best_of(study))


def introduction(study: dict[str, Any], scored: bool, audited: bool) -> Text:
    """scored and audited: whether all rows have distances, and shares of near images."""
    also = "".join(
        f", with {coded(field)} {coded(value)}" for field, value in study["also"].items()
    )
    words = (
        f"Each was trained for {study['minutes_each']:.1f} minutes, with this run's other "
        f"hyperparameters{also}. Losses of different schedules and predictions are not the same "
        "thing, so what is compared is the mean squared error of the guess $hat(x)_0$ at given "
        "noise levels (log SNR), of images that were not trained on, with the same noise in all "
        "rows"
    )
    if scored:
        floor = study["rows"][0].get("floor")
        real = f" (as many real ones have {number(floor)})" if floor else ""
        words += f", and the Fréchet distance of 1,000 drawn images{real}"
    words += "."
    if audited:
        words += (
            " _Near_ is the share of drawn images that are suspiciously near to one training "
            "image, and not to others, and in brackets that of real ones."
        )
    return Text(words)


def table(study: dict[str, Any], scored: bool, audited: bool) -> Table:
    """A row for each training."""
    levels = study["rows"][0]["levels"]
    shown = [i for i, level in enumerate(levels) if level in LEVELS]

    def cells(row: dict[str, Any]) -> Iterator[str]:
        yield "all" if row["value"] is None else coded(row["value"])
        yield str(row["seed"])
        yield f"{row['steps']:,}"
        yield from (f"{row['unseen'][i]:.4f}" for i in shown)
        if scored:
            yield from distance(row)
        if audited:
            copies = ", copies" if row["copies"] else ""
            yield f"{row['near']:.1%} ({row['near_expected']:.1%}){copies}"

    header = (
        study["field"],
        "seed",
        "steps",
        *(f"error at {levels[i]:g}" for i in shown),
        *(("Fréchet distance", "95% interval") if scored else ()),
        *(("near",) if audited else ()),
    )
    return Table(
        header,
        [tuple(cells(row)) for row in study["rows"]],
        "The same budget for each. Intervals say what other draws of images would give; another "
        "seed of training can differ by more.",
        tuple(range(1, len(header))),
    )


def best_of(study: dict[str, Any]) -> str:
    """Which value has the smallest mean distance over its seeds, and which may be as good."""
    by_value: dict[Any, list[dict[str, Any]]] = {}
    for row in study["rows"]:
        by_value.setdefault(row["value"], []).append(row)
    mean = {
        value: sum(row["frechet"] for row in rows) / len(rows) for value, rows in by_value.items()
    }

    def named(value: Any) -> str:
        return "all of the data" if value is None else coded(value)

    best = min(mean, key=lambda value: mean[value])
    top = max(row["frechet_high"] for row in by_value[best])
    lowest = {value: min(row["frechet_low"] for row in rows) for value, rows in by_value.items()}
    close = [value for value, low in lowest.items() if value != best and low <= top]
    doubt = f"These draws cannot tell it from {', '.join(map(named, close))}."
    return (
        f"The smallest Fréchet distance, {number(mean[best])}, is that of {named(best)}. "
        f"{doubt if close else 'No other comes as near.'}"
    )
