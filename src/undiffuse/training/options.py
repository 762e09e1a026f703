"""The options of a session: how it computes a configuration.

The configuration (config.py) decides the result. A run may be resumed with other session options.
Where that can change the bits of the result, the session says so.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from undiffuse.base.compiler import compiler
from undiffuse.base.engine import Engine, fastest
from undiffuse.nets import NETWORKS
from undiffuse.training.config import Config, validated_as

WORTH_COMPILING = (8, 100_000)
"""(minutes, images) of the shortest runs in which compiling saves time, where it does at all.

Compiling takes about 65 s. The network `categorical` trains 1.17 times as fast afterwards. `unet`
does not."""


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
            description="use torch.compile - for the network categorical, where there is a C++ "
            f"compiler, in runs of at least {WORTH_COMPILING[0]} minutes or "
            f"{WORTH_COMPILING[1]:,} images"
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
        precision = fastest()
        if precision == "fp32":
            notes.append(
                "this CPU has no bfloat16 arithmetic, so training runs in fp32 and is slower"
            )
    minutes, (shortest, fewest) = config.minutes, WORTH_COMPILING
    long_enough = minutes >= shortest if minutes is not None else (images or 0) >= fewest
    network = NETWORKS.function(config.net.partition(":")[0])
    pays = getattr(network, "worth_compiling", False) and long_enough
    compiled = options.compile == "on" or (options.compile == "auto" and pays)
    if compiled and compiler() is None:
        compiled = False
        notes.append(
            "no C++ compiler was found, so the network is not compiled, and training is slower; "
            "install g++ and Python's headers for full speed"
        )
    return Engine(precision, compiled), notes
