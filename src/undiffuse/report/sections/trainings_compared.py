"""The studies of trainings: schedules, predictions, or amounts of data, with one training each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from undiffuse.report.blocks import Block, Figure, Heading, Missing, Table, Text, coded, plain
from undiffuse.report.source import Source
from undiffuse.report.words import distance, number, shown, study_name

LEVELS = (-4, 0, 4)
"""The table has the errors at these log-SNRs. The figure has them at all levels."""


def section(source: Source) -> Iterator[Block]:
    if source.trainings:
        yield Heading(1, "Other choices compared")
    for name, study in source.trainings.items():
        if study["rows"]:
            yield from comparison(name, study)
        else:
            yield Missing(
                f"The comparison of {plain(study_name(name))} has only begun.",
                source.run.command_for("study", name),
            )


def comparison(name: str, study: dict[str, Any]) -> Iterator[Block]:
    """One study, which has rows."""
    rows, what = study["rows"], study_name(name)
    sizes = study["field"] == "subset"
    scored = all("frechet" in row for row in rows)
    audited = sizes and all("near" in row for row in rows)
    yield Heading(2, f"Comparing {plain(what)}")
    yield introduction(study, scored, audited)
    yield table(study, scored, audited)
    dotted = " Dotted: of images that were trained on." if sizes else ""
    yield Figure(
        f"{name}-compared",
        "Errors of the denoised image, relative to the smallest of all at each noise level."
        f"{dotted}",
        f"Curves of the error against the log-SNR, one for each of the {what}.",
        0.75,
    )
    first = [row for row in rows if row["seed"] == rows[0]["seed"]]
    seed = f" with seed {rows[0]['seed']}" if len(first) < len(rows) else ""
    yield Figure(
        f"{name}-images",
        f"Samples from the same noises after each training{seed}.",
        f"Rows of samples, a row for each of the {what}.",
    )
    if scored and len(first) > 1:
        yield Text(best_of(study))


def introduction(study: dict[str, Any], scored: bool, audited: bool) -> Text:
    """scored and audited: whether all rows have distances, and shares of near images."""
    also = "".join(
        f", with {coded(field.replace('_', '-'))} {coded(shown(field, value))}"
        for field, value in study["also"].items()
    )
    words = (
        f"Each was trained for {study['minutes_each']:.1f} minutes, with this run's other "
        f"hyperparameters{also}. Losses of different schedules and predictions are not the same "
        "thing, so what is compared is the mean squared error of the denoised image $hat(x)_0$ at "
        "given noise levels (log SNR), of images that were not trained on, with the same noise in "
        "all rows"
    )
    if scored:
        floor = study["rows"][0].get("floor")
        real = f" (as many real ones have {number(floor)})" if floor else ""
        words += f", and the Fréchet distance of 1,000 samples{real}"
    words += "."
    if audited:
        words += (
            " _Near_ is the share of samples that are suspiciously near to one training "
            "image, and not to others, and in brackets that of real ones."
        )
    return Text(words)


def table(study: dict[str, Any], scored: bool, audited: bool) -> Table:
    """A row for each training."""
    levels = study["rows"][0]["levels"]
    columns = [i for i, level in enumerate(levels) if level in LEVELS]

    def cells(row: dict[str, Any]) -> Iterator[str]:
        words = shown(study["field"], row["value"])
        yield plain(words) if row["value"] is None else coded(words)
        yield str(row["seed"])
        yield f"{row['steps']:,}"
        yield from (f"{row['unseen'][i]:.4f}" for i in columns)
        if scored:
            yield from distance(row)
        if audited:
            copies = ", copies" if row["copies"] else ""
            yield f"{row['near']:.1%} ({row['near_expected']:.1%}){copies}"

    header = (
        plain(study["field"].replace("_", "-")),
        "seed",
        "steps",
        *(f"error at {levels[i]:g}" for i in columns),
        *(("Fréchet distance", "95% interval") if scored else ()),
        *(("near",) if audited else ()),
    )
    return Table(
        header,
        [tuple(cells(row)) for row in study["rows"]],
        "The same budget for each. Intervals say what other samples would give; another "
        "seed of training can differ by more.",
        tuple(range(1, len(header))),
    )


def best_of(study: dict[str, Any]) -> str:
    """Which value has the smallest mean distance over its seeds, and which may be as good."""
    field = study["field"]
    by_value: dict[Any, list[dict[str, Any]]] = {}
    for row in study["rows"]:
        by_value.setdefault(row["value"], []).append(row)
    mean = {
        value: sum(row["frechet"] for row in rows) / len(rows) for value, rows in by_value.items()
    }

    def named(value: Any) -> str:
        if value is not None:
            return coded(shown(field, value))
        return "all of the data" if field == "subset" else plain(shown(field, None))

    best = min(mean, key=lambda value: mean[value])
    top = max(row["frechet_high"] for row in by_value[best])
    lowest = {value: min(row["frechet_low"] for row in rows) for value, rows in by_value.items()}
    close = [value for value, low in lowest.items() if value != best and low <= top]
    doubt = f"These samples cannot tell it from {', '.join(map(named, close))}."
    caution = "" if len(study["rows"]) > len(by_value) else " One seed each cannot settle it."
    return (
        f"The smallest Fréchet distance, {number(mean[best])}, is that of {named(best)}. "
        f"{doubt if close else 'No interval of another reaches it.'}{caution}"
    )
