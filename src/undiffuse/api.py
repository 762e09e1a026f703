"""The functions of `import undiffuse`: train, sample, load. The command does the same through them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undiffuse.model import Model
from undiffuse.runs.folder import Run, Where
from undiffuse.runs.session import train_session
from undiffuse.training.config import Config
from undiffuse.training.options import SessionOptions, make_options
from undiffuse.training.presets import make_config
from undiffuse.training.records import Record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def train(
    out: Where | None = None,
    preset: str = "fast",
    *,
    watch: Callable[[Record], None] | None = None,
    **fields: Any,
) -> Path:
    """Train a run in folder `out` (runs/PRESET), or go on with it; returns the folder.

    The command `undiffuse train` in Python. fields: any of `Config`'s, such as minutes=3 or
    data="photos/", of `SessionOptions`', such as compile="off", and of the network's own options,
    such as channels=(64, 128). watch: called with each record as it happens.

    A finished run is left as it is. Raises UserError for anything that does not fit, before anything
    is written. After Ctrl-C or SIGTERM, when all is saved, it raises `runs.signals.Interrupted`,
    which like KeyboardInterrupt is no Exception."""
    own = {name: fields.pop(name) for name in SessionOptions.model_fields if name in fields}
    config, options = make_config(preset, **fields), make_options(**own)
    return train_config(config, Path(out or f"runs/{preset}"), options, watch=watch)


def train_config(
    config: Config,
    path: Path,
    options: SessionOptions = SessionOptions(),
    *,
    replay: Path | None = None,
    started: float | None = None,
    watch: Callable[[Record], None] | None = None,
) -> Path:
    """`train` for a whole configuration. started: see `train_session`."""
    for record in train_session(config, path, options, replay=replay, started=started):
        if watch:
            watch(record)
    return path


def load(run: Where) -> Model:
    """The model of a run folder: its averaged weights. Raises UserError where there is none.

    Loaded once, it can be used many times."""
    return Run(Path(run)).model()


def sample(run: Where, n: int = 64, classes: Any = None, **options: Any) -> NDArray[np.uint8]:
    """Sample n images from a run: uint8 (n, H, W), or (n, H, W, 3) in colour.

    classes: numbers or names, which take turns. options: `Model.request`'s. The same seed gives the
    same images, whatever the batch size. Raises UserError for what the run cannot do."""
    return load(run).sample(n, classes, **options)
