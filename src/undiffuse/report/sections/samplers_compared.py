"""The study of samplers: its table, its pictures, and what its numbers say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from undiffuse.report.blocks import Block, Figure, Heading, Table, Text, plain
from undiffuse.report.sections._shared import unfinished
from undiffuse.report.source import Source
from undiffuse.report.words import distance, number, sampler_name

Row = dict[str, Any]


def section(source: Source) -> Iterator[Block]:
    study = source.comparison
    if study is None:
        return
    yield Heading(1, "Samplers compared")
    rows = study["rows"]
    yield from unfinished(study, "samplers", "The comparison", "sampled", source)
    scored = all("frechet" in row for row in rows)
    yield introduction(study, source)
    yield table(study, scored)
    if scored:
        yield Figure(
            "samplers",
            "Quality against network calls.",
            "Curves of the Fréchet distance against network calls, one for each sampler.",
        )
    if "collapse.png" in source.pictures:
        yield Figure(
            "collapse",
            f"Ten images of the same {source.condition} from different noises, by four ways with "
            "25 steps. (7) gives nearly the same image each time."
            if source.about.conditioning.kind
            else "Ten images from different noises, by four ways with 25 steps. (7) gives nearly "
            "the same image each time.",
            "Four rows of ten images. Those of the first row hardly differ.",
        )
    if rows:
        yield Figure(
            "ways",
            "Samples from the same noises, by each sampler with the most calls that were tried.",
            "Rows of samples, a row for each sampler.",
        )
    unguided = [row for row in rows if row["guidance"] == 1]
    if len(unguided) < len({row["sampler"] for row in unguided}) + 1:
        return
    if scored and any(row["sampler"] == "ddpm" for row in unguided):
        yield best_by_calls(unguided)
    yield Heading(2, "Advantages and disadvantages")
    yield methods(unguided, scored)
    yield Text("\n\n".join(discussion(study, scored, len(source.about.conditioning.clusters))))


def introduction(study: dict[str, Any], source: Source) -> Text:
    step = "" if study["step"] == source.steps else f" of step {study['step']:,}"
    conditional = source.config.conditional
    classes = " and the same classes" if conditional else ""
    guided = [row for row in study["rows"] if row["guidance"] != 1]
    first_page = ""
    if guided:
        first_page = (
            " The last row but one is the way in which the images of the first page were sampled, "
            "with guidance."
        )
    alike = f" of the same {source.condition}" if source.about.conditioning.kind else ""
    return Text(
        f"With each sampler {study['n']:,} images were sampled from this run's model{step}, from "
        f"the same noise{classes}, without guidance.{first_page} _Spread_ is the standard "
        f"deviation of a pixel over images{alike}, in 8-bit values. Real images have "
        f"{study['real_spread']:.1f}."
    )


def table(study: dict[str, Any], scored: bool) -> Table:
    """A row for each case, and one for real images. scored: whether all rows have distances."""
    distances = ("Fréchet distance", "95% interval") if scored else ()
    header = ("sampler", "steps", "calls", *distances, "spread", "ms an image")
    rows = [
        (
            plain(row_name(row)),
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
        f"Of {study['n']:,} images each. Real images: the distance is of test images, the spread "
        "of training images. The Fréchet distance of few images is biased upwards, also that of "
        "real images. So compare the rows with one another.",
        tuple(range(1, len(header))),
    )


def best_by_calls(rows: list[Row]) -> Table:
    """The best sampler for each number of calls that (8) was given.

    A solver that takes several calls a step may take a few calls less than it was given."""
    given = sorted({int(row["calls"]) for row in rows if row["sampler"] == "ddpm"})
    found = []
    for before, calls in zip([0, *given], given, strict=False):
        own = [row for row in rows if before < row["calls"] <= calls]
        best = min(own, key=lambda row: float(row["frechet"]))
        near = [
            row for row in own if row["frechet_low"] <= best["frechet_high"] and row is not best
        ]
        found.append(
            (
                str(calls),
                plain(sampler_name(best["sampler"])),
                *distance(best),
                ", ".join(plain(sampler_name(row["sampler"])) for row in near) or "none",
            )
        )
    return Table(
        ("calls", "best", "Fréchet distance", "95% interval", "not distinguishable from it"),
        found,
        "The sampler with the smallest distance, without guidance, for each number of calls. The "
        "last column names those whose interval overlaps the best one's.",
        (0, 2, 3),
    )


def row_name(row: Row) -> str:
    """What a row's sampler is called, with its guidance where it has some."""
    guidance = "" if row["guidance"] == 1 else f", guidance {row['guidance']:g}"
    return sampler_name(row["sampler"]) + guidance


USES = {
    "posterior-mean": (
        "yes",
        "no noise to draw; clean images",
        "no variety: not a sample of the data",
    ),
    "ddpm-printed": ("no", "clean images", "too little variety"),
    "ddpm": ("no", "covers the network's errors with fresh noise", "needs many steps"),
    "ddim": ("yes", "few calls; an image can be found again", "keeps the network's errors"),
    "heun": ("yes", "follows the ODE accurately", "two calls a step; keeps errors"),
    "dpmpp-2m": ("yes", "second order with one call a step", "keeps the network's errors"),
    "dpmpp-2m-sde": (
        "no",
        "(8) with an error of second order",
        "not repeatable without the noises",
    ),
}
"""Of each sampler: whether the same noise gives the same image, an advantage, a disadvantage."""


def methods(rows: list[Row], scored: bool) -> Table:
    """A row for each sampler: its quality with few and with many calls, and what it is for."""
    of_each = {name: [row for row in rows if row["sampler"] == name] for name in USES}
    found = []
    for name, own in of_each.items():
        if len(own) > 1:
            few, *_, many = sorted(own, key=lambda row: int(row["calls"]))
            distances = (number(few["frechet"]), number(many["frechet"])) if scored else ()
            same, advantage, disadvantage = USES[name]
            seconds = f"{1000 * many['seconds_per_image']:.0f}"
            spread = f"{many['spread']:.1f}"
            found.append(
                (
                    plain(sampler_name(name)),
                    *distances,
                    spread,
                    seconds,
                    same,
                    advantage,
                    disadvantage,
                )
            )
    of_quality = ("few", "many") if scored else ()
    header = ("way", *of_quality, "spread", "ms", "same", "advantage", "disadvantage")
    return Table(
        header,
        found,
        "Each way of sampling. _Few_ and _many_: the Fréchet distance with the fewest and with the "
        "most calls that were tried. _Spread_ and _ms_ (milliseconds an image) are of the most "
        "calls. _Same_: whether the same noise gives the same image.",
        tuple(range(1, len(header) - 3)),
    )


def discussion(study: dict[str, Any], scored: bool, clusters: int) -> Iterator[str]:
    """Paragraphs that answer the handout's question, where the numbers support an answer.

    scored: whether all rows have distances. clusters: how many the network is conditioned on."""
    rows = [row for row in study["rows"] if row["guidance"] == 1]
    yield from mean_verdict(rows, study["real_spread"], clusters)
    yield from printed_verdict(rows)
    if scored:
        yield from noise_verdicts(rows)
        yield from solver_verdict(rows)
        yield (
            "DDIM, Heun's method and DPM-Solver++ 2M use no randomness after the first noise. So "
            "they give the same image for the same noise each time, an image can be found again "
            "from its noise, and two noises can be mixed. (8) and the stochastic DPM-Solver++ add "
            "fresh noise at each step, so they cannot do this."
        )
        yield recommendation(rows, [row for row in study["rows"] if row["guidance"] != 1])


def pairs(rows: list[Row], one: str, other: str) -> list[tuple[int, Row, Row]]:
    """(calls, row of `one`, row of `other`) for each number of calls that both have, in order."""
    first, second = (
        {int(row["calls"]): row for row in rows if row["sampler"] == name} for name in (one, other)
    )
    return [(calls, first[calls], second[calls]) for calls in sorted(first.keys() & second.keys())]


def mean_verdict(rows: list[Row], real: float, clusters: int) -> Iterator[str]:
    """Whether (7) collapses. real: the spread of real images."""
    for _, mean, ddpm in pairs(rows, "posterior-mean", "ddpm")[-1:]:
        shrunk = mean["spread"] < 0.8 * ddpm["spread"]
        found = (
            f"a spread of {mean['spread']:.1f}, those of (8) of {ddpm['spread']:.1f}, and real "
            f"ones of {real:.1f}"
        )
        text = (
            "(7) moves to the mean of all possible $x_(t-1)$ and adds no noise. An average has no "
            "speckle, so its images look clean. But the image then holds less noise than the "
            "network expects at that time. The network takes it for a smoother image, step after "
            "step, and the images end near the mean of what is possible. "
        )
        if shrunk:
            text += f"On this run (7) collapses: its images have {found}."
        else:
            text += f"On this run (7) has not collapsed: its images have {found}."
        if clusters:
            text += (
                f" Each image was conditioned on one of {clusters} clusters, and the network sees "
                "the cluster's mean image. So all ways have differences between clusters, which "
                "the sampler did not make. That is why the spread is taken within clusters."
            )
        yield text


def printed_verdict(rows: list[Row]) -> Iterator[str]:
    """Whether (8) as printed adds too little noise."""
    for _, printed, ddpm in pairs(rows, "ddpm-printed", "ddpm")[-1:]:
        text = (
            "(8) as printed scales the noise by the posterior's variance, where its standard "
            "deviation belongs. The variance of a step is below 1, so that is too little noise. "
            "With twice as many steps the standard deviation falls by about $sqrt(2)$, and the "
            "variance by 2. So with finer steps (8) as printed comes closer to (7). "
        )
        spreads = f"({printed['spread']:.1f} against {ddpm['spread']:.1f})"
        if printed["spread"] < 0.97 * ddpm["spread"]:
            yield text + f"Its images are less varied than those of (8) {spreads}."
        else:
            yield text + f"Its images are about as varied as those of (8) here {spreads}."


def solver_verdict(rows: list[Row]) -> Iterator[str]:
    """Whether a solver of the ODE gets worse with more calls, and why that can be."""
    worse = []
    for name in ("ddim", "heun", "dpmpp-2m"):
        own = sorted((row for row in rows if row["sampler"] == name), key=lambda row: row["calls"])
        best = min(own, key=lambda row: row["frechet"], default=None)
        if best and own[-1]["frechet_low"] > best["frechet_high"]:
            worse.append(
                f"{sampler_name(name)} ({number(best['frechet'])} with {best['calls']} calls, "
                f"{number(own[-1]['frechet'])} with {own[-1]['calls']})"
            )
    if worse:
        yield (
            f"With more calls the distance of {' and of '.join(map(plain, worse))} rises. A solver "
            "with small steps follows the network's own ODE, with the network's errors in it. It "
            "adds no noise that could cover them. With large steps the solver makes errors of its "
            "own, and on this run these make up for a part of the network's."
        )


def recommendation(rows: list[Row], own: list[Row]) -> str:
    """Which way to take: the best of all rows, and the best with the fewest calls.

    own: the row of the way in which the run's own images are sampled, if it is guided."""
    best = min(rows, key=lambda row: float(row["frechet"]))
    close = [row for row in rows if row is not best and row["frechet_low"] <= best["frechet_high"]]
    doubt = (
        f"so few images cannot tell it from {len(close)} of the {len(rows) - 1} other rows"
        if close
        else "no other row comes as near"
    )
    fewest = min(int(row["calls"]) for row in rows)
    quick = min((row for row in rows if row["calls"] == fewest), key=lambda row: row["frechet"])
    return (
        f"*Recommendation.* The smallest Fréchet distance, {number(best['frechet'])}, is that of "
        f"{plain(sampler_name(best['sampler']))} with {best['calls']} calls; {doubt}. Where time "
        f"matters most, take {plain(sampler_name(quick['sampler']))}: of all ways with {fewest} "
        f"calls it has the smallest distance, {number(quick['frechet'])}. "
        + "".join(
            f"This run's own way, with guidance, has {number(row['frechet'])} here. It was chosen "
            "by measurements on 10,000 samples, which tell more than these (see the "
            "hyperparameters)."
            for row in own
        )
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
            yield f"{how}. So few images cannot show a difference."
        elif ddpm["frechet"] < ddim["frechet"]:
            yield (
                f"{how}. The fresh noise of (8) covers errors that the network made on the way. "
                "DDIM carries them to the end."
            )
        else:
            yield (
                f"{how}. With few steps (8) adds much noise in each, and has few steps left to "
                "remove it. DDIM adds none."
            )
