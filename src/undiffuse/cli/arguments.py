"""What a command line may not say, although the parser would take it."""

from __future__ import annotations

import re
from itertools import pairwise

from undiffuse.base.errors import UserError
from undiffuse.base.files import as_path
from undiffuse.training.config import FORMER


def flag_of(name: str) -> str:
    """The flag of a field or parameter: "--sample-calls" for "sample_calls"."""
    return f"--{name.replace('_', '-')}"


ALIASES = {
    "--label": "--classes",
    "--class": "--classes",
    **{flag_of(old): flag_of(new) for old, new in FORMER.items()},
}
"""Other names of flags, those of version 0.1 among them -> the names that the help gives."""


def refuse_repeated(arguments: list[str]) -> None:
    """Raises UserError where a flag is given twice. The parser would forget the first one."""
    seen = set()
    for argument in arguments:
        if argument == "--":
            return
        if argument.startswith("--"):
            flag = argument.partition("=")[0].replace("_", "-")
            flag = ALIASES.get(flag, flag)
            if flag in seen:
                raise UserError(f"{flag} is given twice; give it once, with all its values")
            seen.add(flag)


def refuse_no_class(arguments: list[str]) -> None:
    """Raises UserError where --classes stands alone. The parser would take it for all classes."""
    for argument, after in pairwise([*arguments, "--"]):
        if ALIASES.get(argument, argument) == "--classes" and after.startswith("--"):
            raise UserError("--classes needs at least one class, by name or number")


def run_comes_late(arguments: list[str]) -> str | None:
    """What to do where a flag of many values stands before the run folder; None elsewhere.

    The parser takes the folder for one more value, and then misses it."""
    verb, *rest = arguments or [""]
    if verb == "train" or not rest or not rest[0].startswith("-"):
        return None
    return f"give the run folder first, before the flags: undiffuse {verb} RUN {rest[0]} .."


def with_home(arguments: list[str]) -> list[str]:
    """The arguments with the home folder in place of ~, also after = where shells leave it."""
    return [
        re.sub(r"^(--[\w-]+=)?(~/.*)$", lambda found: (found[1] or "") + home(found[2]), argument)
        for argument in arguments
    ]


def home(path: str) -> str:
    """A path that begins with ~/, with the home folder; a slash at its end stays."""
    return f"{as_path(path)}{'/' if path.endswith('/') else ''}"
