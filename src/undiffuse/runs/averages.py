"""The averaged weights at each snapshot of a run, in RUN/averages/step_NNNNNN.safetensors.

They are kept in bfloat16, which takes half of the space and is the precision in which they are used
on most CPUs. So the quality of each snapshot can be measured after training, at no cost to it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from undiffuse.base.errors import UserError
from undiffuse.base.tensors import save_tensors
from undiffuse.model import Model

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from undiffuse.runs.folder import Run


def file_of(run: Run, step: int) -> Path:
    return run.path / "averages" / f"step_{step:06d}.safetensors"


def keep_average(run: Run, weights: dict[str, Tensor], step: int) -> None:
    """Write the averaged weights of a step."""
    small = {
        name: value.bfloat16() if value.is_floating_point() else value
        for name, value in weights.items()
    }
    save_tensors(file_of(run, step), small, {"step": str(step)})


def kept_averages(run: Run) -> list[int]:
    """The steps whose averaged weights are kept, in order."""
    names = (path.name for path in (run.path / "averages").glob("step_*.safetensors"))
    found = (re.fullmatch(r"step_(\d{6,15})\.safetensors", name) for name in names)
    return sorted(int(match[1]) for match in found if match)


def model_at(run: Run, step: int) -> Model:
    """The run's model with the averaged weights of a step.

    Raises UserError where they are not kept, or the file is damaged."""
    path = file_of(run, step)
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
