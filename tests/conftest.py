"""What the tests share: tiny images, a configuration that trains in a second, runs of it."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# Before torch is imported, and for the commands that tests run too. Networks this small are slower
# on several threads.
os.environ["OMP_NUM_THREADS"] = "1"

# The same examples each time, so that a failure belongs to a change. `make properties` looks for
# new ones.
usual = {
    "deadline": None,
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.filter_too_much],
}
settings.register_profile("same", max_examples=50, derandomize=True, **usual)
settings.register_profile(
    "new", max_examples=int(os.environ.get("EXAMPLES", "2000")), print_blob=True, **usual
)
settings.load_profile("new" if "EXAMPLES" in os.environ else "same")


# A shell that starts the tests in the background has them ignore Ctrl-C, and so the commands that
# they start.
with contextlib.suppress(ValueError):  # not in the main thread
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What forks this process comes first: the threads of Typst do not survive a fork."""
    items.sort(key=lambda item: item.path.name != "test_hostile.py")


def write_idx(folder: Path, images: np.ndarray, labels: Sequence[int] | None = None) -> Path:
    """A folder of IDX files: images uint8 (N, H, W) or (N, H, W, C), and labels, if any."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in (("images", images), ("labels", labels)):
        if values is not None:
            array = np.asarray(values, dtype=np.uint8)
            header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
            (folder / f"{name}-idx{array.ndim}-ubyte").write_bytes(header + array.tobytes())
    return folder


def as_flags(fields: dict[str, Any]) -> list[str]:
    """The command's flags for fields of a configuration; those that are None are left out."""
    given = {
        name: value if isinstance(value, tuple) else (value,)
        for name, value in fields.items()
        if value is not None
    }
    return [
        part
        for name, values in given.items()
        for part in (f"--{name.replace('_', '-')}", *map(str, values))
    ]


@pytest.fixture(scope="module")
def short_classifiers() -> Iterator[None]:
    """Feature networks of a few steps, for tests that are not about how good they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("undiffuse.measuring.features.FEWEST_STEPS", 60)
        yield


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 grey 8x8 images with labels 0..9: noise, brighter with the label. 3 are held out."""
    rng = np.random.default_rng(0)
    labels = np.arange(64) % 10
    images = rng.integers(0, 120, (64, 8, 8)) + 15 * labels[:, None, None]
    return write_idx(tmp_path_factory.mktemp("data") / "digits", images.astype(np.uint8), labels)


@pytest.fixture(scope="session")
def shades(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for 2,400 images, enough for a classifier and for figures of quality."""
    rng = np.random.default_rng(0)
    labels = np.arange(2400) % 10
    images = rng.integers(0, 120, (2400, 8, 8)) + 15 * labels[:, None, None]
    folder = tmp_path_factory.mktemp("data") / "shades"
    return write_idx(folder, images.astype(np.uint8), labels.tolist())


@pytest.fixture(scope="session")
def tiny(digits: Path) -> dict[str, Any]:
    """Fields of a run that trains in about a second. With dropout, so that all randomness is used.

    The configuration, the options of its network and those of its session, as for `train`."""
    return {
        "data": str(digits),
        "steps": 12,
        "net": "unet",
        "channels": (8, 16),
        "blocks": (1, 1),
        "heads": 2,
        "dropout": 0.1,
        "batch_size": 8,
        "warmup": 2,
        "snapshots": 4,
        "snapshot_images": 4,
        "sample_calls": 3,
        "guidance": 1.0,
        "times": "logit-normal:mean=0.4,std=1.2",
        "guidance_limit": 1.5,
        "compile": "off",
        "precision": "fp32",
    }


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory, tiny: dict[str, Any]) -> Callable[..., Path]:
    """train(**fields): a finished run of `tiny` with some fields replaced."""
    from undiffuse import api

    return lambda **fields: api.train(tmp_path_factory.mktemp("runs") / "run", **{**tiny, **fields})


@pytest.fixture(scope="session")
def shared() -> list[Path]:
    """The runs that many tests read."""
    return []


@pytest.fixture(scope="session")
def run(train: Callable[..., Path], shared: list[Path]) -> Path:
    """A finished run without classes. Not to be changed: copy it first."""
    shared.append(train())
    return shared[-1]


@pytest.fixture(scope="session")
def labelled_run(train: Callable[..., Path], shared: list[Path]) -> Path:
    """A finished conditional run of ten classes. Not to be changed: copy it first."""
    shared.append(train(conditional=True))
    return shared[-1]


@pytest.fixture(autouse=True)
def shared_runs_are_only_read(shared: list[Path]) -> Iterator[None]:
    """A test that writes into a shared run fails itself, rather than some later test."""
    before = {run: content(run) for run in shared}
    yield
    changed = [path for run in before for path in before[run] ^ content(run)]
    assert changed == [], "this test changed a run that other tests read: copy it first"


def content(folder: Path) -> set[tuple[Path, int, int]]:
    """Each file of a folder with its size and time."""
    files = ((path, path.stat()) for path in folder.rglob("*") if path.is_file())
    return {(path, stat.st_size, stat.st_mtime_ns) for path, stat in files}


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs the command in this process. Returns its stdout, or stderr where it fails."""

    def run(*arguments: object) -> str:
        from undiffuse import cli

        monkeypatch.setattr("sys.argv", ["undiffuse", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as end:
            return capsys.readouterr().err if end.code == 2 else f"exit code {end.code}"
        return capsys.readouterr().out

    return run
