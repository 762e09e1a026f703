"""Averages of other widths of a finished run, and their loss on held-out images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from undiffuse.base.errors import UserError
from undiffuse.base.files import refuse_unwritable
from undiffuse.runs.averages import OutOfReach, averaged, check_width
from undiffuse.runs.fitting import trained_on
from undiffuse.runs.folder import Run
from undiffuse.training.experiment import load_configured, make_experiment
from undiffuse.training.probes import validate

USUAL = (0.02, 0.03, 0.05, 0.07, 0.1, 0.15)
"""The widths that are compared by default."""


def of_run(
    path: Path, widths: Sequence[float], out: Path | None, *, overwrite: bool = False
) -> Iterator[str]:
    """A sentence for each width: the loss of its average. Writes the model to `out`, for one width.

    Raises UserError where the run is not finished, for a width that cannot be had, and where the
    file cannot be written."""
    run = Run(path)
    if run.finished() is None:
        raise UserError(f"{path} is not finished; continue it with: {run.command()}")
    if out is not None and len(widths) != 1:
        raise UserError("out takes the model of one width; give one, such as width=0.1")
    if out is not None:
        if out.suffix != ".safetensors":
            raise UserError(f"out={out}: write FILE.safetensors")
        if out.exists() and not overwrite:
            raise UserError(f"out={out}: there is a file of that name; use overwrite=True")
        refuse_unwritable(out)
    for width in widths:
        check_width(width)
    config = run.about().config
    whole = load_configured(config, run.data_place())
    trained_on(run, whole)
    experiment = make_experiment(config, whole)
    for width in widths:
        try:
            model, error = averaged(run, width)
        except OutOfReach as impossible:
            if len(widths) == 1:
                raise
            yield str(impossible)
            continue
        loss = ""
        if experiment.held_out:
            found = validate(experiment, model.denoiser, model.description.step, 0.0)
            loss = f"held-out loss {found.loss:.5f}, "
        yield f"width {width:g}: {loss}differs from a true average of that width by {error:.1%}"
        if out is not None:
            model.save(out)
            yield f"{out}: the model, for undiffuse.Model.load"
