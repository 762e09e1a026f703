"""Run folders that somebody else made: whatever is in them, a command ends with one sentence and exit code 2.

Each command runs in a process of its own that may take a second of the processor and 100 MB of memory more than it has.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import as_flags
from test_session import stop
from undiffuse import cli
from undiffuse.base.tensors import load_tensors, save_tensors
from undiffuse.report import Report
from undiffuse.runs.folder import Run
from undiffuse.study import FORMAT

resource = pytest.importorskip("resource")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs fork and limits of memory")

Damage = Callable[[Path], None]

SECONDS, MEMORY = 1.0, 100 << 20


def used() -> int:
    """Bytes of memory that this process may write to."""
    return int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()


def command(output: Path, *arguments: str, seconds: float = SECONDS) -> tuple[int, str]:
    """(exit code, what it said on stderr) of `undiffuse ARGUMENTS`, within the limits."""
    child = os.fork()
    if not child:
        try:
            sys.stderr, sys.stdout = output.open("w", buffering=1), io.StringIO()
            signal.setitimer(signal.ITIMER_PROF, seconds)
            resource.setrlimit(resource.RLIMIT_DATA, (used() + MEMORY,) * 2)
            signal.alarm(60)  # it may wait for nothing, which takes no processor
            sys.argv = ["undiffuse", *arguments]
            cli.main()
        except SystemExit as error:
            os._exit(error.code if isinstance(error.code, int) else 99)
        except BaseException:
            sys.stderr.write(traceback.format_exc())
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    return code, output.read_text()


def check(place: Path, name: str, *arguments: str) -> None:
    """The command is refused in one sentence that names the file, and changes nothing."""

    def everything() -> dict[Path, tuple[int, bytes]]:
        found = [path for path in place.rglob("*") if path.is_file()]
        return {path: (path.stat().st_size, path.open("rb").read(1 << 20)) for path in found}

    before = everything()
    code, said = command(place.parent / "stderr", *arguments)
    assert (code, said.count("\n"), "Traceback" in said) == (2, 1, False), said or code
    assert said.startswith("undiffuse: ")
    assert name in said
    assert everything() == before


@pytest.fixture(scope="module")
def warm(run: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """All that the commands need is imported before their memory is counted; but not compiled, as typst's threads do not survive a fork."""
    copy = shutil.copytree(run, tmp_path_factory.mktemp("warm") / "run")
    assert Report(copy).pictures
    for verb in ("info", "report", "sample"):
        assert command(copy.parent / "stderr", verb, str(copy), seconds=60.0) == (0, "")


@pytest.fixture
def place(run: Path, tmp_path: Path, warm: None) -> Path:
    return Path(shutil.copytree(run, tmp_path / "place" / "run"))


# config.json


def edited(edit: Callable[[dict[str, Any]], Any]) -> Damage:
    def damage(path: Path) -> None:
        content = json.loads((path / "config.json").read_text())
        edit(content)
        (path / "config.json").write_text(json.dumps(content))

    return damage


def replaced(text: str | bytes) -> Damage:
    return lambda path: (
        (path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        and None
    )


def fields(**values: Any) -> Damage:
    return edited(lambda content: content["config"].update(values))


def facts(**values: Any) -> Damage:
    return edited(lambda content: content["data"].update(values))


CONFIGS: dict[str, Damage] = {
    "nothing": replaced(""),
    "not text": replaced(b"\xff\xfe\x00"),
    "a bomb of brackets": replaced("[" * 200_000),
    "nested objects": replaced('{"a":' * 50_000 + "1" + "}" * 50_000),
    "a huge number": replaced('{"format": 1' + "0" * 100_000 + "}"),
    "too large": replaced(" " * 2**21),
    "another format": edited(lambda c: c.update(format=99)),
    "no format": edited(lambda c: c.pop("format")),
    "no configuration": edited(lambda c: c.pop("config")),
    "a configuration that is a list": edited(lambda c: c.update(config=[])),
    "an unknown field": fields(surprise=1),
    "a wrong type": fields(lr="fast"),
    "not a number": fields(lr=float("nan")),
    "infinity": fields(ema=float("inf")),
    "a negative number": fields(batch_size=-1),
    "wide channels": fields(channels=[10**9, 10**9]),
    "many channels": fields(channels=[4096, 4096], blocks=[2, 2]),
    "many blocks": fields(blocks=[10**9, 10**9]),
    "many levels": fields(channels=[8] * 10**5, blocks=[1] * 10**5, attention=[False] * 10**5),
    "many heads": fields(heads=10**12),
    "a huge batch": fields(batch_size=10**15),
    "a long chain": fields(chain=10**12),
    "many snapshots": fields(snapshots=10**12),
    "many calls": fields(sample_calls=10**12),
    "an unknown network": fields(net="__import__('os')"),
    "a network's path": fields(net="../../evil"),
    "a schedule with code": fields(schedule="cosine:s=__import__('os')"),
    "a huge image": facts(shape=[1, 4096, 4096]),
    "a shape too large": facts(shape=[1, 10**9, 10**9]),
    "a shape of text": facts(shape="1x8x8"),
    "no shape": facts(shape=[]),
    "a negative count": facts(training=-1),
    "classes that are numbers": facts(classes=[1, 2]),
    "groups that are text": facts(groups=["a"]),
    "groups of no image": facts(groups=[0, 0]),
    "groups of more images than there are": facts(groups=[10**9, 10**9]),
    "groups of no class": edited(
        lambda c: (
            c["config"].update(conditional=True),
            c["data"].update(groups=[c["data"]["training"]]),
        )
    ),
    "groups of an unknown class": edited(
        lambda c: (
            c["config"].update(conditional=True),
            c["data"].update(groups=[c["data"]["training"], *[0] * 10], class_of=[*range(11)]),
        )
    ),
    "classes of no group": facts(class_of=[0]),
    "more groups than were asked for": edited(
        lambda c: c["data"].update(
            groups=[c["data"]["training"], *[0] * (c["config"]["groups"] + 1)]
        )
    ),
    "no classes to ask for": edited(
        lambda c: (c["config"].update(conditional=True), c["data"].update(classes=[]))
    ),
    "another image": facts(shape=[3, 8, 8]),
    "an endless budget": fields(steps=None, epochs=1e308),
    "a reason for nothing": edited(lambda c: c["reasons"].update(surprise="!")),
    "a reason that is a number": edited(lambda c: c["reasons"].update(lr=1)),
    "a replay of a list": edited(lambda c: c.update(replay_of=[1])),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_hostile_configuration_is_refused(place: Path, case: str) -> None:
    CONFIGS[case](place)
    if case in (
        "many channels",
        "a huge image",
        "another image",
    ):  # it can be so, but for the weights
        check(place.parent, "model.safetensors", "sample", str(place))
        assert command(place.parent / "stderr", "info", str(place)) == (0, "")
        if case == "many channels":
            assert command(place.parent / "stderr", "report", str(place), seconds=60.0) == (0, "")
        else:  # data.png shows others
            check(place.parent, "config.json", "report", str(place))
        return
    for verb in ("info", "sample", "report"):
        check(place.parent, "config.json", verb, str(place))


# Weights


def resealed(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    """Other tensors, under a seal that holds."""

    def damage(path: Path) -> None:
        tensors, metadata = load_tensors(path)
        edit(tensors)
        metadata.pop("sha256")
        save_tensors(path, tensors, metadata)

    return damage


def raw(content: bytes) -> Damage:
    return lambda path: path.write_bytes(content) and None


def sized(header: object, content: bytes = b"") -> Damage:
    text = json.dumps(header).encode()
    return raw(len(text).to_bytes(8, "little") + text + content)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


def first(tensors: dict[str, torch.Tensor]) -> str:
    return next(name for name in sorted(tensors) if tensors[name].ndim > 1)


SEAL = {"sha256": "0" * 64, "step": "12"}
WEIGHTS: dict[str, Damage] = {
    "nothing": raw(b""),
    "zeros": raw(bytes(1000)),
    "a terabyte": sparse,
    "a huge header": raw(b"\xff" * 7 + b"\x7f" + b"{}"),
    "no header": sized([]),
    "no seal": sized({"__metadata__": {"step": "12"}}),
    "a broken seal": sized({"__metadata__": SEAL}),
    "a promise of terabytes": sized(
        {"__metadata__": SEAL, "x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    ),
    "a pickle": raw(b"\x80\x04\x95" + bytes(100)),
    "a zip": raw(b"PK\x03\x04" + bytes(100)),
    "another shape": resealed(lambda t: t.update({first(t): torch.zeros(3, 3)})),
    "a tensor too many": resealed(lambda t: t.update(surprise=torch.zeros(3))),
    "a tensor too few": resealed(lambda t: t.pop(first(t))),
    "not a number": resealed(lambda t: t[first(t)].view(-1)[0].fill_(float("nan"))),
    "infinity": resealed(lambda t: t[first(t)].view(-1)[-1].fill_(float("inf"))),
    "no tensors": resealed(lambda t: t.clear()),
}


def at_step(step: str) -> Damage:
    def damage(path: Path) -> None:
        tensors, _ = load_tensors(path)
        save_tensors(path, tensors, {"step": step})

    return damage


STEPS = {step: at_step(step) for step in ("-5", "1e3", "10" * 9, "", "\N{SUPERSCRIPT TWO}", "soon")}


@pytest.mark.parametrize("case", WEIGHTS)
def test_hostile_weights_are_refused(place: Path, case: str) -> None:
    WEIGHTS[case](place / "model.safetensors")
    check(place.parent, "model.safetensors", "sample", str(place))


@pytest.fixture
def stopped(run: Path, tmp_path: Path, warm: None) -> Path:
    """A run that was stopped after 7 steps."""
    stop(Run(run).about().config, tmp_path / "place" / "run", 7)
    return tmp_path / "place" / "run"


@pytest.mark.parametrize("case", [*WEIGHTS, *STEPS])
def test_a_hostile_checkpoint_is_refused(stopped: Path, tiny: dict[str, Any], case: str) -> None:
    (WEIGHTS | STEPS)[case](stopped / "checkpoint.safetensors")
    check(stopped.parent, "checkpoint.safetensors", "train", "--out", str(stopped), *as_flags(tiny))
    if case != "a tensor too many":  # which drawing does not read
        check(stopped.parent, "checkpoint.safetensors", "sample", str(stopped))


# The log


def line(**values: Any) -> bytes:
    return json.dumps({"event": "step", "step": 1, "time": 1.0, **values}).encode()


LOGS: dict[str, bytes] = {
    "no JSON": b"{half",
    "a list": b"[]",
    "a number": b"17",
    "nothing in it": b"{}",
    "an unknown event": line(event="surprise"),
    "no loss": line(lr=1.0),
    "a loss of text": line(loss="low", lr=1.0),
    "a time of text": line(loss=1.0, lr=1.0, time="soon"),
    "an infinite time": line(loss=1.0, lr=1.0, time=float("inf")),
    "a negative step": line(loss=1.0, lr=1.0, step=-1),
    "brackets": b'{"event": ' + b"[" * 30_000,
    "a long line": line(event="uncompiled", reason="x" * 2**17),
    "a path out of the folder": line(
        event="snapshot", file="../../../../etc/hostname", seconds=0.1
    ),
    "an absolute path": line(event="snapshot", file="/etc/hostname", seconds=0.1),
    "a decision without its end": line(event="clock", decision={"step": 1}),
    "a decision of text": line(event="clock", decision="now"),
    "no decision": line(event="clock", decision=None),
    "two decisions": line(event="clock", cut={"step": 1}, outlook={"step": 1, "steps": 2}),
    "a decision before the beginning": line(event="clock", cut={"step": -1}),
    "a decision for the end of time": line(event="clock", decision={"step": 1, "end": 10**18}),
    "a step at the end of time": line(loss=1.0, lr=1.0, step=10**18),
    "levels of text": line(event="validation", loss=1.0, levels=["a"]),
}


@pytest.mark.parametrize("case", LOGS)
def test_a_hostile_log_is_refused(place: Path, tiny: dict[str, Any], case: str) -> None:
    lines = (place / "log.jsonl").read_bytes().splitlines()
    (place / "log.jsonl").write_bytes(b"\n".join([lines[0], LOGS[case], *lines[1:], b""]))
    for verb in (
        ["info", str(place)],
        ["report", str(place)],
        ["train", "--out", str(place), *as_flags(tiny)],
    ):
        check(place.parent, "log.jsonl line 2", *verb)


def test_a_log_without_end_is_not_kept_in_memory(place: Path) -> None:
    """200 MB of one line: refused after its first 64 kB."""
    with (place / "log.jsonl").open("ab") as file:
        file.truncate(200 << 20)
    check_code, said = command(place.parent / "stderr", "info", str(place))
    assert check_code == 2
    assert re.search(r"log\.jsonl line \d+ is damaged: it is longer than 65,536 bytes", said)


# What a report reads


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"format": 1}',
        b"[" * 100_000,
        b'{"format": 1, "quality": {"frechet": "close"}}',
        b'{"format": 1, "rows": [1]}',
        b'{"format": 2}',
        b'{"format": 2, "step": 1, "rows": [1]}',
    ],
)
@pytest.mark.parametrize("name", ["metrics.json", "study/samplers.json", "study/schedules.json"])
def test_hostile_results_are_refused(place: Path, name: str, content: bytes) -> None:
    (place / "study").mkdir()
    (place / name).write_bytes(content)
    check(place.parent, name.rpartition("/")[2], "report", str(place))


@pytest.mark.parametrize("picture", ["/etc/hostname", "../config.json", "missing.png", ""])
def test_a_study_shows_no_file_from_elsewhere(place: Path, picture: str) -> None:
    (place / "study").mkdir()
    (place / "study" / "samplers.json").write_text(
        json.dumps({"format": FORMAT, "rows": [{"picture": picture}]})
    )
    check(place.parent, "study", "report", str(place))
