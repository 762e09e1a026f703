"""The averaged weights at each snapshot of a run, in RUN/averages/step_NNNNNN.safetensors.

They are kept in bfloat16, which takes half of the space and is the precision in which they are used
on most CPUs. So the quality of each snapshot can be measured after training, at no cost to it. And
the average of another width can be put together from them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from undiffuse.base.errors import UserError
from undiffuse.base.tensors import save_tensors
from undiffuse.model import Model
from undiffuse.training.averages import combination, ema_exponent, wide_exponent
from undiffuse.training.records import Snapshot

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from undiffuse.runs.folder import Run


def file_of(run: Run, step: int, kind: str = "step") -> Path:
    """The file of an average. kind: "step", or "wide" for the one of about twice the width."""
    return run.path / "averages" / f"{kind}_{step:06d}.safetensors"


def keep_average(run: Run, weights: dict[str, Tensor], step: int, kind: str = "step") -> None:
    """Write the averaged weights of a step."""
    small = {
        name: value.bfloat16() if value.is_floating_point() else value
        for name, value in weights.items()
    }
    save_tensors(file_of(run, step, kind), small, {"step": str(step)})


def kept_averages(run: Run, kind: str = "step") -> list[int]:
    """The steps whose averaged weights are kept, in order."""
    names = (path.name for path in (run.path / "averages").glob(f"{kind}_*.safetensors"))
    found = (re.fullmatch(rf"{kind}_(\d{{6,15}})\.safetensors", name) for name in names)
    return sorted(int(match[1]) for match in found if match)


def model_at(run: Run, step: int, kind: str = "step") -> Model:
    """The run's model with the averaged weights of a step.

    Raises UserError where they are not kept, or the file is damaged."""
    path = file_of(run, step, kind)
    if not path.is_file():
        kept = ", ".join(map(str, kept_averages(run))) or "none"
        raise UserError(f"{run.path} has no averaged weights of step {step}; it has: {kept}")
    tensors, written = run.load_tensors(path)
    if written != step:
        raise UserError(f"{path} is damaged: it holds step {written}")
    weights = {
        n: value.float() if value.is_floating_point() else value for n, value in tensors.items()
    }
    return Model.of_tensors(run.about().description(step), weights, path)


MOST_ERROR = 0.1
"""The largest relative error of an average's profile that is put together from others."""

WIDEST = 0.25


class OutOfReach(UserError):
    """An average that cannot be put together from those that a run kept."""


def check_width(width: float) -> None:
    """Raises UserError for a width that no average has."""
    if not 0 < width <= WIDEST:
        raise UserError(f"width must be more than 0 and at most {WIDEST}, not {width:g}")


def logged_averages(run: Run, kind: str = "step") -> list[int]:
    """The steps of `kept_averages` that are in the run's log.

    The others are of a path that training left, after it was stopped."""
    logged = {record.step for record in run.of(Snapshot)}
    return [step for step in kept_averages(run, kind) if step in logged]


def averaged(run: Run, width: float) -> tuple[Model, float]:
    """(the run's model with weights averaged over another width; how far it is from a true one).

    width: as a share of the steps. The average is a combination of those that the run kept at its
    snapshots and at its end, of two widths: Karras et al. 2024 (arXiv:2312.02696), section 3.
    Raises UserError for a width that they do not reach."""
    check_width(width)
    model, own = run.model(), run.about().config.ema
    end = model.description.step
    exponents = {"step": ema_exponent(own), "wide": wide_exponent(own)}
    kept = [
        (kind, step)
        for kind in exponents
        for step in logged_averages(run, kind)
        if 0 < step <= end and (kind, step) != ("step", end)
    ]
    profiles = [(step, exponents[kind]) for kind, step in kept] + [(end, exponents["step"])]
    weights, error = combination(profiles, end, ema_exponent(width))
    if error > MOST_ERROR:
        raise OutOfReach(
            f"an average of width {width:g} cannot be put together from the {len(profiles)} that "
            f"{run.path} kept: it would differ from a true one by {error:.0%}; take a width nearer "
            f"to {own:g}"
        )
    total = {
        name: value.double() * weights[-1] if value.is_floating_point() else value
        for name, value in model.network.state_dict().items()
    }
    for (kind, step), weight in zip(kept, weights[:-1], strict=True):
        for name, value in model_at(run, step, kind).network.state_dict().items():
            if value.is_floating_point():
                total[name] += weight * value.double()
    found = {n: value.float() if value.is_floating_point() else value for n, value in total.items()}
    return Model.of_tensors(model.description, found, run.model_path), error
