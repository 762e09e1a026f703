"""Run folders that somebody else made: a command on them ends with one sentence and exit code 2.

Each command runs in a process of its own. It may take a second of the CPU, and 100 MB of memory
more than it has at the start.
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
from collections.abc import Callable, Iterable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import as_flags
from test_session import stop
from undiffuse import cli
from undiffuse.base.tensors import load_tensors, save_tensors
from undiffuse.measuring.results import FORMAT as METRICS_FORMAT
from undiffuse.report import Report
from undiffuse.runs.folder import Run
from undiffuse.runs.studies import FORMAT

resource = pytest.importorskip("resource")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs fork and limits of memory")

Damage = Callable[[Path], None]

SECONDS, MEMORY = 1.0, 100 << 20


def used() -> int:
    """Bytes of memory that this process may write to."""
    return int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()


def command(
    output: Path, *arguments: str, seconds: float = SECONDS, memory: int = MEMORY
) -> tuple[int, str]:
    """(exit code, what it said on stderr) of `undiffuse ARGUMENTS`, within the limits."""
    child = os.fork()
    if not child:
        try:
            sys.stderr, sys.stdout = output.open("w", buffering=1), io.StringIO()
            signal.setitimer(signal.ITIMER_PROF, seconds)
            resource.setrlimit(resource.RLIMIT_DATA, (used() + memory,) * 2)
            signal.alarm(60)  # a wait takes no CPU time, so it needs a limit of its own
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


def check(place: Path, name: str, *arguments: str, seconds: float = SECONDS) -> None:
    """The command is refused in one sentence that names the file, and changes nothing."""

    def everything() -> dict[Path, tuple[int, bytes]]:
        found = [path for path in place.rglob("*") if path.is_file()]
        return {path: (path.stat().st_size, path.open("rb").read(1 << 20)) for path in found}

    before = everything()
    code, said = command(place.parent / "stderr", *arguments, seconds=seconds)
    outcome = code, said.count("\n"), "Traceback" in said
    assert outcome == (2, 1, False), f"{arguments[0]}: {said or code}"
    assert said.startswith("undiffuse: ")
    assert name in said
    assert everything() == before


@pytest.fixture(scope="module")
def warm(run: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Imports all that the commands need before their memory is counted.

    Nothing is compiled, because Typst's threads do not survive a fork."""
    copy = shutil.copytree(run, tmp_path_factory.mktemp("warm") / "run")
    assert Report(copy).pictures
    for verb in ("info", "report", "sample"):
        found = command(copy.parent / "stderr", verb, str(copy), seconds=60.0, memory=1 << 30)
        assert found == (0, "")


def in_turn(cases: Iterable[str], verbs: Sequence[str]) -> list[tuple[str, str]]:
    """Each case with one of the verbs. All verbs read a file by the same function."""
    return list(zip(cases, cycle(verbs), strict=False))


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
    content = text if isinstance(text, bytes) else text.encode()
    return lambda path: (path / "config.json").write_bytes(content) and None


def fields(**values: Any) -> Damage:
    return edited(lambda content: content["config"].update(values))


def facts(**values: Any) -> Damage:
    return edited(lambda content: content["data"].update(values))


def conditioning(**values: Any) -> Damage:
    return edited(lambda content: content["conditioning"].update(values))


def of_classes(**values: Callable[[int], Any]) -> Damage:
    """Clusters of a conditional run: functions of the number of training images."""

    def edit(content: dict[str, Any]) -> None:
        content["config"].update(conditional=True)
        training = content["data"]["training"]
        content["conditioning"].update(classes=content["data"]["classes"])
        content["conditioning"].update({name: value(training) for name, value in values.items()})

    return edited(edit)


def too_many_clusters(content: dict[str, Any]) -> None:
    asked = content["config"]["clusters"]
    content["conditioning"].update(clusters=[content["data"]["training"], *[0] * (asked + 1)])


def many_levels(count: int) -> str:
    options = {"channels": "8", "blocks": "1", "attention": "0"}
    return "unet:" + ",".join(f"{name}={'/'.join([v] * count)}" for name, v in options.items())


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
    "wide channels": fields(net="unet:channels=1000000000/1000000000"),
    "many channels": fields(net="unet:channels=4096/4096,blocks=2/2"),
    "many blocks": fields(net="unet:blocks=1000000000/1000000000"),
    "many levels": fields(net=many_levels(10**5)),
    "many heads": fields(net="unet:heads=1e12"),
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
    "clusters that are text": conditioning(clusters=["a"]),
    "clusters of no image": conditioning(clusters=[0, 0]),
    "clusters of more images than there are": conditioning(clusters=[10**9, 10**9]),
    "clusters of no class": of_classes(clusters=lambda n: [n]),
    "clusters of an unknown class": of_classes(
        clusters=lambda n: [n, *[0] * 10], class_of_cluster=lambda n: [*range(11)]
    ),
    "classes of no cluster": conditioning(class_of_cluster=[0]),
    "more clusters than were asked for": edited(too_many_clusters),
    "classes that the data do not have": conditioning(classes=["a", "b"]),
    "no classes to ask for": of_classes(classes=lambda n: []),
    "another image": facts(shape=[3, 8, 8]),
    "an endless budget": fields(steps=None, epochs=1e308),
    "a reason for nothing": edited(lambda c: c["reasons"].update(surprise="!")),
    "a reason that is a number": edited(lambda c: c["reasons"].update(lr=1)),
    "a replay of a list": edited(lambda c: c.update(replay_of=[1])),
}


WITH_OTHER_WEIGHTS = ("many channels", "a huge image", "another image")
"""These configurations are possible, but the weights do not fit them."""

REFUSED = [case for case in CONFIGS if case not in WITH_OTHER_WEIGHTS]


@pytest.mark.parametrize(("case", "verb"), in_turn(REFUSED, ["info", "sample", "report"]))
def test_a_hostile_configuration_is_refused(place: Path, case: str, verb: str) -> None:
    CONFIGS[case](place)
    check(place.parent, "config.json", verb, str(place))


@pytest.mark.parametrize("case", WITH_OTHER_WEIGHTS)
def test_a_configuration_of_other_weights_is_refused(place: Path, case: str) -> None:
    CONFIGS[case](place)
    check(place.parent, "model.safetensors", "sample", str(place))
    assert command(place.parent / "stderr", "info", str(place)) == (0, "")
    # The report samples in its notebook; or data.png shows other images.
    of = "model.safetensors" if case == "many channels" else "config.json"
    check(place.parent, of, "report", str(place), seconds=10.0)


# Weights


def with_checksum(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    """Other tensors, with a checksum that is right."""

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


CHECKSUM = {"sha256": "0" * 64, "step": "12"}
PROMISE = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}
NO_TENSORS: dict[str, Damage] = {  # test_files.py has more
    "nothing": raw(b""),
    "a terabyte": sparse,
    "a huge header": raw(b"\xff" * 7 + b"\x7f" + b"{}"),
    "a promise of terabytes": sized({"__metadata__": CHECKSUM, "x": PROMISE}),
    "a pickle": raw(b"\x80\x04\x95" + bytes(100)),
}
OTHER_TENSORS: dict[str, Damage] = {
    "another shape": with_checksum(lambda t: t.update({first(t): torch.zeros(3, 3)})),
    "a tensor too many": with_checksum(lambda t: t.update(surprise=torch.zeros(3))),
    "a tensor too few": with_checksum(lambda t: t.pop(first(t))),
    "not a number": with_checksum(lambda t: t[first(t)].view(-1)[0].fill_(float("nan"))),
    "infinity": with_checksum(lambda t: t[first(t)].view(-1)[-1].fill_(float("inf"))),
    "no tensors": with_checksum(lambda t: t.clear()),
}


def at_step(step: str) -> Damage:
    def damage(path: Path) -> None:
        tensors, _ = load_tensors(path)
        save_tensors(path, tensors, {"step": step})

    return damage


STEPS = {step: at_step(step) for step in ("-5", "1e3", "10" * 9, "", "\N{SUPERSCRIPT TWO}", "soon")}
WEIGHTS = NO_TENSORS | OTHER_TENSORS
CHECKPOINTS = OTHER_TENSORS | STEPS


@pytest.mark.parametrize("case", WEIGHTS)
def test_hostile_weights_are_refused(place: Path, case: str) -> None:
    WEIGHTS[case](place / "model.safetensors")
    check(place.parent, "model.safetensors", "sample", str(place))


@pytest.fixture(scope="module")
def stopped_run(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after 7 steps. Not to be changed: copy it first."""
    path = tmp_path_factory.mktemp("stopped") / "run"
    stop(Run(run).about().config, path, 7)
    return path


@pytest.fixture
def stopped(stopped_run: Path, tmp_path: Path, warm: None) -> Path:
    return Path(shutil.copytree(stopped_run, tmp_path / "place" / "run"))


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_hostile_checkpoint_is_refused(stopped: Path, tiny: dict[str, Any], case: str) -> None:
    CHECKPOINTS[case](stopped / "checkpoint.safetensors")
    train = ["train", "--out", str(stopped), *as_flags(tiny)]
    check(stopped.parent, "checkpoint.safetensors", *train)
    if case != "a tensor too many":  # which sampling does not read
        check(stopped.parent, "checkpoint.safetensors", "sample", str(stopped))


def test_a_checkpoint_that_is_none_is_refused(stopped: Path, tiny: dict[str, Any]) -> None:
    """The same function reads model.safetensors, which is tried with all of NO_TENSORS."""
    train = ["train", "--out", str(stopped), *as_flags(tiny)]
    for case, verb in (("nothing", train), ("a terabyte", ["sample", str(stopped)])):
        NO_TENSORS[case](stopped / "checkpoint.safetensors")
        check(stopped.parent, "checkpoint.safetensors", *verb)


# The log


def line(**values: Any) -> bytes:
    return json.dumps({"event": "step", "step": 1, "time": 1.0, **values}).encode()


LOGS: dict[str, bytes] = {
    "no JSON": b"{half",
    "a list": b"[]",
    "a number": b"17",
    "nothing in it": b"{}",
    "an unknown event": line(event="surprise"),
    "no loss": line(lr=1.0, seconds=0.1),
    "a loss of text": line(loss="low", lr=1.0, seconds=0.1),
    "a time of text": line(loss=1.0, lr=1.0, seconds=0.1, time="soon"),
    "an infinite time": line(loss=1.0, lr=1.0, seconds=0.1, time=float("inf")),
    "a negative step": line(loss=1.0, lr=1.0, seconds=0.1, step=-1),
    "brackets": b'{"event": ' + b"[" * 30_000,
    "a long line": line(event="compile-fallback", reason="x" * 2**17),
    "a path of its own": line(event="snapshot", file="../../../../etc/hostname", seconds=0.1),
    "a cooldown without its end": line(event="cooldown", start=1),
    "a cooldown of text": line(event="cooldown", start=1, end="now"),
    "no projection": line(event="projection", steps=None),
    "a cooldown before the beginning": line(event="cooldown", start=-1, end=5),
    "a cooldown for the end of time": line(event="cooldown", start=1, end=10**18),
    "a rollback without a reason": line(event="rollback", failed=3),
    "a step at the end of time": line(loss=1.0, lr=1.0, seconds=0.1, step=10**18),
    "levels of text": line(event="validation", loss=1.0, levels=["a"]),
}


@pytest.mark.parametrize(("case", "verb"), in_turn(LOGS, ["info", "report", "train"]))
def test_a_hostile_log_is_refused(place: Path, tiny: dict[str, Any], case: str, verb: str) -> None:
    lines = (place / "log.jsonl").read_bytes().splitlines()
    content = b"\n".join([lines[0], LOGS[case], *lines[1:], b""])
    (place / "log.jsonl").write_bytes(content)
    on_run = ["--out", str(place), *as_flags(tiny)] if verb == "train" else [str(place)]
    check(place.parent, "log.jsonl line 2", verb, *on_run)


def test_a_log_without_end_is_not_kept_in_memory(place: Path) -> None:
    """A line of 200 MB is refused after its first 64 kB."""
    with (place / "log.jsonl").open("ab") as file:
        file.truncate(200 << 20)
    check_code, said = command(place.parent / "stderr", "info", str(place))
    assert check_code == 2
    assert re.search(r"log\.jsonl line \d+ is damaged: it is longer than 65,536 bytes", said)


# What a report reads


def of_format(number: int, **content: Any) -> bytes:
    return json.dumps({"format": number, **content}).encode()


RESULTS: dict[str, tuple[str, bytes]] = {
    "nothing": ("metrics.json", b""),
    "a list": ("study/samplers.json", b"[]"),
    "no format": ("study/schedules.json", b"{}"),
    "brackets": ("metrics.json", b"[" * 100_000),
    "metrics of nothing": ("metrics.json", of_format(METRICS_FORMAT)),
    "a figure of text": (
        "metrics.json",
        of_format(METRICS_FORMAT, quality={"frechet": "close"}),
    ),
    "metrics of another format": ("metrics.json", of_format(99)),
    "no rows": ("study/samplers.json", of_format(FORMAT)),
    "a row that is a number": ("study/samplers.json", of_format(FORMAT, step=1, rows=[1])),
    "a study of another format": ("study/samplers.json", of_format(99)),
    "no trainings": ("study/schedules.json", of_format(FORMAT)),
    "a training that is a number": ("study/schedules.json", of_format(FORMAT, rows=[1])),
}


@pytest.mark.parametrize("case", RESULTS)
def test_hostile_results_are_refused(place: Path, case: str) -> None:
    name, content = RESULTS[case]
    (place / "study").mkdir()
    (place / name).write_bytes(content)
    check(place.parent, name.rpartition("/")[2], "report", str(place))


@pytest.mark.parametrize("picture", ["/etc/hostname", "../config.json", "missing.png", ""])
def test_a_study_shows_no_file_from_elsewhere(place: Path, picture: str) -> None:
    (place / "study").mkdir()
    (place / "study" / "samplers.json").write_bytes(of_format(FORMAT, rows=[{"picture": picture}]))
    check(place.parent, "study", "report", str(place))
