"""The command `undiffuse`.

train.py     the verb `train`
edits.py     the verbs that start from images: inpaint, edit, interpolate, restore, encode
verbs.py     the verbs on a run: sample, evaluate, study, report, info
arguments.py what a command line may not say
output.py    printing, and the ways to end
"""

from __future__ import annotations

import errno
import inspect
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro

from undiffuse import __version__
from undiffuse.base import engine
from undiffuse.base.errors import UserError
from undiffuse.base.files import from_here
from undiffuse.cli.arguments import refuse_no_class, refuse_repeated, run_comes_late, with_home
from undiffuse.cli.edits import edit, encode, inpaint, interpolate, restore
from undiffuse.cli.output import STOPPED, fail, flush_all, leave, prepare_streams
from undiffuse.cli.train import NETWORK, flags_of, preset_of, train_verb, with_flags
from undiffuse.cli.verbs import average, evaluate, info, report, sample, study
from undiffuse.runs.signals import ENDING, heeded

__all__ = ["NETWORK", "evaluate", "info", "main", "report", "sample", "study"]


NO_TEXTS = (
    " PYTHONOPTIMIZE=2 takes the explanations out of programs; unset it to see those of the flags."
)


VERBS: dict[str, Callable[..., Any]] = {
    "sample": sample,
    "inpaint": inpaint,
    "edit": edit,
    "interpolate": interpolate,
    "restore": restore,
    "encode": encode,
    "evaluate": evaluate,
    "study": study,
    "average": average,
    "report": report,
    "info": info,
}
"""The verbs on a run, by name."""


def main() -> None:
    """Run the command. For a user's mistake it prints one sentence and ends with exit code 2."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        print(f"undiffuse {__version__}")
        return
    engine.keep_freed_memory()
    prepare_streams()
    try:
        run_verb(with_home(arguments))
        if error := flush_all():
            fail(f"the output cannot be written ({error.strerror}); make room there")
    except SystemExit as end:
        flush_all()
        if end.code in [STOPPED + number for number in ENDING]:
            sys.stderr.flush()
            # Everything is saved. Python's usual exit waits 10 s and more for compilers in threads.
            os._exit(int(end.code or 0))
        raise


def run_verb(arguments: list[str]) -> None:
    """Run the verb that the arguments name.

    Raises SystemExit for help, for a user's mistake, after a signal and after a closed pipe."""
    if threading.current_thread() is threading.main_thread():
        for number in heeded():
            if number != signal.SIGINT:
                signal.signal(number, lambda number, frame: leave(number))
    try:
        from_here(Path())  # a library of torch would crash in a folder that was removed
        verbs = {"train": train_verb(flags_of(preset_of(arguments))), **VERBS}
        refuse_repeated(arguments)
        refuse_no_class(arguments)
        for verb in verbs.values():
            verb.__doc__ = unwrapped(verb.__doc__ or "")
        try:
            tyro.extras.subcommand_cli_from_dict(
                verbs,
                prog="undiffuse",
                description="Understand, train and trust a small diffusion model on a CPU. "
                "Begin with 'undiffuse train'. 'undiffuse VERB --help' lists the flags of a verb."
                f"{NO_TEXTS if sys.flags.optimize > 1 else ''}",
                args=arguments,
            )
        except SystemExit as end:
            if end.code == 2 and (remedy := run_comes_late(arguments)):
                fail(remedy)
            raise
    except UserError as error:
        fail(with_flags(str(error)))
    except KeyboardInterrupt:
        leave(signal.SIGINT)
    except BrokenPipeError:
        raise SystemExit(STOPPED + 13) from None
    except OSError as error:
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            fail(f"the output cannot be written ({error.strerror}); make room there")
        if error.filename is None:
            raise
        fail(f"{error.filename} can't be used ({error.strerror}); give another path, or fix that")
    except (MemoryError, RuntimeError) as error:
        of_torch = "can't allocate memory" in str(error)
        if not isinstance(error, MemoryError) and not of_torch:
            raise
        fail(
            "there is not enough memory for this; take fewer or smaller images at a time, or a "
            "smaller network"
        )


def unwrapped(text: str) -> str:
    """A verb's docstring, where each paragraph and each argument's text is one line.

    The terminal wraps the lines. Arguments are indented by 4 spaces, their further lines by 8."""
    body, args, rest = inspect.cleandoc(text).partition("\n\nArgs:\n")
    return re.sub(r"(?<!\n)\n(?!\n)", " ", body) + args + re.sub(r"\n {8,}(?=\S)", " ", rest)
