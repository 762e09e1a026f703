"""A longer run: it begins from the state that a finished run had before its learning rate fell.

A finished run's learning rate is 0, so its last state is no place to go on from. Each run keeps its
state of the step at which the cooldown begins, in before-decay.safetensors. A longer run copies
that file, as start.safetensors. So it can be resumed and replayed without the other run.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from undiffuse.base.errors import UserError
from undiffuse.base.files import write_atomic
from undiffuse.base.schema import Count
from undiffuse.training.config import BUDGETS, Config, validated

BEFORE_DECAY = "before-decay.safetensors"
START = "start.safetensors"


@dataclass(frozen=True)
class Start:
    """Where a run began.

    run: the folder of the run that it goes on from. sha256: of the file with the state. step: of
    the state. rate: the share of the peak learning rate there, below 1 after a rollback."""

    run: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    step: Count
    rate: Annotated[float, Field(gt=0, le=1)] = 1.0


def longer_config(old: Config, **budget: Any) -> Config:
    """The configuration of a longer run: the old one's, with another budget.

    budget: one of minutes, epochs and steps, the further ones. Raises UserError for others."""
    given = {name: value for name, value in budget.items() if value is not None}
    if len(given) != 1 or not given.keys() <= {*BUDGETS}:
        raise UserError(
            "a longer run takes the other run's configuration and a budget of its own: give one of "
            "minutes=M, epochs=E and steps=S, the further ones, and nothing else"
        )
    return validated({**old.model_dump(), **dict.fromkeys(BUDGETS), **given})


def same_start(one: Start | None, other: Start | None) -> bool:
    """Whether two runs begin from the same state. The old run's folder may have moved."""
    if one is None or other is None:
        return one is other
    return replace(one, run=other.run) == other


def copy_start(run: Path, start: Start, source: Path) -> None:
    """Copy the state with which a run begins into its folder, unless it is there.

    source: the file. Raises UserError where it is another state now."""
    to = run / START
    if to.is_file():
        return
    content = source.read_bytes()
    if hashlib.sha256(content).hexdigest() != start.sha256:
        raise UserError(f"{source} has changed since {run} was begun; begin a new run")
    write_atomic(to, content)
