"""Any account, any console, any disk."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from undiffuse.base.errors import UserError
from undiffuse.base.files import write_atomic
from undiffuse.base.tensors import load_tensors, save_tensors
from undiffuse.runs.folder import Run

FLAGS = [
    *("--snapshots", "2", "--channels", "8", "16", "--blocks", "1", "1"),
    *("--attention", "False", "False", "--batch-size", "4", "--snapshot-images", "2"),
    *("--quality-share", "0", "--sample-calls", "2", "--compile", "off"),
]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no such consoles and signals")


def command(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "undiffuse", *map(str, arguments)]
    own = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "check": False}
    return subprocess.run(line, **{**own, **options})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("stream", ["full", "closed"])
def test_output_that_cannot_be_written(tmp_path: Path, digits: Path, stream: str) -> None:
    train = ["train", "--data", digits, "--out", tmp_path / "run", "--steps", "2", *FLAGS]
    if stream == "full":
        with Path("/dev/full").open("w") as full:
            trained = command(*train, stdout=full)
            shown = command("info", tmp_path / "run", stdout=full)
        assert "its progress could not be shown (No space left" in trained.stderr
        assert (shown.returncode, shown.stderr.count("\n")) == (2, 1)
        assert "the output cannot be written (No space left" in shown.stderr
    else:
        trained = command(*train, stdout=None, preexec_fn=lambda: os.close(1))
        assert trained.stderr == ""
    assert trained.returncode == 0
    assert Run(tmp_path / "run").finished()


@pytest.mark.parametrize("ignored", [False, True])
def test_a_closed_terminal_saves(tmp_path: Path, digits: Path, ignored: bool) -> None:
    line = [sys.executable, "-m", "undiffuse", "train", "--data", digits, "--out", tmp_path / "run"]
    process = subprocess.Popen(
        [*map(str, line), "--steps", "100000", *FLAGS],
        stdout=subprocess.DEVNULL,
        # Set in both cases: the tests themselves may have been started by nohup.
        preexec_fn=lambda: signal.signal(
            signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL
        ),
    )
    log = tmp_path / "run" / "log.jsonl"
    try:
        until = time.monotonic() + 120
        while not (log.is_file() and b'"step", "step": 5,' in log.read_bytes()):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(signal.SIGHUP)
        if ignored:
            time.sleep(0.5)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
        number = signal.SIGTERM if ignored else signal.SIGHUP
        assert process.wait(timeout=60) == 128 + number
    finally:
        process.kill()
    run = Run(tmp_path / "run")
    assert run.load_tensors(run.checkpoint_path)[1] >= 5


def test_a_user_without_a_home_trains(tmp_path: Path, digits: Path) -> None:
    """Its number has no name, and the folder that stands in for its home cannot be written."""
    code = (
        "import pwd, pathlib, sys\n"
        "def nobody(*_): raise KeyError('getpwuid(): uid not found')\n"
        "pwd.getpwuid = nobody\n"
        "def homeless(*_): raise RuntimeError('Could not determine home directory.')\n"
        "pathlib.Path.home = pathlib.Path.expanduser = homeless\n"
        "import undiffuse.cli\n"
        "undiffuse.cli.main()\n"
    )
    hidden = ("HOME", "USER", "LOGNAME", "USERNAME", "LNAME", "UNDIFFUSE_CACHE", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
    line = [sys.executable, "-c", code, "train", "--data", digits, "--out", tmp_path / "run"]
    done = subprocess.run(
        [*map(str, line), "--steps", "2", *FLAGS],
        env={**environment, "MPLCONFIGDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "run").finished()


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_console_that_lacks_letters(tmp_path: Path, digits: Path, encoding: str) -> None:
    run = tmp_path / "выход é"
    done = command(
        "train", "--data", digits, "--out", run, "--steps", "2", *FLAGS,
        env={**os.environ, "PYTHONIOENCODING": encoding}, encoding=encoding,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "\\u0432\\u044b\\u0445\\u043e\\u0434" in done.stdout
    assert run.is_dir()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF])
def test_a_disk_without_syncs_holds_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refused(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refused)
    write_atomic(tmp_path / "x", b"content")
    assert (tmp_path / "x").read_bytes() == b"content"
    assert len(list(tmp_path.iterdir())) == 1


def _write(path: Path, number: int, answers: Any) -> None:
    torch.set_num_threads(1)
    failed = 0
    for _ in range(30):
        try:
            save_tensors(path, {"a": torch.full((20_000,), float(number))}, {"k": str(number)})
            load_tensors(path)
        except UserError:
            failed += 1
    answers.put(failed)


def test_several_writers_of_one_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    writers = [
        context.Process(target=_write, args=(tmp_path / "x.safetensors", number, answers))
        for number in range(3)
    ]
    for writer in writers:
        writer.start()
    assert [answers.get(timeout=120) for _ in writers] == [0, 0, 0]
    for writer in writers:
        writer.join()
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
