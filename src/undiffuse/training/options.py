"""The options of a session: how it computes a configuration.

The configuration (config.py) decides the result. A run may be resumed with other session options.
Where that can change the bits of the result, the session says so.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from undiffuse.base.compiler import compiler
from undiffuse.base.engine import Engine, has_bf16
from undiffuse.training.config import Config, validated_as

WORTH_COMPILING = 50_000
"""Compiling takes 15 to 60 s. It saves time in runs of at least this many images."""


class SessionOptions(BaseModel):
    """Options of one session. After the dash stands what "auto" or None means."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: Annotated[
        Literal["auto", "bf16", "fp32"],
        Field(description="precision of the network's arithmetic - bf16 where the CPU has it"),
    ] = "auto"
    compile: Annotated[
        Literal["auto", "on", "off"],
        Field(
            description="use torch.compile - where there is a C++ compiler, and for runs of at "
            f"least 2 minutes or {WORTH_COMPILING:,} images"
        ),
    ] = "auto"
    checkpoint_every: Annotated[
        int | None, Field(description="steps between checkpoints - one checkpoint a minute", ge=1)
    ] = None


def make_options(**chosen: Any) -> SessionOptions:
    """The options of a session, with `chosen` in place of the defaults.

    Raises UserError, one sentence, for the first value that does not fit."""
    return validated_as(SessionOptions, chosen)


def resolve(
    options: SessionOptions, config: Config, images: int | None
) -> tuple[Engine, list[str]]:
    """(the engine of a session on this machine; notes for the user).

    images: the number of images that the run trains on, over all epochs; None with a budget of
    minutes."""
    notes = []
    precision = options.precision
    if precision == "auto":
        precision = "bf16" if has_bf16() else "fp32"
        if precision == "fp32":
            notes.append(
                "this CPU has no bfloat16 arithmetic, so training runs in fp32 and is slower"
            )
    minutes = config.minutes
    long_enough = minutes >= 2 if minutes is not None else (images or 0) >= WORTH_COMPILING
    compiled = options.compile == "on" or (options.compile == "auto" and long_enough)
    if compiled and compiler() is None:
        compiled = False
        notes.append(
            "no C++ compiler was found, so the network is not compiled; training is slower "
            "(see README); install g++ for full speed"
        )
    return Engine(precision, compiled), notes
