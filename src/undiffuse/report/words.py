"""The words of a report: how it writes numbers, and what it calls samplers, studies and values."""

from __future__ import annotations

from typing import Any

SAMPLER_NAMES = {
    "posterior-mean": "(7)",
    "ddpm-printed": "(8) as printed",
    "ddpm": "(8), DDPM",
    "ddim": "DDIM",
    "heun": "Heun",
    "dpmpp-2m": "DPM-Solver++ 2M",
    "dpmpp-2m-sde": "DPM-Solver++ 2M (stochastic)",
    "exp-ab": "exponential Adams-Bashforth",
    "dpmpp-3m": "DPM-Solver++ 3M",
    "dpmpp-3m-sde": "DPM-Solver++ 3M (stochastic)",
    "unipc": "UniPC",
    "deis": "DEIS",
    "lms": "LMS",
    "pndm": "PNDM",
    "heun-churn": "Heun with churn",
    "restart": "restart",
}
"""The samplers that a study compares, by the names that it gives them."""


STUDY_NAMES = {
    "schedules": "noise schedules",
    "predictions": "predictions",
    "subset": "amounts of data",
}
"""What each study of trainings compares, by the study's name."""


UNSET = {"subset": "all", "size": "the data's", "chain": "continuous"}
"""The words for a hyperparameter without a value, where "none" would mislead."""


DATA_NAMES = {"mnist": "MNIST"}
"""Data sets whose names are written in another way than as a flag."""


def data_name(name: str) -> str:
    """What the report calls a data set."""
    return DATA_NAMES.get(name, name)


def sampler_name(name: str) -> str:
    """What the report calls a sampler: the sampler's own name, where it has no other."""
    return SAMPLER_NAMES.get(name, name)


def study_name(name: str) -> str:
    """What a study of trainings compares: the study's own name, where there is no other."""
    return STUDY_NAMES.get(name, name)


def shown(name: str, value: object) -> str:
    """A hyperparameter's value in words."""
    if value is None:
        return UNSET.get(name, "none")
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def number(x: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, or a dash where there is none."""
    if x is None:
        return "-"
    return f"{x:#.{digits}g}".rstrip(".") if abs(x) < 1000 else f"{x:,.0f}"


def accented(words: str) -> str:
    """Words for a terminal as they are printed."""
    return words.replace("Frechet", "Fréchet")


def interval(low: float, high: float) -> str:
    return f"{number(low)} to {number(high)}"


def distance(row: dict[str, Any]) -> tuple[str, str]:
    """The Frechet distance in a study's row, and its interval."""
    return number(row["frechet"]), interval(row["frechet_low"], row["frechet_high"])
