"""The study of samplers: its table, its pictures, and what its numbers say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from undiffuse.report.blocks import Block, Figure, Heading, Missing, Table, Text, plain
from undiffuse.report.source import Source
from undiffuse.report.words import distance, number, sampler_name

Row = dict[str, Any]


def section(source: Source) -> Iterator[Block]:
    study = source.samplers
    again = source.run.command_for("study", "samplers")
    yield Heading(1, "Samplers compared")
    if study is None:
        yield Missing("The samplers have not been compared on this run.", again)
        return
    if not source.is_current(study["step"]):
        yield Missing(
            f"There is no comparison of the finished run, only one of step {study['step']:,}.",
            again,
        )
        return
    rows = study["rows"]
    if len(rows) < study["cases"]:
        yield Missing(
            f"The comparison is not whole: {len(rows)} of {study['cases']} cases have been "
            "sampled.",
            again,
        )
    scored = all("frechet" in row for row in rows)
    yield introduction(study, source)
    yield table(study, scored)
    if scored:
        yield Figure(
            "samplers",
            "Quality against network calls.",
            "Curves of the Fréchet distance against network calls, one for each sampler.",
        )
    if rows:
        yield Figure(
            "ways",
            "Samples from the same noises, by each sampler with the most calls that were tried.",
            "Rows of samples, a row for each sampler.",
        )
    answer = list(verdicts(study, scored, len(source.about.conditioning.clusters)))
    if answer:
        yield Heading(2, "Which advantages and disadvantages has each?")
        yield Text("\n".join(f"- {verdict}" for verdict in answer))


def introduction(study: dict[str, Any], source: Source) -> Text:
    step = "" if study["step"] == source.steps else f" of step {study['step']:,}"
    conditional = source.config.conditional
    classes = " and the same classes" if conditional else ""
    of_class = " of their class" if conditional else ""
    return Text(
        f"With each sampler {study['n']:,} images were sampled from this run's model{step}, from "
        f"the same noise{classes}, without guidance. _Spread_ is how different its images are from "
        f"one another (the root mean square difference from the mean{of_class}, in 8-bit values); "
        f"real images have {study['real_spread']:.1f}."
    )


def table(study: dict[str, Any], scored: bool) -> Table:
    """A row for each case, and one for real images. scored: whether all rows have distances."""
    distances = ("Fréchet distance", "95% interval") if scored else ()
    header = ("sampler", "steps", "calls", *distances, "spread", "ms an image")
    rows = [
        (
            plain(sampler_name(row["sampler"])),
            str(row["steps"]),
            str(row["calls"]),
            *(distance(row) if scored else ()),
            f"{row['spread']:.1f}",
            f"{1000 * row['seconds_per_image']:.1f}",
        )
        for row in study["rows"]
    ]
    of_real = (number(study["real_frechet"]), "-") if scored else ()
    real = ("real images", "-", "-", *of_real, f"{study['real_spread']:.1f}", "-")
    return Table(
        header,
        [*rows, real],
        f"Of {study['n']:,} images each. A small sample's Fréchet distance is biased upwards, also "
        "that of real images: compare the rows with one another.",
        tuple(range(1, len(header))),
    )


def verdicts(study: dict[str, Any], scored: bool, clusters: int) -> Iterator[str]:
    """The answers to the handout's question, where the numbers support one.

    scored: whether all rows have distances. clusters: how many the network is conditioned on."""
    rows = study["rows"]
    yield from mean_verdict(rows, study["real_spread"], clusters)
    yield from printed_verdict(rows)
    if scored:
        yield best_verdict(rows)
        yield from noise_verdicts(rows)
        yield (
            "DDIM, Heun's method and DPM-Solver++ 2M give the same image for the same noise each "
            "time, so two noises can be mixed, and an image found again; (8) and the stochastic "
            "DPM-Solver++ add fresh noise, and do not."
        )


def pairs(rows: list[Row], one: str, other: str) -> list[tuple[int, Row, Row]]:
    """(calls, row of `one`, row of `other`) for each number of calls that both have, in order."""
    first, second = (
        {int(row["calls"]): row for row in rows if row["sampler"] == name} for name in (one, other)
    )
    return [(calls, first[calls], second[calls]) for calls in sorted(first.keys() & second.keys())]


def mean_verdict(rows: list[Row], real: float, clusters: int) -> Iterator[str]:
    """Whether (7) collapses. real: the spread of real images."""
    for _, mean, ddpm in pairs(rows, "posterior-mean", "ddpm")[-1:]:
        if mean["spread"] < 0.8 * ddpm["spread"]:
            yield (
                f"(7) collapses: its images have a spread of {mean['spread']:.1f}, those of (8) of "
                f"{ddpm['spread']:.1f}, real ones of {real:.1f}. It needs no noise on the way, and "
                "that is its only advantage."
            )
        else:
            why = f": its samples are conditioned on one of {clusters} clusters each, which differ"
            yield (
                f"On this run (7) has not collapsed (a spread of {mean['spread']:.1f} against "
                f"{ddpm['spread']:.1f} of (8)), though in theory its noise shrinks too fast"
                f"{why if clusters else ''}."
            )


def printed_verdict(rows: list[Row]) -> Iterator[str]:
    """Whether (8) as printed adds too little noise."""
    for _, printed, ddpm in pairs(rows, "ddpm-printed", "ddpm")[-1:]:
        if printed["spread"] < 0.97 * ddpm["spread"]:
            yield (
                "(8) as printed adds too little noise, and its images are less varied than they "
                f"should be ({printed['spread']:.1f})."
            )
        else:
            yield f"(8) as printed is about as varied as (8) here ({printed['spread']:.1f})."


def best_verdict(rows: list[Row]) -> str:
    """Which row has the smallest distance, and how many others may be as good."""
    best = min(rows, key=lambda row: float(row["frechet"]))
    close = [row for row in rows if row is not best and row["frechet_low"] <= best["frechet_high"]]
    others = f"{len(close)} of the {len(rows) - 1} other rows"
    end = f"; these many images cannot tell it from {others}." if close else ", clearly."
    return (
        f"The smallest Fréchet distance, {number(best['frechet'])}, is that of "
        f"{plain(sampler_name(best['sampler']))} with {best['calls']} calls{end}"
    )


def noise_verdicts(rows: list[Row]) -> Iterator[str]:
    """(8) against DDIM, with the most and with the fewest calls."""
    both = pairs(rows, "ddpm", "ddim")
    if len(both) < 2:
        return
    for words, (calls, ddpm, ddim) in (("many", both[-1]), ("few", both[0])):
        how = (
            f"With {words} calls ({calls}), (8) has {number(ddpm['frechet'])} and DDIM "
            f"{number(ddim['frechet'])}"
        )
        low = max(ddpm["frechet_low"], ddim["frechet_low"])
        if low <= min(ddpm["frechet_high"], ddim["frechet_high"]):
            yield f"{how}: no difference that these many images could show."
        elif ddpm["frechet"] < ddim["frechet"]:
            yield (
                f"{how}: the fresh noise of (8) corrects errors that the network made on the way, "
                "which DDIM carries to the end."
            )
        else:
            yield (
                f"{how}: DDIM makes the most of its steps, as it takes away as much noise as there "
                "is to lose, and adds none."
            )
