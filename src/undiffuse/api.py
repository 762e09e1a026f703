"""The functions of `import undiffuse`: train, sample and load. The command uses them too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undiffuse.base.errors import UserError
from undiffuse.base.files import as_path, from_here
from undiffuse.base.process import undisturbed
from undiffuse.model import Model
from undiffuse.runs.folder import Run, Where
from undiffuse.runs.longer import longer_config
from undiffuse.runs.session import train_session
from undiffuse.training.config import Config
from undiffuse.training.options import SessionOptions, make_options
from undiffuse.training.presets import make_config
from undiffuse.training.records import Record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@undisturbed()
def train(
    out: Where | None = None,
    preset: str = "fast",
    *,
    longer: Where | None = None,
    watch: Callable[[Record], None] | None = None,
    **fields: Any,
) -> Path:
    """Train a run in folder `out`, or continue it. Returns the folder.

    It is the command `undiffuse train` in Python. out: runs/PRESET by default. fields: those of
    `Config`, such as minutes=3 or data="photos/"; those of `SessionOptions`, such as compile="off";
    the network's own options, such as channels=(64, 128). longer: a finished run that this new run
    goes on from, with its configuration; of fields only minutes, epochs or steps, the further ones,
    and those of `SessionOptions`. watch: called with each record as it happens.

    Relative paths are taken from the working folder of the beginning. A finished run stays as it
    is. Raises UserError for values that do not fit, before anything is written. After Ctrl-C or
    SIGTERM it saves the run, then raises `runs.signals.Interrupted`, which is no Exception, as
    KeyboardInterrupt is none."""
    own = {name: fields.pop(name) for name in SessionOptions.model_fields if name in fields}
    options, old = make_options(**own), None
    path = from_here(as_path(out or f"runs/{preset}"))
    if longer is None:
        config = make_config(preset, **fields)
    else:
        if out is None:
            raise UserError("a longer run is a new run; give out=FOLDER")
        old = as_path(longer)
        config = of_longer(old, path, **fields)
    return train_config(config, path, options, longer=old, watch=watch)


def of_longer(old: Path, path: Path, **budget: Any) -> Config:
    """The configuration of a longer run at `path`. The run knows it once it exists.

    old: the run that it goes on from. budget: one of minutes, epochs and steps."""
    source = Run(old) if Run(old).exists() else Run(path)
    config = longer_config(source.about().config, **budget)
    return config.model_copy(update={"data": source.data_place()})


def train_config(
    config: Config,
    path: Path,
    options: SessionOptions = SessionOptions(),
    *,
    replay: Path | None = None,
    longer: Path | None = None,
    started: float | None = None,
    watch: Callable[[Record], None] | None = None,
) -> Path:
    """`train` for a whole configuration. replay, longer, started: see `train_session`."""
    for record in train_session(
        config, path, options, replay=replay, longer=longer, started=started
    ):
        if watch:
            watch(record)
    return path


@undisturbed()
def load(run: Where) -> Model:
    """The model of a run folder, with its averaged weights. It can be used many times.

    Raises UserError where the folder has no model."""
    return Run(as_path(run)).model()


@undisturbed()
def sample(run: Where, n: int = 64, classes: Any = None, **options: Any) -> NDArray[np.uint8]:
    """Sample n images from a run: uint8 (n, H, W), or (n, H, W, 3) in colour.

    classes: numbers or names; the images take them in turn. options: see `Model.request`. The same
    seed gives the same images with any batch size. Raises UserError for options that the run does
    not support."""
    return load(run).sample(n, classes, **options)
