"""Sessions and run folders: what a run leaves, how it goes on, what it refuses.

And runs that end on a budget."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from conftest import as_flags, write_idx
from helpers_runs import (
    PLAIN,
    assert_same_run,
    configured,
    crash,
    files,
    finish,
    go_on,
    receive,
    session,
    spoil_noise,
    started,
    stop,
)
from undiffuse import api
from undiffuse.base import compiler as compilers
from undiffuse.base import engine
from undiffuse.base.engine import Engine
from undiffuse.base.errors import UserError
from undiffuse.base.files import temporary_name
from undiffuse.base.images import tiles
from undiffuse.base.tensors import save_tensors
from undiffuse.data import loading
from undiffuse.data.dataset import Dataset
from undiffuse.data.loading import load_dataset
from undiffuse.data.splits import split_dataset, subset
from undiffuse.runs import session as sessions
from undiffuse.runs.folder import FORMAT, Run
from undiffuse.runs.signals import Interrupted
from undiffuse.training import experiment, loop
from undiffuse.training.clock import FINISH_SECONDS, Clock, lr_factor, snapshot_steps
from undiffuse.training.config import Config
from undiffuse.training.optimizers import OPTIMIZERS
from undiffuse.training.options import SessionOptions
from undiffuse.training.presets import make_config, reasons
from undiffuse.training.probes import quick_samples
from undiffuse.training.records import (
    Cooldown,
    Projection,
    Quality,
    Record,
    Rollback,
    SessionStarted,
    Snapshot,
    StepTaken,
    Validation,
)


def assert_ends_and_goes_on(
    whole: Path,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: tuple[object, str, object],
    sentence: str,
    options: SessionOptions = PLAIN,
) -> None:
    """With the fault, training `whole` anew at `path` ends in the sentence; without it, it goes on.

    It then ends as the same run. fault: (object, attribute, what it is in place of that)."""
    config = Run(whole).about().config
    with monkeypatch.context() as patched:
        patched.setattr(*fault)
        with pytest.raises(UserError, match=sentence):
            finish(config, path, options)
    finish(config, path, options)
    assert_same_run(whole, path)


@pytest.fixture(scope="session")
def config(tiny: dict[str, Any]) -> Config:
    """That of the fixture `run`."""
    return configured(**tiny)


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A finished run that may be spoilt."""
    return Path(shutil.copytree(run, tmp_path / "copy"))


# What a run leaves


def test_a_run_leaves_these_files_and_no_others(run: Path) -> None:
    assert list(files(run)) == [
        *(f"averages/step_{step:06d}.safetensors" for step in (0, 2, 6, 12)),
        *(f"averages/wide_{step:06d}.safetensors" for step in (0, 2, 6, 12)),
        "before-decay.safetensors",
        "checkpoint.safetensors",
        "config.json",
        "data.png",
        "log.jsonl",
        "loss.png",
        "model.safetensors",
        *(f"samples/step_{step:06d}.png" for step in (0, 2, 6, 12)),
        "timeline.png",
    ]


def sha256(*parts: Dataset) -> str:
    """Of images and labels, a part after the other."""
    tensors = [x for part in parts for x in (part.images, part.labels) if x is not None]
    return hashlib.sha256(b"".join(x.numpy().tobytes() for x in tensors)).hexdigest()


def test_the_configuration_is_saved_with_its_reasons_and_its_data(
    run: Path, config: Config, digits: Path
) -> None:
    content = json.loads((run / "config.json").read_bytes())
    dataset, held_out = split_dataset(load_dataset(str(digits)), seed=0)
    assert content["config"] == json.loads(config.model_dump_json())
    assert content["reasons"] == reasons(config)
    assert content["data"] == {
        "name": "digits",
        "shape": [1, 8, 8],
        "classes": [str(n) for n in range(10)],
        "training": 61,
        "validation": len(held_out),
        "sha256": sha256(dataset, held_out),
    }
    assert content["conditioning"] == {
        "classes": [],
        "clusters": [],
        "class_of_cluster": [],
        "unconditional": True,
    }
    assert Run(run).about().config == config


def test_the_log_is_lines_of_json(run: Path, config: Config) -> None:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    assert [step["step"] for step in steps] == list(range(1, 13))
    assert [step["lr"] for step in steps] == [
        config.lr * lr_factor(step, config.warmup, [Cooldown(0, 0.0, 7, 12)]) for step in range(12)
    ]
    for kind in ("validation", "snapshot"):
        assert [line["step"] for line in lines if line["event"] == kind] == [0, 2, 6, 12]
    first, last = lines[0], lines[-1]
    assert (first["event"], last["event"], last["step"]) == ("session", "finished", 12)
    assert all(line["time"] >= 0 and line["step"] >= 0 for line in lines)
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)


def test_a_network_too_large_to_be_read_back_is_refused_first(
    config: Config, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its checkpoint may just be as large as it is, it is trained."""
    whole = sum(value.nbytes for value in load_file(run / "checkpoint.safetensors").values())
    for most, refused in ((whole, False), (whole - 100, True)):
        monkeypatch.setattr(experiment, "LARGEST", most + experiment.LARGEST_HEADER)
        folder = tmp_path / f"{refused}"
        if refused:
            with pytest.raises(UserError, match=r"checkpoints would take .* take fewer channels"):
                started(config, folder)
        else:
            started(config, folder)
        assert folder.exists() != refused


def test_there_are_twelve_snapshots_by_default(train: Callable[..., Path]) -> None:
    run = train(steps=66, snapshots=make_config().snapshots)
    names = [path.name for path in sorted((run / "samples").iterdir())]
    assert names == [
        f"step_{step:06d}.png" for step in (0, 1, 3, 6, 10, 15, 21, 28, 36, 45, 55, 66)
    ]


def test_the_last_snapshot_is_what_the_run_samples(run: Path, config: Config) -> None:
    """From the same noise, with the same weights: read back from the picture, pixel by pixel."""
    with Image.open(run / "samples" / "step_000012.png") as sheet:
        shown = [
            np.asarray(tile.resize((8, 8), Image.Resampling.NEAREST)) for tile in tiles(sheet, 8, 8)
        ]
    expected = api.sample(run, n=4, seed=config.seed)
    assert np.abs(np.stack(shown).astype(int) - expected).max() <= 1
    assert expected.std() > 10


def test_a_model_has_the_same_bytes_each_time_that_it_is_saved(run: Path, tmp_path: Path) -> None:
    for number in range(8):
        api.load(run).save(tmp_path / f"{number}.safetensors")
    contents = {path.read_bytes() for path in tmp_path.iterdir()}
    assert contents == {(run / "model.safetensors").read_bytes()}


@pytest.mark.parametrize("name", ["loss.png", "timeline.png"])
def test_the_figures_show_something(labelled_run: Path, name: str) -> None:
    with Image.open(labelled_run / name) as figure:
        pixels = np.asarray(figure.convert("L"))
        assert figure.width > 600
        assert figure.height > 250
    assert (pixels != pixels[0, 0]).mean() > 0.02


def test_a_run_without_held_out_images_has_its_figures_too(
    train: Callable[..., Path], tmp_path: Path
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    run = train(data=str(write_idx(tmp_path / "three", images)), steps=2, snapshots=2)
    assert Run(run).of(Validation) == []
    for name in ("loss.png", "timeline.png"):
        with Image.open(run / name) as figure:
            assert figure.convert("L").getextrema() == (0, 255)


AUDITED = """
import json, sys, traceback

own = []

def hook(event, arguments):
    if event == "pickle.find_class":
        callers = [frame.f_code.co_filename for frame, _ in traceback.walk_stack(None)]
        compiler = ("/torch/_inductor/", "/torch/_functorch/", "/torch/_dynamo/")
        if not any(part in name for name in callers for part in compiler):
            own.append((arguments, callers[:8]))

sys.addaudithook(hook)
import torch

def never(*_, **__):
    raise AssertionError("torch.save or torch.load")

torch.save = torch.load = never
from undiffuse import api

run, compiled, fields = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
api.train(run, **{**fields, "compile": compiled})
api.sample(run, n=4)
from pathlib import Path
from undiffuse.report import write_report
write_report(Path(run))
print(own)
"""


@pytest.mark.parametrize("compiled", ["off", pytest.param("on", marks=pytest.mark.slow)])
def test_nothing_is_unpickled(tmp_path: Path, tiny: dict[str, Any], compiled: str) -> None:
    """Python itself says so, while a run is trained, sampled and reported.

    It does whichever library it is, but for torch.compile's own cache."""
    command = [sys.executable, "-c", AUDITED, str(tmp_path / "run"), compiled, json.dumps(tiny)]
    (tmp_path / "shared").mkdir()
    environment = {
        **os.environ,
        "UNDIFFUSE_CACHE": str(tmp_path / "cache"),
        "TMPDIR": str(tmp_path / "shared"),
    }
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
    for _ in range(1 + (compiled == "on")):  # the second time compiled code comes from the cache
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["[]"]), done.stderr
        shutil.rmtree(tmp_path / "run")
    compiler = tmp_path / "cache" / "compiler"
    assert compiler.exists() == (compiled == "on")
    if compiled == "on":
        assert stat.S_IMODE(compiler.stat().st_mode) == 0o700
        assert any(path.suffix in (".gch", ".pch") for path in compiler.rglob("*"))
    assert [path for path in (tmp_path / "shared").rglob("*") if path.is_file()] == []


def test_a_subset_is_recorded_and_is_the_documented_one(
    train: Callable[..., Path], digits: Path
) -> None:
    def trained_on(seed: int) -> str:
        chosen = subset(load_dataset(str(digits)), 40, seed)
        assert len(chosen) == 40
        return sha256(*split_dataset(chosen, seed))

    run = Run(train(subset=40, seed=3, steps=2, snapshots=2))
    assert run.about().config.subset == 40
    assert (run.about().facts.training, run.about().facts.validation) == (38, 2)
    assert run.about().facts.sha256 == trained_on(seed=3) != trained_on(seed=4)


def test_mnists_test_images_are_never_read(
    monkeypatch: pytest.MonkeyPatch, train: Callable[..., Path]
) -> None:
    packaged, read = loading._packaged, []

    def spy(file: str, dimensions: int) -> Any:
        read.append(file)
        return packaged(file, dimensions)

    monkeypatch.setattr(loading, "_packaged", spy)
    train(data="mnist", subset=40, steps=2, snapshots=2)
    assert set(read) == {"train-images-idx3-ubyte", "train-labels-idx1-ubyte"}


# Records and the log


FINITE = st.floats(allow_nan=False, allow_infinity=False)
STEPS, SECONDS = st.integers(0, 10**15), st.floats(0, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=100)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FINITE | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
FIELDS = {
    **dict.fromkeys(
        ("step", "steps", "start", "end", "failed", "n", "parameters", "snapshots"), STEPS
    ),
    **dict.fromkeys(("time", "seconds"), SECONDS),
    **dict.fromkeys(("loss", "lr", "frechet", "floor"), FINITE),
    "machine": st.dictionaries(TEXT, JSON, max_size=3),
    "notes": st.lists(TEXT, max_size=3),
    "reason": TEXT,
    "file": TEXT,
    "levels": st.lists(st.tuples(FINITE, FINITE), max_size=8),
}
"""What each field of a record may be; those of `Snapshot.images` are a file of their own."""


def records_of(kind: type) -> st.SearchStrategy[Any]:
    names = [field.name for field in dataclasses.fields(kind)]
    return st.builds(kind, **{n: FIELDS[n] for n in names if n not in ("event", "images")})


@given(st.data())
def test_a_record_is_read_back_as_it_was_written(data: st.DataObject) -> None:
    """Of every kind: the same type, the same values, and these of the same types."""
    with tempfile.TemporaryDirectory() as place:
        run = Run(Path(place))
        written = [data.draw(records_of(kind)) for kind in get_args(Record)]
        for record in written:
            run.append(record)
        found = list(run.records())
    assert [type(record) for record in found] == list(get_args(Record))
    assert found == written
    for one, other in zip(found, written, strict=True):
        values, expected = vars(one), vars(other)
        assert [type(values[name]) for name in expected] == [type(x) for x in expected.values()]
        assert all(type(x) is float and math.isfinite(x) for x in one.scalars().values())
    assert {kind.event for kind in get_args(Record)} == {record.event for record in found}


def test_what_a_curve_shows_is_finite() -> None:
    """Averaged weights that are finite may have a held-out loss that is not."""
    assert Validation(1, 1.0, loss=math.inf, levels=[]).scalars() == {}
    assert Quality(1, 1.0, frechet=math.nan, floor=1.0, n=1, seconds=1.0).scalars() == {
        "Frechet distance, floor": 1.0
    }
    assert StepTaken(1, 1.0, loss=2.0, lr=0.5, seconds=1.0).scalars() == {
        "loss": 2.0,
        "learning rate": 0.5,
    }


def test_a_log_read_in_two_parts_is_the_log_read_at_once(copy: Path) -> None:
    """Wherever it is cut: what is no whole line is left for later, and read when it is whole."""
    run = Run(copy)
    content, whole = run.log_path.read_bytes(), list(run.records())
    ends = [place + 1 for place, byte in enumerate(content) if byte == ord("\n")]
    assert list(run.follow()) == list(zip(whole, ends, strict=True))
    for cut in sorted({0, *range(0, len(content), 11), *ends, *(end - 1 for end in ends)}):
        run.log_path.write_bytes(content[:cut])
        first = list(run.follow())
        position = first[-1][1] if first else 0
        assert position == max((end for end in ends if end <= cut), default=0)
        assert list(run.follow(position)) == []
        run.log_path.write_bytes(content)
        assert [record for record, _ in (*first, *run.follow(position))] == whole


def test_a_log_that_grows_is_followed(tmp_path: Path) -> None:
    run, position = Run(tmp_path), 0
    assert list(run.follow()) == []
    for step in range(1, 4):
        taken = StepTaken(step, 0.5 * step, 1.0, 0.1, 0.5)
        run.append(taken)
        ((record, position),) = run.follow(position)
        assert record == taken
    with run.log_path.open("ab") as file:
        file.write(b"{}\n")
    with pytest.raises(UserError, match=rf"log\.jsonl line 1 after byte {position} is damaged"):
        list(run.follow(position))


def test_following_a_long_log_holds_one_record_at_a_time(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.append(StepTaken(1, 0.5, 1.0, 0.1, 0.5))
    run.log_path.write_bytes(10_000 * run.log_path.read_bytes())
    tracemalloc.start()
    try:
        count = sum(1 for _ in run.follow())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 10_000
    assert run.log_path.stat().st_size > 800_000
    assert peak < 200_000


# Going on


@pytest.fixture(params=["steps", "epochs", "replay"])
def undisturbed(
    request: pytest.FixtureRequest, run: Path, config: Config, train: Callable[..., Path]
) -> tuple[Config, Path, dict[str, Any]]:
    """A configuration of 12 steps, its undisturbed run, and further options of training.

    They are 12 as steps, as epochs, or as the replay of a run."""
    if request.param == "epochs":
        epochs = {"steps": None, "epochs": 12 * config.batch_size / Run(run).about().facts.training}
        return config.model_copy(update=epochs), train(**epochs), {}
    return config, run, {"replay": run} if request.param == "replay" else {}


def test_a_run_stopped_at_every_step_goes_on_to_the_same_end(
    undisturbed: tuple[Config, Path, dict[str, Any]], tmp_path: Path
) -> None:
    config, whole, options = undisturbed
    path = tmp_path / "run"
    for at in range(1, 12):
        stop(config, path, at, **options)
        assert not Run(path).finished()
    finish(config, path, **options)
    assert [record.step for record in Run(path).of(SessionStarted)] == list(range(12))
    assert_same_run(whole, path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("undisturbed", "at"),
    [(("steps", "epochs", "replay")[at % 3], at) for at in range(1, 12)],
    indirect=["undisturbed"],
)
def test_a_run_stopped_once_at_any_step_goes_on_to_the_same_end(
    at: int, undisturbed: tuple[Config, Path, dict[str, Any]], tmp_path: Path
) -> None:
    config, whole, options = undisturbed
    stop(config, tmp_path / "run", at, **options)
    finish(config, tmp_path / "run", **options)
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_every_optimizers_state_is_kept(
    optimizer: str, train: Callable[..., Path], tmp_path: Path, config: Config
) -> None:
    other = config.model_copy(update={"optimizer": optimizer})
    for at in (1, 7):
        stop(other, tmp_path / "run", at)
    finish(other, tmp_path / "run")
    assert_same_run(train(optimizer=optimizer), tmp_path / "run")


def test_a_run_says_where_its_bits_will_not_be_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, config: Config
) -> None:
    stop(config, tmp_path / "run", at=3)
    assert started(config, tmp_path / "run").notes == []
    facts = engine.machine_facts()
    monkeypatch.setattr(sessions, "machine_facts", lambda: {**facts, "threads": 64, "torch": "3.0"})
    (note,) = started(config, tmp_path / "run").notes
    assert "(torch, threads): the result will not be the same to the bit" in note


def test_a_compiled_run_says_where_the_compiler_is_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, config: Config
) -> None:
    """An eager one does not. (The compiler is a script here, and the session is only begun.)"""
    script = tmp_path / "c++"
    monkeypatch.setenv("CXX", str(script))

    def begun(version: str, compiled: bool) -> list[str]:
        script.write_text(f"#!/bin/sh\necho 'c++ {version}'\necho 'and more'\n")
        script.chmod(0o755)
        assert compilers.compiler_version() == f"c++ {version}"
        monkeypatch.setattr(sessions, "resolve", lambda *_: (Engine("fp32", compiled), []))
        return started(config, tmp_path / f"run-{compiled}").notes

    assert [begun("1", False), begun("2", False), begun("1", True)] == [[], [], []]
    (note,) = begun("2", True)
    assert "(compiler): the result will not be the same to the bit" in note


def test_a_run_goes_on_in_another_precision_and_says_that_bits_may_differ(
    run: Path, tmp_path: Path, config: Config, tiny: dict[str, Any]
) -> None:
    """With other weights than before, but not by much."""
    path = tmp_path / "run"
    stop(config, path, at=6)
    assert api.train(path, **{**tiny, "precision": "bf16"}) == path
    first, second = Run(path).of(SessionStarted)
    assert first.notes == []
    (note,) = second.notes
    assert "options of before (precision): the result will not be the same to the bit" in note
    assert (first.machine["precision"], second.machine["precision"]) == ("fp32", "bf16")
    losses = [[step.loss for step in Run(one).of(StepTaken)] for one in (run, path)]
    assert losses[0][:6] == losses[1][:6]
    assert losses[0][6:] != losses[1][6:]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_a_compiled_run_goes_on_without_compiling_and_says_that_bits_may_differ(
    monkeypatch: pytest.MonkeyPatch, run: Path, tmp_path: Path, config: Config
) -> None:
    """The compiler makes the same function here. It takes whole batches, so sums are rounded."""
    path, compiled = tmp_path / "run", SessionOptions(precision="fp32", compile="on")
    monkeypatch.setattr("undiffuse.training.options.compiler", lambda: "c++")
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    stop(config, path, at=6, options=compiled)
    assert started(config, path, compiled).notes == []
    (note,) = started(config, path, PLAIN).notes
    assert "options of before (compiled): the result will not be the same to the bit" in note
    finish(config, path, PLAIN)
    assert [first.machine["compiled"] for first in Run(path).of(SessionStarted)] == [
        *[True, True],
        *[False, False],
    ]
    losses = [[step.loss for step in Run(each).of(StepTaken)] for each in (path, run)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)  # rounding grows with each step


def test_a_run_stopped_before_its_first_step_begins_again(
    run: Path, tmp_path: Path, config: Config
) -> None:
    path = tmp_path / "run"
    with pytest.raises(Interrupted):
        receive(signal.SIGINT, config, path, Snapshot, at=0)
    finish(config, path)
    assert_same_run(run, path)


@pytest.fixture(scope="module")
def checkpointed(train: Callable[..., Path]) -> Path:
    """A finished run, as `OFTEN` trains it."""
    return train(checkpoint_every=3)


OFTEN = PLAIN.model_copy(update={"checkpoint_every": 3})


@pytest.mark.parametrize(
    ("kind", "at"),
    [
        *[(SessionStarted, 0), (Validation, 0), (Snapshot, 0), (StepTaken, 2)],
        *[(Validation, 6), (StepTaken, 8), (StepTaken, 12), (Validation, 12), (Snapshot, 12)],
    ],
)
def test_a_crashed_run_goes_on_from_its_checkpoint(
    checkpointed: Path, tmp_path: Path, kind: type, at: int
) -> None:
    """Nothing is logged twice, nothing is missing, and the torn last line is passed over."""
    path, config = tmp_path / "run", Run(checkpointed).about().config
    crash(config, path, kind, at, options=OFTEN)
    assert started(config, path, OFTEN).step == at // 3 * 3
    finish(config, path, OFTEN)
    assert_same_run(checkpointed, path)


def test_a_finished_run_is_not_touched(copy: Path, config: Config) -> None:
    before = files(copy)
    assert go_on(config, copy) == []
    assert api.train_config(config, copy) == copy
    assert files(copy) == before


def test_two_processes_do_not_train_one_run(
    run: Path, tmp_path: Path, config: Config, tiny: dict[str, Any]
) -> None:
    """The second is refused, and changes nothing; when the first has ended, however, it goes on."""
    path = tmp_path / "run"
    command = [sys.executable, "-m", "undiffuse", "train", "--out", path, *as_flags(tiny)]
    with session(config, path) as records:
        list(islice(records, 5))
        before = files(path)
        second = subprocess.run(command, capture_output=True, text=True)
        assert (second.returncode, files(path)) == (2, before)
        assert second.stderr == (
            f"undiffuse: {path} is being trained by another process; wait for it to end, or stop "
            "it\n"
        )
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert_same_run(run, path)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_where_nothing_can_be_locked_training_goes_on_and_says_so(
    run: Path, tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    import fcntl

    def without_locks(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", without_locks)
    finish(config, tmp_path / "run")
    assert_same_run(run, tmp_path / "run")
    (started,) = Run(tmp_path / "run").of(SessionStarted)
    assert any("cannot lock" in note for note in started.notes)


def test_where_folders_cannot_be_locked_a_file_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS refuses a lock on what is not open for writing."""
    import fcntl

    flock = fcntl.flock

    def of_nfs(descriptor: int, how: int) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", of_nfs)
    with Run(tmp_path).locked() as notes:
        assert notes == []
        with pytest.raises(UserError, match="being trained by another"), Run(tmp_path).locked():
            pass
    with Run(tmp_path).locked() as notes:
        assert notes == []


def test_training_works_outside_of_the_main_thread(
    run: Path, tmp_path: Path, config: Config
) -> None:
    thread = threading.Thread(target=finish, args=(config, tmp_path / "run"))
    thread.start()
    thread.join()
    assert_same_run(run, tmp_path / "run")


def test_handlers_of_signals_are_put_back(tmp_path: Path, config: Config) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    stop(config, tmp_path / "run", at=1)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


SIGNALLED = """
import os, threading, time
from undiffuse import cli
from undiffuse.console import live

class Watcher(live.Watcher):
    def __call__(self, record):
        super().__call__(record)
        if type(record).__name__ == "StepTaken" and record.step == 5:
            os.kill(os.getpid(), {number})
            threading.Thread(target=again_and_again, daemon=True).start()

def again_and_again():
    while {again}:
        os.kill(os.getpid(), {number})
        time.sleep(0.0005)

live.Watcher = Watcher
cli.main()
"""


@pytest.mark.parametrize(
    ("number", "code", "again"),
    [(signal.SIGINT, 130, False), (signal.SIGTERM, 143, False), (signal.SIGINT, 130, True)],
    ids=["Ctrl-C", "SIGTERM", "Ctrl-C again and again"],
)
def test_a_signal_saves_and_the_same_command_goes_on(
    run: Path, tmp_path: Path, tiny: dict[str, Any], number: int, code: int, again: bool
) -> None:
    path = tmp_path / "run"
    arguments = [
        sys.executable,
        "-c",
        SIGNALLED.format(number=int(number), again=again),
        "train",
        "--out",
        path,
        *as_flags(tiny),
    ]
    stopped = subprocess.run(arguments, capture_output=True, text=True)
    assert (stopped.returncode, stopped.stderr) == (code, "")
    assert again or "goes on from here" in stopped.stdout
    finish(configured(**tiny), path)
    assert_same_run(run, path)


class Eyes:
    """The quality of samples is their mean."""

    floors: ClassVar[dict[int, float]] = {4: 1.0}

    def __call__(self, images: Tensor) -> float:
        return images.double().mean().item()


@pytest.mark.parametrize("at", [6, 12])
def test_a_signal_while_quality_is_measured_leaves_that_to_the_next_session(
    tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """At the end of the run, too."""
    monkeypatch.setattr(sessions, "scorer_for", lambda whole: Eyes())
    config = configured(**{**tiny, "quality_share": 0.5})
    finish(config, tmp_path / "whole")
    assert at in [quality.step for quality in Run(tmp_path / "whole").of(Quality)]

    def interrupted(*arguments: Any) -> Iterator[Tensor]:
        if arguments[1].state.step == at:
            signal.raise_signal(signal.SIGTERM)
        yield from quick_samples(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "quick_samples", interrupted)
        with pytest.raises(Interrupted):
            finish(config, tmp_path / "run")
    kinds = {record.event for record in Run(tmp_path / "run").records() if record.step == at}
    assert not kinds & {"validation", "quality", "snapshot", "finished"}
    finish(config, tmp_path / "run")
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_snapshot_that_was_deleted_does_not_keep_a_run_from_its_end(
    run: Path, tmp_path: Path, config: Config
) -> None:
    stop(config, tmp_path / "run", at=7)
    (tmp_path / "run" / "samples" / "step_000002.png").unlink()
    finish(config, tmp_path / "run")
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (
        run / "model.safetensors"
    ).read_bytes()
    with (
        Image.open(run / "timeline.png") as whole,
        Image.open(tmp_path / "run" / "timeline.png") as figure,
    ):
        assert figure.height < whole.height


@pytest.mark.slow
@pytest.mark.skipif(compilers.compiler() is None, reason="there is no C++ compiler")
def test_compiled_conditional_runs_replay_and_resume_to_the_bit(tmp_path: Path) -> None:
    """The default network and arithmetic, on all threads.

    LOG.md tells of a gradient that was summed in any order."""
    script = """
import signal, sys
from pathlib import Path
import torch
from undiffuse import api
from undiffuse.runs.signals import Interrupted
from undiffuse.training.options import SessionOptions
from undiffuse.training.presets import make_config
from undiffuse.training.records import StepTaken
torch.set_num_threads(2)
path, stops = Path(sys.argv[1]), [int(step) for step in sys.argv[2].split(",") if step]
config = make_config(conditional=True, steps=150, subset=3000, quality_share=0.0, snapshots=2)
options = SessionOptions(compile="on", precision="bf16")
def watch(record):
    if isinstance(record, StepTaken) and record.step in stops:
        signal.raise_signal(signal.SIGTERM)
replay = Path(sys.argv[3]) if sys.argv[3:] else None
while True:
    try:
        api.train_config(config, path, options, replay=replay, watch=watch)
        break
    except Interrupted:
        pass
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    for name, stops, *replay in (
        ("whole", ""),
        ("stopped", "1,37,75,112,149"),
        ("replayed", "", tmp_path / "whole"),
    ):
        arguments = [sys.executable, "-c", script, tmp_path / name, stops, *replay]
        subprocess.run(arguments, check=True, env=environment)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    assert_same_run(tmp_path / "whole", tmp_path / "replayed")


# What is refused, with nothing changed


def test_another_configuration_is_refused_with_the_differences(
    copy: Path, tiny: dict[str, Any]
) -> None:
    before = files(copy)
    with pytest.raises(
        UserError, match=r"lr: 0.004 there, 0.5 asked; seed: 0 there, 1 asked.*out=FOLDER"
    ):
        finish(configured(**{**tiny, "lr": 0.5, "seed": 1}), copy)
    assert files(copy) == before


def test_a_folder_of_other_things_is_refused(tmp_path: Path, config: Config) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "notes.txt", tmp_path / "notes.txt" / "run"):
        with pytest.raises(UserError, match=str(path)):
            finish(config, path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_whose_beginning_was_cut_off_serves(tmp_path: Path, config: Config) -> None:
    (tmp_path / temporary_name("config.json")).write_bytes(b'{"form')
    assert started(config, tmp_path).step == 0


def test_an_empty_folder_serves(run: Path, tmp_path: Path, config: Config) -> None:
    finish(config, tmp_path)
    assert_same_run(run, tmp_path)


def test_changed_data_are_refused(tmp_path: Path, tiny: dict[str, Any]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)
    folder = write_idx(tmp_path / "data", pixels, [n % 2 for n in range(30)])
    config = configured(**{**tiny, "data": str(folder)})
    stop(config, tmp_path / "run", at=1)
    before = files(tmp_path / "run")
    held_out = pixels.copy()
    held_out[
        pixels.tolist().index(split_dataset(load_dataset(str(folder)), 0)[1].images[0, 0].tolist())
    ] ^= 1
    halves = [n % 2 for n in range(30)]
    for changed, labels in (
        (pixels ^ 1, halves),
        (pixels, [n % 3 % 2 for n in range(30)]),
        (held_out, halves),
    ):
        write_idx(folder, changed, labels)
        with pytest.raises(UserError, match="other images"):
            finish(config, tmp_path / "run")
        assert files(tmp_path / "run") == before


def test_a_replay_of_other_images_is_refused(tmp_path: Path, tiny: dict[str, Any]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)
    folder = write_idx(tmp_path / "data", pixels)
    config = configured(**{**tiny, "data": str(folder), "steps": 2, "snapshots": 2})
    finish(config, tmp_path / "run")
    write_idx(folder, pixels ^ 1)
    with pytest.raises(
        UserError, match=r"run was trained on other images than .* bring those back"
    ):
        finish(config, tmp_path / "again", replay=tmp_path / "run")
    assert not (tmp_path / "again").exists()


def test_a_resumed_run_knows_what_its_snapshots_and_qualities_take(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where only the last is left to come, nothing else would say it, and the run would be late."""
    stop(config, tmp_path, at=3)
    log = Run(tmp_path).of(Snapshot)
    assert [snapshot.step for snapshot in log] == [0, 2]
    assert all(0 < snapshot.seconds < 60 for snapshot in log)
    Run(tmp_path).append(Quality(2, 1.0, frechet=1.0, floor=1.0, n=1, seconds=7.5))
    clocks = []

    def watched(*arguments: Any, **fields: Any) -> Clock:
        clocks.append(Clock(*arguments, **fields))
        return clocks[-1]

    monkeypatch.setattr(sessions, "Clock", watched)
    started(config, tmp_path)
    assert (clocks[0].snapshot_seconds, clocks[0].quality_seconds) == (log[-1].seconds, 7.5)


def test_the_log_is_on_the_disk_before_the_weights_that_follow_from_it(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    finish(config, tmp_path / "run")
    log, checkpoint = (
        (tmp_path / "run" / name).stat().st_ino for name in ("log.jsonl", "checkpoint.safetensors")
    )
    assert synced[synced.index(checkpoint) - 1] == log


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"conditional": True, "data": "{unlabelled}"}, "needs class labels"),
        ({"subset": 65}, "1 to 64 images, not 65"),
        ({"size": 2}, "4 to 1024 pixels"),
        ({"data": "nowhere"}, "'nowhere'"),
        ({"heads": 3}, "heads"),
        ({"schedule": "cosine", "predict": "eps"}, "divides by zero"),
    ],
)
def test_what_cannot_be_trained_writes_nothing(
    tmp_path: Path, tiny: dict[str, Any], fields: dict[str, Any], sentence: str
) -> None:
    unlabelled = write_idx(tmp_path / "unlabelled", np.full((20, 8, 8), 99, np.uint8))
    fields = {
        k: v.format(unlabelled=unlabelled) if isinstance(v, str) else v for k, v in fields.items()
    }
    with pytest.raises(UserError, match=sentence):
        api.train(tmp_path / "run", **{**tiny, **fields})
    assert not (tmp_path / "run").exists()


# What is damaged


def edited(**changes: Any) -> Callable[[bytes], bytes]:
    """A config.json with other values in its configuration."""

    def edit(content: bytes) -> bytes:
        whole = json.loads(content)
        whole["config"] |= changes
        return json.dumps(whole).encode()

    return edit


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda content: content[:100],
        lambda _: b"[]",
        lambda _: b"{}",
        lambda _: b'{"format": %d}' % FORMAT,
        lambda _: b'{"format": 99}',
        lambda _: b'{"format": 2}',
        lambda _: b"\xff\xfe",
        edited(lr=-1),
        edited(future=1),
        lambda _: b"[" * 100_000,
        lambda _: b" " * 2**21,
        lambda old: old.replace(b'"training": 61', b'"training": -1'),
        lambda old: old.replace(b'"training": 61', b'"training": {}'),
        lambda old: re.sub(rb'"shape": \[\s*1,', b'"shape": [1e9,', old),
        lambda old: re.sub(rb'"shape": \[\s*1,', b'"shape": [', old),
        lambda old: old.replace(b'"class_of_cluster": []', b'"class_of_cluster": [0]'),
        lambda old: old.replace(b'"clusters": []', b'"clusters": [60]'),
        lambda old: re.sub(rb'"conditioning": {\s*"classes": \[', rb'\g<0>"cat"', old),
    ],
    ids=[
        "empty",
        "cut",
        "list",
        "no format",
        "only format",
        "new format",
        "old format",
        "not text",
        "bad value",
        "unknown field",
        "deep",
        "large",
        "negative",
        "wrong type",
        "huge shape",
        "short shape",
        "cluster without images",
        "cluster of other images",
        "other classes",
    ],
)
def test_a_damaged_config_is_named(
    copy: Path, config: Config, damage: Callable[[bytes], bytes]
) -> None:
    path = copy / "config.json"
    before = path.read_bytes()
    path.write_bytes(damage(before))
    assert path.read_bytes() != before
    for use in (lambda: api.load(copy), lambda: finish(config, copy)):
        with pytest.raises(UserError, match=r"config\.json"):
            use()


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, None])
def test_a_damaged_checkpoint_is_named(
    tmp_path: Path, config: Config, content: bytes | None
) -> None:
    """Empty, zeros, or cut short."""
    stop(config, tmp_path / "run", at=1)
    path = tmp_path / "run" / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    for use in (lambda: api.load(tmp_path / "run"), lambda: finish(config, tmp_path / "run")):
        with pytest.raises(UserError, match=r"checkpoint\.safetensors"):
            use()


def test_a_checkpoint_of_another_network_is_named(tmp_path: Path, config: Config) -> None:
    stop(config, tmp_path / "run", at=1)
    save_tensors(
        tmp_path / "run" / "checkpoint.safetensors", {"weights/x": torch.zeros(1)}, {"step": "1"}
    )
    for use in (lambda: api.load(tmp_path / "run"), lambda: finish(config, tmp_path / "run")):
        with pytest.raises(UserError, match=r"checkpoint\.safetensors"):
            use()


@pytest.mark.parametrize(
    ("line", "what"),
    [
        *((line, r"[A-Z][^:]+") for line in (b"{half", b"[]", b"17", b"{}")),
        (b'{"event": "step", "step": 1, "time": 0.1, "loss": "low"}', "step loss: Input should"),
        (b'{"event": "finished", "step": 1, "time": 0.1, "x": 2}', "finished x: Unexpected"),
    ],
)
def test_a_damaged_line_of_the_log_is_named(
    copy: Path, config: Config, line: bytes, what: str
) -> None:
    lines = (copy / "log.jsonl").read_bytes().splitlines()
    (copy / "log.jsonl").write_bytes(b"\n".join([lines[0], line, *lines[2:], b""]))
    with pytest.raises(UserError, match=rf"log\.jsonl line 2 is damaged: {what}"):
        finish(config, copy)


def test_a_run_without_weights_says_so(tmp_path: Path, config: Config) -> None:
    started(config, tmp_path / "run")
    with pytest.raises(UserError, match="no weights yet"):
        api.load(tmp_path / "run")


# A full disk


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "data.png",
        "log.jsonl",
        "checkpoint.safetensors",
        "model.safetensors",
        "loss.png",
    ],
)
def test_a_full_disk_ends_training_with_a_sentence_and_it_goes_on_when_there_is_room(
    monkeypatch: pytest.MonkeyPatch, checkpointed: Path, tmp_path: Path, name: str
) -> None:
    """Each file in turn is the one that does not fit, when it is written for the third time."""
    opened, left = Path.open, 3 if name in ("log.jsonl", "checkpoint.safetensors") else 1

    def full(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        nonlocal left
        if mode in ("ab", "xb") and re.sub(r"^\.(.*)\.[^.]+\.tmp$", r"\1", path.name) == name:
            left -= 1
            if left <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return opened(path, mode, *rest, **options)

    sentence = rf"{name} could not be written \(No space left on device\)"
    assert_ends_and_goes_on(
        checkpointed, tmp_path / "run", monkeypatch, (Path, "open", full), sentence, OFTEN
    )


# Numbers that go wrong


@pytest.mark.parametrize("at", [None, 3, 5])
def test_a_run_that_was_rolled_back_goes_on_and_replays_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, config: Config, at: int | None
) -> None:
    """NaN in step 6, once; killed at no step, or after so many: the same run.

    So is its replay, in which nothing is wrong."""
    monkeypatch.setattr(loop, "KEPT_EVERY", 4)
    left = [True]
    spoil_noise(monkeypatch, lambda step: step == 6 and bool(left) and left.pop())
    for number, path in enumerate((tmp_path / "whole", tmp_path / "killed")):
        left[:] = [True]
        if number and at:
            crash(config, path, Rollback if at == 5 else StepTaken, 4 if at == 5 else at)
        finish(config, path)
    rollbacks = Run(tmp_path / "whole").of(Rollback)
    assert [(rollback.step, rollback.failed) for rollback in rollbacks] == [(4, 6)]
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    monkeypatch.undo()
    finish(config, tmp_path / "replay", replay=tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "replay")


def test_a_rollback_that_is_cut_off_is_made_again_or_forgotten(
    monkeypatch: pytest.MonkeyPatch, checkpointed: Path, tmp_path: Path
) -> None:
    """Killed between the checkpoint and the log.

    What went wrong does not come again here, so the run is as if it never had."""
    monkeypatch.setattr(loop, "KEPT_EVERY", 4)
    config, left = Run(checkpointed).about().config, [True]

    def killed(run: Run, step: int) -> None:
        if not left:
            raise RuntimeError("killed")

    spoil_noise(monkeypatch, lambda step: step == 8 and bool(left) and left.pop())
    with monkeypatch.context() as patched:
        patched.setattr(Run, "rewind_log", killed)
        with pytest.raises(RuntimeError, match="killed"):
            finish(config, tmp_path / "run", OFTEN)
    assert Run(tmp_path / "run").load_tensors(tmp_path / "run" / "checkpoint.safetensors")[1] == 4
    finish(config, tmp_path / "run", OFTEN)
    assert_same_run(checkpointed, tmp_path / "run")


# A budget of minutes, and its replay


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Made-up time: a tenth of a second passes whenever training looks at the clock."""
    clock = SimpleNamespace(now=1000.0)

    def monotonic() -> float:
        clock.now += 0.1
        return clock.now

    for module in (sessions, loop):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=monotonic))
    yield clock
    monkeypatch.undo()


@pytest.fixture
def minute(tiny: dict[str, Any]) -> Config:
    return configured(**{**tiny, "steps": None, "minutes": 1})


def check_ending(path: Path, config: Config) -> None:
    """The run ended on its budget, by cooldowns.

    Each was in the log before the first step that it acts on."""
    cooldowns: list[Cooldown] = []
    for record in Run(path).records():
        if isinstance(record, Cooldown):
            cooldowns.append(record)
            assert record.step == record.start
        elif isinstance(record, StepTaken):
            assert record.lr == config.lr * lr_factor(record.step - 1, config.warmup, cooldowns)
    ended = Run(path).finished()
    assert ended is not None
    assert ended.step == cooldowns[-1].end
    assert ended.time + FINISH_SECONDS == pytest.approx(60, rel=0.05)


@pytest.mark.usefixtures("ticking")
def test_minutes_end_on_the_budget(tmp_path: Path, minute: Config) -> None:
    finish(minute, tmp_path / "run")
    check_ending(tmp_path / "run", minute)
    (projection,) = Run(tmp_path / "run").of(Projection)
    ended = Run(tmp_path / "run").finished()
    due = {step for step in snapshot_steps(projection.steps, 4) if step > projection.step}
    taken = {snapshot.step for snapshot in Run(tmp_path / "run").of(Snapshot)}
    assert ended is not None
    assert taken == {0, *(step for step in due if step < ended.step), ended.step}


def test_the_budget_is_the_sum_over_all_sessions(
    ticking: SimpleNamespace, tmp_path: Path, minute: Config
) -> None:
    """What passes between two sessions does not count."""
    for at in (3, 20, 70):
        stop(minute, tmp_path / "run", at)
        ticking.now += 10_000
    finish(minute, tmp_path / "run")
    check_ending(tmp_path / "run", minute)


def test_what_was_spent_before_the_first_step_counts(
    ticking: SimpleNamespace, tmp_path: Path, minute: Config
) -> None:
    """As when compiling, which takes a while, is interrupted."""

    def interrupted() -> None:
        with session(minute, tmp_path / "run") as records:
            for record in records:
                if isinstance(record, Snapshot):
                    ticking.now += 25
                    signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        interrupted()
    assert started(minute, tmp_path / "run").time > 25
    finish(minute, tmp_path / "run")
    check_ending(tmp_path / "run", minute)


@pytest.fixture
def timed(ticking: SimpleNamespace, tmp_path: Path, minute: Config) -> Path:
    """A finished run of a minute, on a machine that became three times slower after 45 seconds."""
    path = tmp_path / "timed"
    with session(minute, path) as records:
        for record in records:
            ticking.now += 0.8 if ticking.now > 1045 and isinstance(record, StepTaken) else 0
    return path


def test_a_replay_is_the_run_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, timed: Path, tmp_path: Path
) -> None:
    """In real time, in which a minute has not passed: only the records count."""
    assert len(Run(timed).of(Cooldown)) > 1
    monkeypatch.undo()
    finish(Run(timed).about().config, tmp_path / "again", replay=timed)
    assert_same_run(timed, tmp_path / "again")


def test_a_stopped_replay_goes_on_to_the_same_end(
    monkeypatch: pytest.MonkeyPatch, timed: Path, tmp_path: Path
) -> None:
    """Stopped before the first cooldown, and between two."""
    first, second, *_ = (cooldown.step for cooldown in Run(timed).of(Cooldown))
    config = Run(timed).about().config
    monkeypatch.undo()
    for at in (first - 10, (first + second) // 2):
        stop(config, tmp_path / "again", at, replay=timed)
    finish(config, tmp_path / "again", replay=timed)
    assert_same_run(timed, tmp_path / "again")


def test_an_unfinished_run_is_not_replayed(tmp_path: Path, config: Config) -> None:
    stop(config, tmp_path / "run", at=1)
    with pytest.raises(UserError, match="unfinished"):
        finish(config, tmp_path / "again", replay=tmp_path / "run")
    assert not (tmp_path / "again").exists()


def test_a_run_is_not_overwritten_by_a_replay(run: Path, copy: Path, config: Config) -> None:
    before = files(copy)
    with pytest.raises(UserError, match="is no replay"):
        finish(config, copy, replay=run)
    assert files(copy) == before


@pytest.mark.parametrize(
    "fields",
    [
        {"schedule": "sigmoid:tau=0"},
        {"schedule": "cosine:s=-1"},
        {"schedule": "cosine:s=-0.5"},
        {"schedule": "sigmoid:start=-2000"},
        {"schedule": "log-linear:snr_max=-20"},
        {"predict": "edm:sigma_data=0"},
        {"weighting": "edm:sigma_data=0"},
        {"weighting": "sigmoid:bias=1000"},
        {"weighting": "min-snr:gamma=-5"},
        {"sampler": "ddim:eta=2"},
        {"grid": "karras:rho=0"},
        {"grid": "karras:rho=0.001"},
        {"grid": "karras:sigma_min=-1"},
    ],
    ids=str,
)
def test_parameters_that_make_no_diffusion_model_are_refused_before_anything_is_written(
    tiny: dict[str, Any], tmp_path: Path, fields: dict[str, Any]
) -> None:
    with pytest.raises(UserError):
        api.train(tmp_path / "run", **{**tiny, **fields})
    assert not (tmp_path / "run").exists()
