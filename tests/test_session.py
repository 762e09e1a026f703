"""Sessions and run folders: what a run leaves, how it goes on, what it refuses; and runs that end on a budget."""

from __future__ import annotations

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
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from undiffuse.training.events import Ended, SetBack, Snapshot, Stepped, Validated

from conftest import as_flags, write_idx
from undiffuse import api
from undiffuse.base import engine, rng
from undiffuse.base.errors import UserError
from undiffuse.base.images import tiles
from undiffuse.base.tensors import save_tensors
from undiffuse.data import loading
from undiffuse.data.dataset import Dataset
from undiffuse.data.loading import load_dataset
from undiffuse.data.splits import split_dataset, subset
from undiffuse.runs import session
from undiffuse.runs.folder import Run
from undiffuse.runs.session import Began, train_session
from undiffuse.runs.signals import Stopped
from undiffuse.training import experiment, loop, probes
from undiffuse.training.clock import FINISH_SECONDS, Clock, Decision, lr_factor, snapshot_steps
from undiffuse.training.config import Config
from undiffuse.training.optimizers import OPTIMIZERS
from undiffuse.training.presets import make_config, reasons
from undiffuse.training.probes import quick_samples

Files = dict[str, tuple[bytes, int]]


def files(folder: Path) -> Files:
    """The files of a folder, with their content and time of change."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in found
    }


def finish(config: Config, path: Path, **options: Any) -> None:
    """Train to the end, which must come."""
    with closing(train_session(config, path, **options)) as events:
        *_, last = islice(events, 2000)
    assert last == Ended(last.step, finished=True)


def receive(number: int, config: Config, path: Path, kind: type, at: int, **options: Any) -> None:
    """Train, and receive this signal after an event of this kind and step."""
    with closing(train_session(config, path, **options)) as events:
        for event in islice(events, 2000):
            if event.step == at and isinstance(event, kind):
                signal.raise_signal(number)


def stop(config: Config, path: Path, at: int, **options: Any) -> None:
    """Train, and be stopped after step `at`."""
    with pytest.raises(Stopped) as caught:
        receive(signal.SIGTERM, config, path, Stepped, at, **options)
    assert caught.value.signal == signal.SIGTERM


def crash(config: Config, path: Path, kind: type, at: int) -> None:
    """Train, and cease to exist after an event of this kind and step, in the middle of a line of the log."""
    with closing(train_session(config, path)) as events:
        for event in events:
            if event.step == at and isinstance(event, kind):
                break
    with Run(path).log_path.open("ab") as file:
        file.write(b'{"event": "step", "st')


def figures(path: Path) -> list[dict[str, Any]]:
    """The log without times, seconds and sessions; a replay begins with the clock's records, so these come last here."""
    events = [
        {k: v for k, v in event.items() if k not in ("time", "seconds")}
        for event in Run(path).log()
    ]
    kept = [event for event in events if event["event"] not in ("session", "stopped")]
    return sorted(kept, key=lambda event: event["event"] == "clock")


def assert_same_run(one: Path, other: Path) -> None:
    """The same tensors to the bit, the same log, the same pictures."""
    for name in ("checkpoint.safetensors", "model.safetensors"):
        left, right = load_file(one / name), load_file(other / name)
        assert left.keys() == right.keys()
        assert [key for key in left if not torch.equal(left[key], right[key])] == []
    assert figures(one) == figures(other)
    pictures = sorted(path.relative_to(one) for path in one.rglob("*.png"))
    assert pictures == sorted(path.relative_to(other) for path in other.rglob("*.png"))
    assert [
        name for name in pictures if (one / name).read_bytes() != (other / name).read_bytes()
    ] == []


def assert_ends_and_goes_on(
    whole: Path,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: tuple[object, str, object],
    sentence: str,
) -> None:
    """With the fault, (object, attribute, what it is in place of that), training `whole` anew at `path` ends in the sentence; without it,
    it goes on to the same run."""
    config = Run(whole).about().config
    with monkeypatch.context() as patched:
        patched.setattr(*fault)
        with pytest.raises(UserError, match=sentence):
            finish(config, path)
    finish(config, path)
    assert_same_run(whole, path)


@pytest.fixture(scope="session")
def config(tiny: dict[str, Any]) -> Config:
    """That of the fixture `run`."""
    return make_config(**tiny)


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A finished run that may be spoilt."""
    return Path(shutil.copytree(run, tmp_path / "copy"))


# What a run leaves


def test_a_run_leaves_these_files_and_no_others(run: Path) -> None:
    assert list(files(run)) == [
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
        "groups": [],
        "class_of": [],
    }
    assert Run(run).about().config == config


def test_the_log_is_lines_of_json(run: Path, config: Config) -> None:
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["event"] == "step"]
    assert [event["step"] for event in steps] == list(range(1, 13))
    assert [event["lr"] for event in steps] == [
        config.lr * lr_factor(step, config.warmup, [Decision(7, 12)]) for step in range(12)
    ]
    for kind in ("validation", "snapshot"):
        assert [event["step"] for event in events if event["event"] == kind] == [0, 2, 6, 12]
    assert (events[0]["event"], events[-1]["event"], events[-1]["step"]) == (
        "session",
        "finished",
        12,
    )
    assert all(event["time"] >= 0 and event["step"] >= 0 for event in events)
    assert [event["time"] for event in events] == sorted(event["time"] for event in events)


def test_a_network_too_large_to_be_read_back_is_refused_first(
    config: Config, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its checkpoint may just be as large as it is, it is trained."""
    whole = sum(value.nbytes for value in load_file(run / "checkpoint.safetensors").values())
    for most, refused in ((whole, False), (whole - 100, True)):
        monkeypatch.setattr(experiment, "LARGEST", most + experiment.LARGEST_HEADER)
        folder = tmp_path / f"{refused}"
        if refused:
            with pytest.raises(UserError, match=r"checkpoints would take .* take fewer --channels"):
                next(train_session(config, folder))
        else:
            with closing(train_session(config, folder)) as events:
                next(events)
        assert folder.exists() != refused


def test_there_are_twelve_snapshots_by_default(train: Callable[..., Path]) -> None:
    run = train(steps=66, snapshots=make_config().snapshots)
    names = [path.name for path in sorted((run / "samples").iterdir())]
    assert names == [
        f"step_{step:06d}.png" for step in (0, 1, 3, 6, 10, 15, 21, 28, 36, 45, 55, 66)
    ]


def test_the_last_snapshot_is_what_the_run_draws(run: Path, config: Config) -> None:
    """From the same noise, with the same weights: read back from the picture, pixel by pixel."""
    with Image.open(run / "samples" / "step_000012.png") as sheet:
        drawn = [
            np.asarray(tile.resize((8, 8), Image.Resampling.NEAREST)) for tile in tiles(sheet, 8, 8)
        ]
    expected = api.sample(run, n=4, seed=config.seed)
    assert np.abs(np.stack(drawn).astype(int) - expected).max() <= 1
    assert expected.std() > 10


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
    assert Run(run).events("validation") == []
    for name in ("loss.png", "timeline.png"):
        with Image.open(run / name) as figure:
            assert figure.convert("L").getextrema() == (0, 255)


AUDITED = """
import json, sys, traceback

own = []

def hook(event, arguments):
    if event == "pickle.find_class":
        callers = [frame.f_code.co_filename for frame, _ in traceback.walk_stack(None)]
        if not any("/torch/_inductor/" in name or "/torch/_functorch/" in name or "/torch/_dynamo/" in name for name in callers):
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
    """Python itself says so, whichever library it is, while a run is trained, drawn from and reported; but for torch.compile's own cache."""
    command = [sys.executable, "-c", AUDITED, str(tmp_path / "run"), compiled, json.dumps(tiny)]
    (tmp_path / "shared").mkdir()
    environment = {
        **os.environ,
        "UNDIFFUSE_CACHE": str(tmp_path / "cache"),
        "TMPDIR": str(tmp_path / "shared"),
    }
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
    for _ in range(2):  # the second time compiled code comes from the cache
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


# Going on


@pytest.fixture(params=["steps", "epochs", "replay"])
def undisturbed(
    request: pytest.FixtureRequest, run: Path, config: Config, train: Callable[..., Path]
) -> tuple[Config, Path, dict[str, Any]]:
    """A configuration of 12 steps, as steps, epochs or the replay of a run; its undisturbed run; and further options of training."""
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
    assert [event["step"] for event in Run(path).events("session")] == list(range(12))
    assert_same_run(whole, path)


@pytest.mark.slow
@pytest.mark.parametrize("at", range(1, 12))
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
    def notes() -> list[str]:
        began = next(iter(train_session(config, tmp_path / "run")))
        assert isinstance(began, Began)
        return began.notes

    stop(config, tmp_path / "run", at=3)
    assert notes() == []
    facts = engine.facts()
    monkeypatch.setattr(engine, "facts", lambda: {**facts, "threads": 64, "torch": "3.0"})
    (note,) = notes()
    assert "(torch, threads): the result will not be the same to the bit" in note


def test_a_compiled_run_says_where_the_compiler_is_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, config: Config
) -> None:
    """An eager one does not. (The compiler is a script here, and nothing is compiled: the session is only begun.)"""
    script = tmp_path / "c++"
    monkeypatch.setenv("CXX", str(script))

    def begun(version: str, compiled: bool) -> list[str]:
        script.write_text(f"#!/bin/sh\necho 'c++ {version}'\necho 'and more'\n")
        script.chmod(0o755)
        assert engine.compiler_version() == f"c++ {version}"
        monkeypatch.setattr(engine, "resolve", lambda *_: ("fp32", compiled, []))
        with closing(train_session(config, tmp_path / f"run-{compiled}")) as events:
            began = next(events)
        assert isinstance(began, Began)
        return began.notes

    assert [begun("1", False), begun("2", False), begun("1", True)] == [[], [], []]
    (note,) = begun("2", True)
    assert "(compiler): the result will not be the same to the bit" in note


def test_a_run_stopped_before_its_first_step_begins_again(
    run: Path, tmp_path: Path, config: Config
) -> None:
    path = tmp_path / "run"
    with pytest.raises(Stopped):
        receive(signal.SIGINT, config, path, Snapshot, at=0)
    finish(config, path)
    assert_same_run(run, path)


@pytest.fixture(scope="module")
def checkpointed(train: Callable[..., Path]) -> Path:
    return train(checkpoint_every=3)


@pytest.mark.parametrize(
    ("kind", "at"),
    [
        *[(Validated, 0), (Snapshot, 0), (Stepped, 2), (Validated, 6), (Stepped, 8)],
        *[(Stepped, 12), (Validated, 12), (Snapshot, 12)],
    ],
)
def test_a_crashed_run_goes_on_from_its_checkpoint(
    checkpointed: Path, tmp_path: Path, kind: type, at: int
) -> None:
    """Wherever it crashed: nothing is logged twice, nothing is missing, and the torn last line is passed over."""
    path, config = tmp_path / "run", Run(checkpointed).about().config
    crash(config, path, kind, at)
    resumed_at = next(event.step for event in train_session(config, path))
    assert resumed_at == at // 3 * 3
    finish(config, path)
    assert_same_run(checkpointed, path)


def test_a_finished_run_is_not_touched(copy: Path, config: Config) -> None:
    before = files(copy)
    assert list(train_session(config, copy)) == []
    assert api.train_config(config, copy) == copy
    assert files(copy) == before


def test_two_processes_do_not_train_one_run(
    run: Path, tmp_path: Path, config: Config, tiny: dict[str, Any]
) -> None:
    """The second is refused, and changes nothing; when the first has ended, however, it goes on."""
    path = tmp_path / "run"
    command = [sys.executable, "-m", "undiffuse", "train", "--out", path, *as_flags(tiny)]
    with closing(train_session(config, path)) as events:
        list(islice(events, 5))
        before = files(path)
        second = subprocess.run(command, capture_output=True, text=True)
        assert (second.returncode, files(path)) == (2, before)
        assert (
            second.stderr
            == f"undiffuse: {path} is being trained by another process; wait for it to end, or stop it\n"
        )
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert_same_run(run, path)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
def test_a_folder_that_cannot_be_locked_is_a_sentence(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def without_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    sentence = r"run can't be locked \(No locks available\)"
    assert_ends_and_goes_on(
        run, tmp_path / "run", monkeypatch, (fcntl, "flock", without_locks), sentence
    )


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
from undiffuse import cli, console

class Watcher(console.Watcher):
    def __call__(self, event):
        super().__call__(event)
        if type(event).__name__ == "Stepped" and event.step == 5:
            os.kill(os.getpid(), {number})
            threading.Thread(target=again_and_again, daemon=True).start()

def again_and_again():
    while {again}:
        os.kill(os.getpid(), {number})
        time.sleep(0.0005)

console.Watcher = Watcher
cli.main()
"""


@pytest.mark.parametrize("again", [False, True], ids=["once", "again and again"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
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
    finish(make_config(**tiny), path)
    assert_same_run(run, path)


class Eyes:
    """Scores samples by their mean."""

    floors: ClassVar[dict[int, float]] = {4: 1.0}

    def __call__(self, images: Tensor) -> float:
        return images.double().mean().item()


@pytest.mark.parametrize("at", [6, 12])
def test_a_signal_while_samples_are_scored_leaves_the_score_to_the_next_session(
    tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """At the end of the run, too."""
    monkeypatch.setattr(session, "scorer_for", lambda whole: Eyes())
    config = make_config(**{**tiny, "score_share": 0.5})
    finish(config, tmp_path / "whole")
    assert at in [event["step"] for event in Run(tmp_path / "whole").events("score")]

    def interrupted(*arguments: Any) -> Iterator[Tensor]:
        if arguments[-1] == at:
            signal.raise_signal(signal.SIGTERM)
        yield from quick_samples(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(probes, "quick_samples", interrupted)
        with pytest.raises(Stopped):
            finish(config, tmp_path / "run")
    kinds = {event["event"] for event in Run(tmp_path / "run").log() if event["step"] == at}
    assert not kinds & {"validation", "score", "snapshot", "finished"}
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
@pytest.mark.skipif(engine.compiler() is None, reason="there is no C++ compiler")
def test_compiled_conditional_runs_replay_and_resume_to_the_bit(tmp_path: Path) -> None:
    """The default network and arithmetic, on all threads: LOG.md tells of a gradient that was summed in any order."""
    script = """
import signal, sys
from pathlib import Path
import torch
from undiffuse import api
from undiffuse.training.presets import make_config
from undiffuse.runs.signals import Stopped
from undiffuse.training.events import Stepped
torch.set_num_threads(2)
path, stops = Path(sys.argv[1]), [int(step) for step in sys.argv[2].split(",") if step]
config = make_config(conditional=True, steps=150, compile="on", precision="bf16", subset=3000, score_share=0.0, snapshots=2)
def watch(event):
    if isinstance(event, Stepped) and event.step in stops:
        signal.raise_signal(signal.SIGTERM)
replay = Path(sys.argv[3]) if sys.argv[3:] else None
while True:
    try:
        api.train_config(config, path, replay=replay, watch=watch)
        break
    except Stopped:
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
        UserError, match=r"lr: 0.004 there, 0.5 asked; seed: 0 there, 1 asked.*--out"
    ):
        finish(make_config(**{**tiny, "lr": 0.5, "seed": 1}), copy)
    assert files(copy) == before


def test_a_folder_of_other_things_is_refused(tmp_path: Path, config: Config) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "notes.txt", tmp_path / "notes.txt" / "run"):
        with pytest.raises(UserError, match=str(path)):
            finish(config, path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_whose_beginning_was_cut_off_serves(tmp_path: Path, config: Config) -> None:
    (tmp_path / "config.json.tmp").write_bytes(b'{"form')
    assert isinstance(next(iter(train_session(config, tmp_path))), Began)


def test_an_empty_folder_serves(run: Path, tmp_path: Path, config: Config) -> None:
    finish(config, tmp_path)
    assert_same_run(run, tmp_path)


def test_changed_data_are_refused(tmp_path: Path, tiny: dict[str, Any]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)
    folder = write_idx(tmp_path / "data", pixels, [n % 2 for n in range(30)])
    config = make_config(**{**tiny, "data": str(folder)})
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
    config = make_config(**{**tiny, "data": str(folder), "steps": 2, "snapshots": 2})
    finish(config, tmp_path / "run")
    write_idx(folder, pixels ^ 1)
    with pytest.raises(
        UserError, match=r"run was trained on other images than .* bring those back"
    ):
        finish(config, tmp_path / "again", replay=tmp_path / "run")
    assert not (tmp_path / "again").exists()


def test_a_resumed_run_knows_what_its_snapshots_and_scores_take(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no more of them come but the last, nothing else would say it, and the run would end after its time."""
    stop(config, tmp_path, at=3)
    log = Run(tmp_path).events("snapshot")
    assert [event["step"] for event in log] == [0, 2]
    assert all(0 < event["seconds"] < 60 for event in log)
    Run(tmp_path).append(
        {
            "event": "score",
            "step": 2,
            "time": 1.0,
            "frechet": 1.0,
            "floor": 1.0,
            "n": 1,
            "seconds": 7.5,
        }
    )
    clocks = []

    def watched(*arguments: Any, **fields: Any) -> Clock:
        clocks.append(Clock(*arguments, **fields))
        return clocks[-1]

    monkeypatch.setattr(session, "Clock", watched)
    with closing(train_session(config, tmp_path)) as events:
        next(events)
    assert (clocks[0].snapshot_seconds, clocks[0].score_seconds) == (log[-1]["seconds"], 7.5)


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
    unlabelled = write_idx(tmp_path / "unlabelled", np.zeros((20, 8, 8), np.uint8))
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
        lambda _: b'{"format": 2}',
        lambda _: b'{"format": 99}',
        lambda _: b"\xff\xfe",
        edited(lr=-1),
        edited(future=1),
        lambda _: b"[" * 100_000,
        lambda _: b" " * 2**21,
        lambda old: old.replace(b'"training": 61', b'"training": -1'),
        lambda old: old.replace(b'"training": 61', b'"training": {}'),
        lambda old: re.sub(rb'"shape": \[\s*1,', b'"shape": [1e9,', old),
        lambda old: re.sub(rb'"shape": \[\s*1,', b'"shape": [', old),
    ],
    ids=[
        "empty",
        "cut",
        "list",
        "no format",
        "only format",
        "new format",
        "not text",
        "bad value",
        "unknown field",
        "deep",
        "large",
        "negative",
        "wrong type",
        "huge shape",
        "short shape",
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


@pytest.mark.parametrize("line", [b"{half", b"[]", b"17", b"{}"])
def test_a_damaged_line_of_the_log_is_named(copy: Path, config: Config, line: bytes) -> None:
    lines = (copy / "log.jsonl").read_bytes().splitlines()
    (copy / "log.jsonl").write_bytes(b"\n".join([lines[0], line, *lines[2:], b""]))
    with pytest.raises(UserError, match=r"log\.jsonl line 2"):
        finish(config, copy)


def test_a_run_without_weights_says_so(tmp_path: Path, config: Config) -> None:
    next(iter(train_session(config, tmp_path / "run")))
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
    """Each file in turn is the one that does not fit any more, when it is written for the third time or less."""
    opened, left = Path.open, 3 if name in ("log.jsonl", "checkpoint.safetensors") else 1

    def full(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        nonlocal left
        if mode in ("ab", "wb") and path.name.removesuffix(".tmp") == name:
            left -= 1
            if left <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return opened(path, mode, *rest, **options)

    sentence = rf"{name} could not be written \(No space left on device\)"
    assert_ends_and_goes_on(
        checkpointed, tmp_path / "run", monkeypatch, (Path, "open", full), sentence
    )


# Numbers that go wrong


@pytest.mark.parametrize("at", [None, 3, 5])
def test_a_run_that_was_set_back_goes_on_and_replays_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, config: Config, at: int | None
) -> None:
    """NaN in step 6, once; killed at no step, or after so many: the same run, and its replay, in which nothing is wrong, as well."""
    monkeypatch.setattr(loop, "KEPT_EVERY", 4)
    normal, left = rng.normal, [math.nan]

    def poisoned(shape: Any, seed: int, purpose: str, *indices: int) -> Any:
        return normal(shape, seed, purpose, *indices) * (
            left.pop() if (purpose, *indices) == ("noise", 5) and left else 1
        )

    monkeypatch.setattr(rng, "normal", poisoned)
    for number, path in enumerate((tmp_path / "whole", tmp_path / "killed")):
        left[:] = [math.nan]
        if number and at:
            crash(config, path, SetBack if at == 5 else Stepped, 4 if at == 5 else at)
        finish(config, path)
    cuts = [event for event in Run(tmp_path / "whole").events("clock") if "cut" in event]
    assert [(event["step"], event["cut"], event["of"]) for event in cuts] == [(4, {"step": 4}, 6)]
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    monkeypatch.undo()
    finish(config, tmp_path / "replay", replay=tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "replay")


def test_a_set_back_that_is_cut_off_is_made_again_or_forgotten(
    monkeypatch: pytest.MonkeyPatch, checkpointed: Path, tmp_path: Path
) -> None:
    """Killed between the checkpoint and the log: what went wrong does not come again here, so the run is as if it never had."""
    monkeypatch.setattr(loop, "KEPT_EVERY", 4)
    config, normal, left = Run(checkpointed).about().config, rng.normal, [math.nan]

    def poisoned(shape: Any, seed: int, purpose: str, *indices: int) -> Any:
        bad = (purpose, *indices) == ("noise", 7) and left
        return normal(shape, seed, purpose, *indices) * (left.pop() if bad else 1)

    def killed(run: Run, step: int) -> None:
        if not left:
            raise RuntimeError("killed")

    monkeypatch.setattr(rng, "normal", poisoned)
    with monkeypatch.context() as patched:
        patched.setattr(Run, "rewind_log", killed)
        with pytest.raises(RuntimeError, match="killed"):
            finish(config, tmp_path / "run")
    assert Run(tmp_path / "run").load_tensors(tmp_path / "run" / "checkpoint.safetensors")[1] == 4
    finish(config, tmp_path / "run")
    assert_same_run(checkpointed, tmp_path / "run")


# A budget of minutes, and its replay


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Made-up time, in which training sees a tenth of a second pass whenever it looks at the clock."""
    clock = SimpleNamespace(now=1000.0)

    def monotonic() -> float:
        clock.now += 0.1
        return clock.now

    for module in (session, loop):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=monotonic))
    yield clock
    monkeypatch.undo()


@pytest.fixture
def minute(tiny: dict[str, Any]) -> Config:
    return make_config(**{**tiny, "steps": None, "minutes": 1})


def check_ending(path: Path, config: Config) -> None:
    """The run ended on its budget, by decisions that were each in the log before the first step that they act on."""
    decisions: list[Decision] = []
    for event in Run(path).log():
        if "decision" in event:
            decisions.append(Decision(**event["decision"]))
            assert event["step"] == decisions[-1].step
        elif event["event"] == "step":
            assert event["lr"] == config.lr * lr_factor(event["step"] - 1, config.warmup, decisions)
    ended = Run(path).finished()
    assert ended is not None
    assert ended["step"] == decisions[-1].end
    assert ended["time"] + FINISH_SECONDS == pytest.approx(60, rel=0.05)


@pytest.mark.usefixtures("ticking")
def test_minutes_end_on_the_budget(tmp_path: Path, minute: Config) -> None:
    finish(minute, tmp_path / "run")
    check_ending(tmp_path / "run", minute)
    (outlook,) = (
        event["outlook"] for event in Run(tmp_path / "run").events("clock") if "outlook" in event
    )
    ended = Run(tmp_path / "run").finished()
    due = {step for step in snapshot_steps(outlook["steps"], 4) if step > outlook["step"]}
    taken = {event["step"] for event in Run(tmp_path / "run").events("snapshot")}
    assert ended is not None
    assert taken == {0, *(step for step in due if step < ended["step"]), ended["step"]}


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
        for event in train_session(minute, tmp_path / "run"):
            if isinstance(event, Snapshot):
                ticking.now += 25
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped):
        interrupted()
    assert next(iter(train_session(minute, tmp_path / "run"))).seconds > 25
    finish(minute, tmp_path / "run")
    check_ending(tmp_path / "run", minute)


@pytest.fixture
def timed(ticking: SimpleNamespace, tmp_path: Path, minute: Config) -> Path:
    """A finished run of a minute, on a machine that became three times slower after 45 seconds."""
    path = tmp_path / "timed"
    for event in train_session(minute, path):
        ticking.now += 0.8 if ticking.now > 1045 and isinstance(event, Stepped) else 0
    return path


def test_a_replay_is_the_run_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, timed: Path, tmp_path: Path
) -> None:
    """In real time, in which a minute has not passed: only the records count."""
    assert len([event for event in Run(timed).events("clock") if "decision" in event]) > 1
    monkeypatch.undo()
    finish(Run(timed).about().config, tmp_path / "again", replay=timed)
    assert_same_run(timed, tmp_path / "again")


def test_a_stopped_replay_goes_on_to_the_same_end(
    monkeypatch: pytest.MonkeyPatch, timed: Path, tmp_path: Path
) -> None:
    """Stopped before the first decision, and between two."""
    first, second, *_ = (
        event["step"] for event in Run(timed).events("clock") if "decision" in event
    )
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
