"""The command: help without waiting, one sentence for a mistake, and the verbs from end to end."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from gzip import compress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from conftest import as_flags, write_idx
from undiffuse import __version__, api, cli
from undiffuse.base import engine
from undiffuse.base.errors import UserError
from undiffuse.console.live import Watcher
from undiffuse.data.loading import DATASETS
from undiffuse.diffusion.schedule import SCHEDULES
from undiffuse.nets import NETWORKS
from undiffuse.nets._layers import REASONS
from undiffuse.runs.folder import Run
from undiffuse.training import experiment
from undiffuse.training.config import FORMER, Config
from undiffuse.training.options import SessionOptions
from undiffuse.training.presets import as_command, make_config
from undiffuse.training.records import (
    Projection,
    Quality,
    SessionStarted,
    StepTaken,
    Validation,
)

NET = "unet:channels=8/16,blocks=1/1,dropout=0.1"  # of the fixture `tiny`
VERBS = ("train", "sample", "evaluate", "study", "report", "info")


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def words(self) -> str:
        """What stdout says, without line breaks and frames."""
        return " ".join(self.out.split())


Command = Callable[..., Answer]


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Command:
    """The command, run in this process from within an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("COLUMNS", "300")

    def run(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["undiffuse", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
            code: Any = 0
        except SystemExit as ended:
            code = ended.code or 0
        return Answer(code, *capsys.readouterr())

    return run


def assert_refused(answer: Answer, *parts: str) -> None:
    """Exit code 2, nothing written, and a complaint on stderr that says these parts.

    It says nothing of the machinery."""
    assert answer.code == 2
    said = re.sub(r"[\s│╭╮╰╯─]+", " ", answer.err).strip()
    for part in parts:
        assert part in said
    for machinery in (
        "Traceback",
        "pydantic",
        "tyro",
        "validation error",
        "input_value",
        "Annotated",
    ):
        assert machinery not in said
    assert answer.out == ""
    assert list(Path.cwd().iterdir()) == []


def python(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True
    )


# Help, and what a bare import costs


def test_no_help_waits_for_torch() -> None:
    """The verbs' helps, one after the other, in one process that has not imported torch then."""
    script = f"""
import sys
from undiffuse import cli
for arguments in (["--help"], ["--version"], *([verb, "--help"] for verb in {VERBS})):
    sys.argv = ["undiffuse", *arguments]
    try:
        cli.main()
    except SystemExit as ended:
        assert not ended.code, arguments
print(sorted({{"torch", "matplotlib", "diffusers", "PIL"}} & set(sys.modules)))
"""
    done = python(script)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "[]"
    for verb in VERBS:
        assert f"undiffuse {verb}" in done.stdout
    assert f"undiffuse {__version__}" in done.stdout


def test_the_public_names_are_the_functions_whatever_else_was_imported() -> None:
    script = """
import sys
import undiffuse
assert "torch" not in sys.modules
import undiffuse.training.loop, undiffuse.diffusion.sampling, undiffuse.data.loading
import undiffuse.runs.plan, undiffuse.nets.unet, undiffuse.model, undiffuse.runs.evaluation
from undiffuse import api
assert (undiffuse.train, undiffuse.sample, undiffuse.load) == (api.train, api.sample, api.load)
for name in undiffuse.__all__:
    assert getattr(undiffuse, name) is not None
assert set(undiffuse.__all__) <= set(dir(undiffuse))
assert undiffuse.evaluate is undiffuse.runs.evaluation.evaluate
assert undiffuse.Model is undiffuse.model.Model
"""
    done = python(script)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_hyperparameter_is_a_flag_and_its_help_says_why(command: Command) -> None:
    answer = command("train", "--help")
    assert answer.code == 0
    for name, field in Config.model_fields.items():
        assert f"--{name.replace('_', '-')}" in answer.out
        assert (field.description or "").split(" - ")[-1].split()[0] in answer.words
    for name, option in SessionOptions.model_fields.items():
        assert f"--{name.replace('_', '-')}" in answer.out
        assert (option.description or "").split(" - ")[-1].split()[0] in answer.words
    for flag in ("--out", "--replay", "--plan", *(f"--{name}" for name in cli.NETWORK)):
        assert flag in answer.out
    assert answer.err == ""


def test_the_help_of_a_preset_shows_its_values(command: Command) -> None:
    assert "(default: unet2d)" in command("train", "--preset", "handout", "--help").words
    assert "(default: unet)" in command("train", "--help").words


# A mistake is one sentence, exit code 2, and nothing written


EVERY_VERB = ", ".join(["train", *cli.VERBS])


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("", [EVERY_VERB]),
        ("draw", ["draw", EVERY_VERB]),
        ("train --bogus 1", ["--bogus"]),
        (
            "train --preset nonsense",
            ["no preset called 'nonsense'; there are: fast, handout, likelihood"],
        ),
        (
            "train --preset=nonsense",
            ["no preset called 'nonsense'; there are: fast, handout, likelihood"],
        ),
        (
            "train --schedule nonsense",
            [f"no schedule called 'nonsense'; there are: {', '.join(SCHEDULES)}"],
        ),
        ("train --schedule cosine:q=1", ["no parameter 'q'", "s=0.008"]),
        (
            "train --net nonsense",
            [f"no network called 'nonsense'; there are: {', '.join(NETWORKS)}"],
        ),
        (
            "train --net unet:depth=4",
            ["network 'unet' has no parameter 'depth'", "channels=64/128", "attention=0/1"],
        ),
        (
            "train --net unet2d:channels=wide",
            ["'unet2d:channels=wide': channels must be a finite number, not 'wide'"],
        ),
        ("train --plan --schedule cosine:s=-1", ["schedule cosine:s=-1", "other parameters"]),
        (
            "train --plan --weighting sigmoid:bias=1000",
            ["weighting sigmoid:bias=1000", "other parameters"],
        ),
        ("train --steps 5 --minutes 3", ["give one of --minutes M, --epochs E and --steps S"]),
        ("train --epochs 5 --steps 3", ["give one of --minutes M, --epochs E and --steps S"]),
        ("train --minutes 0", ["--minutes: ", "greater than 0"]),
        ("train --lr -1", ["--lr: ", "greater than 0"]),
        ("train --lr nan", ["--lr: ", "finite"]),
        ("train --lr high", ["--lr", "high"]),
        ("train --steps 2.5", ["--steps", "2.5"]),
        (
            "train --channels 8 --steps 2",
            ["network 'unet': channels, blocks and attention have one entry a level"],
        ),
        ("train --compile maybe", ["--compile", "maybe"]),
        ("train --precision fp8", ["--precision", "fp8"]),
        ("train --checkpoint-every 0", ["--checkpoint-every: ", "greater than or equal to 1"]),
        ("train --clusters -1", ["--clusters: ", "greater than or equal to 0"]),
        (
            "train --steps 2 --data nowhere",
            [f"'nowhere' is neither a data set (there are: {', '.join(DATASETS)}) nor a folder"],
        ),
        ("train --steps 2 --schedule cosine --predict eps", ["divides by zero at t = 1"]),
        (
            "train --steps 2 --net categorical",
            ["--predict must be 'x0' for network 'categorical', not 'v'"],
        ),
        ("train --replay nowhere --out new", ["nowhere is no run folder"]),
        ("train --replay nowhere", ["--replay needs --out"]),
        ("info nowhere", ["nowhere is no run folder"]),
        (f"info {'long' * 80}", ["longlong"]),  # a name that the system refuses
        (f"train --steps 2 --out {'long' * 80}", ["longlong"]),
        ("info", ["the run folder"]),
        ("sample nowhere", ["nowhere is no run folder"]),
        ("sample nowhere --out new.png", ["nowhere is no run folder"]),
        ("sample", ["the run folder"]),
        ("report nowhere", ["nowhere is no run folder"]),
        ("study samplers nowhere", ["nowhere is no run folder"]),
        ("study nonsense nowhere", ["nonsense", "samplers"]),
        ("study samplers nowhere --minutes 0", ["--minutes must be a finite number above 0"]),
    ],
)
def test_a_mistake_is_one_sentence(command: Command, line: str, parts: list[str]) -> None:
    assert_refused(command(*line.split()), *parts)


def test_what_comes_with_the_package_is_listed() -> None:
    """The lists of the sentences above are read from these."""
    assert {"categorical", "unet", "unet2d"} <= set(NETWORKS)
    assert "mnist" in DATASETS


def test_a_flag_beside_replay_is_refused_rather_than_ignored(command: Command, run: Path) -> None:
    for flags in ("--lr 0.5", "--preset handout", "--plan"):
        assert_refused(
            command("train", "--replay", run, "--out", "new", *flags.split()), "--replay"
        )


def idx(images: int = 30, labels: int = 30) -> Callable[[Path], Path]:
    """A maker of IDX files whose counts may differ; returns the file at fault."""

    def make(folder: Path) -> Path:
        write_idx(folder, np.zeros((images, 8, 8), np.uint8), [0] * labels)
        return folder / ("images-idx3-ubyte" if images == labels else "labels-idx1-ubyte")

    return make


def spoilt(change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    """A maker of IDX files whose images file is then changed."""

    def make(folder: Path) -> Path:
        path = idx()(folder)
        path.write_bytes(change(path.read_bytes()))
        return path

    return make


def empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def broken_picture(folder: Path) -> Path:
    folder.mkdir()
    Image.new("L", (8, 8)).save(folder / "a.png")
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:40])
    return folder / "b.png"


def two_sizes(folder: Path) -> Path:
    folder.mkdir()
    for side in (8, 9):
        Image.new("L", (side, side)).save(folder / f"{side}.png")
    return folder / "9.png"


def no_folder(folder: Path) -> Path:
    folder.write_text("a file")
    return folder


BAD_DATA = {
    "truncated": (spoilt(lambda content: content[:-1]), "cut short"),
    "oversized": (spoilt(lambda content: content + b"\0"), "goes on after"),
    "wrong magic number": (
        spoilt(lambda content: b"\0\0\x0a" + content[3:]),
        "starts with '00000a03'",
    ),
    "promises too much": (
        spoilt(lambda c: c[:4] + struct.pack(">I", 10**6) + c[8:]),
        "more than a file of",
    ),
    "counts that don't match": (idx(labels=29), "29 labels for the 30 images"),
    "a gzip bomb": (
        spoilt(lambda c: compress(c[:4] + struct.pack(">3I", 30, 8, 8) + bytes(10**6))),
        "goes on after",
    ),
    "damaged gzip": (spoilt(lambda content: b"\x1f\x8b" + zlib.compress(content)), "damaged gzip"),
    "an empty folder": (empty, "holds no images"),
    "a broken image": (broken_picture, "broken"),
    "images of two sizes": (two_sizes, "9 x 9"),
    "a file": (no_folder, "is a file; give the folder"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_are_named(
    command: Command, tiny: dict[str, Any], tmp_path: Path, case: str
) -> None:
    make, problem = BAD_DATA[case]
    culprit = make(tmp_path / "data")
    answer = command("train", "--out", "new", *as_flags({**tiny, "data": tmp_path / "data"}))
    assert_refused(answer, str(culprit), problem)
    assert answer.err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ("--classes 7", ["trained without classes", "train one with --conditional"]),
        ("--label 7", ["trained without classes", "train one with --conditional"]),
        ("--grid karras:rho=0.001", ["time grid 'karras:rho=0.001'", "other values"]),
        ("--guidance 2", ["without classes or clusters", "train one with --conditional"]),
        ("--guidance -1", ["--guidance must be from 0 to 1,000,000, not -1"]),
        ("--sampler nonsense", ["no sampler called 'nonsense'; there are: posterior-mean, ddpm"]),
        ("--sampler ddim:eta=2", ["eta must be between 0 and 1"]),
        ("--grid nonsense", ["no time grid called 'nonsense'; there are: uniform"]),
        ("--steps 0", ["--steps must be at least 1 and at most 100,000, not 0"]),
        ("--n 0", ["--n must be at least 1, not 0"]),
        ("--batch-size 0", ["--batch-size must be at least 1, not 0"]),
        ("--seed -1", ["--seed must be a number from 0 to 2^63 - 1, not -1"]),
        ("--out x.jpg", ["FILE.png", "FILE.npz", "FOLDER/"]),
        ("--trajectory x.mp4", ["FILE.gif", "FILE.png"]),
        ("--trajectory ./new.png", ["that is where the images go"]),
        ("--n 99999999999", ["--n must be at most 10,000,000"]),
        ("--precision fp8", ["--precision", "fp8"]),
    ],
)
def test_an_impossible_request_is_one_sentence(
    command: Command, run: Path, flags: str, parts: list[str]
) -> None:
    out = "" if "--out" in flags else "--out new.png "
    assert_refused(command("sample", run, *f"{out}{flags}".split()), *parts)


def test_a_run_whose_errors_name_flags(command: Command, train: Callable[..., Path]) -> None:
    """The library names parameters, as `condition_dropout=0.1`, and the command its flags."""
    run = train(conditional=True, condition_dropout=0.0, steps=1, snapshots=2)
    refused = command("sample", run, "--guidance", 2)
    assert_refused(
        refused, "with --condition-dropout 0, so", "train one with --condition-dropout 0.1"
    )
    (Path.cwd() / "n").mkdir()
    assert "undiffuse: n is no run folder" in command("info", "n").err


def test_too_little_memory_is_one_sentence_and_other_failures_are_not_hidden(
    command: Command, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def large(*_: Any) -> None:
        torch.empty(2**60, dtype=torch.uint8)

    def broken(*_: Any) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(api, "load", large)
    assert_refused(command("sample", run), "not enough memory", "fewer or smaller images")
    monkeypatch.setattr(api, "load", broken)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        command("sample", run)


# The verbs


def test_train_then_again_then_otherwise(
    command: Command, run: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    """The flags for the fixture's fields: the same weights. Again: it says so. Else: refused."""
    out = tmp_path / "run"
    line = ["train", "--out", out, *as_flags(tiny)]
    first = command(*line)
    assert (first.code, first.err) == (0, "")
    assert f"{out}: finished, 12 steps" in first.words
    assert "61 images of 'digits' (8x8x1), 3 held out" in first.words
    for named in re.findall(rf"{re.escape(str(out))}/\S+\.png", first.words):
        assert Path(named).is_file()
    assert (out / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()

    changed = (out / "log.jsonl").stat().st_mtime_ns
    again = command(*line)
    assert (again.code, again.err) == (0, "")
    assert f"{out}: was already finished, 12 steps" in again.words
    assert_refused(command(*line, "--lr", "0.5"), "lr: 0.004 there, 0.5 asked", "--out")
    assert (out / "log.jsonl").stat().st_mtime_ns == changed


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"preset": "handout"},
        {"preset": "likelihood", "steps": 7},
        {"conditional": True, "minutes": 2.5, "lr": 1e-05, "schedule": "cosine:s=0.02"},
        {
            "channels": (8, 16, 32),
            "blocks": (1, 1, 2),
            "attention": (False, True, True),
            "stratified": False,
            "epochs": 0.3,
        },
        {"net": "categorical:heads=4", "dropout": 0.1, "predict": "x0", "clusters": 7},
        {"data": "here/my data", "subset": 300, "guidance": 1.5},
    ],
)
def test_the_command_of_a_configuration_makes_it(
    monkeypatch: pytest.MonkeyPatch, command: Command, fields: dict[str, Any]
) -> None:
    made = []

    def train_config(config: Config, path: Path, *_: Any, **__: Any) -> None:
        made.append((config, path))
        raise UserError("enough")

    monkeypatch.setattr(api, "train_config", train_config)
    config = make_config(**fields)
    words = shlex.split(as_command(config, "runs/a b"))
    assert words[:2] == ["undiffuse", "train"]
    answer = command(*words[1:])
    assert (answer.code, answer.err) == (2, "undiffuse: enough\n")
    assert made == [(config, Path("runs/a b"))]
    assert len(as_command(make_config(), "runs/x").split()) == 4


def test_the_command_that_a_run_names_goes_on_with_it(
    command: Command, run: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    assert "was already finished" in command(*shlex.split(Run(copy).command())[1:]).words
    assert command("train", "--replay", copy, "--out", tmp_path / "again").code == 0
    assert (
        "was already finished" in command(*shlex.split(Run(tmp_path / "again").command())[1:]).words
    )


def test_replay_repeats_a_run(command: Command, run: Path) -> None:
    """With the options of its session. Others are said to change bits."""
    own = ["--precision", "fp32", "--compile", "off"]
    repeated = command("train", "--replay", run, "--out", "again", *own)
    assert repeated.code == 0
    assert "will not be the same to the bit" not in repeated.words
    assert Path("again/model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    other = command("train", "--replay", run, "--out", "other", "--precision", "bf16")
    assert "options of before (precision): the result will not be the same" in other.words
    assert f"replays {run}" in command("info", "again").words


def test_the_default_folder_is_named_after_the_preset(
    command: Command, tiny: dict[str, Any]
) -> None:
    assert command("train", *as_flags({**tiny, "steps": 1, "snapshots": 2})).code == 0
    assert Run(Path("runs/fast")).finished()


def test_a_folder_with_brackets_in_its_name_is_printed_as_it_is(
    command: Command, tiny: dict[str, Any]
) -> None:
    answer = command("train", "--out", "a[b]/[/c]", *as_flags({**tiny, "steps": 1, "snapshots": 2}))
    assert (answer.code, answer.err) == (0, "")
    assert "a[b]/[/c]: finished" in answer.words


def test_lines_stay_whole_however_narrow_the_terminal(
    monkeypatch: pytest.MonkeyPatch, command: Command, tiny: dict[str, Any]
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    run = "a/long/way/to/a/run"
    lines = command(
        "train", "--out", run, *as_flags({**tiny, "steps": 1, "snapshots": 2})
    ).out.splitlines()
    assert lines[0].startswith(f"{run}: 61 images of 'digits' (8x8x1), 3 held out; {NET}, ")
    assert f"  {run}/timeline.png, {run}/loss.png" in lines
    (line,) = command("sample", run, "--n", "3").out.splitlines()
    assert re.fullmatch(rf"{run}/samples.png: 3 images by .* network calls each, in \S+ s", line)


@pytest.mark.parametrize(
    ("budget", "steps"), [({"steps": 100}, 100), ({"epochs": 4}, 30), ({"minutes": 5}, None)]
)
def test_plan_counts_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch,
    command: Command,
    tiny: dict[str, Any],
    budget: dict[str, int],
    steps: int | None,
) -> None:
    monkeypatch.setattr(engine, "STARTED", time.monotonic())  # or these tests' own time would count
    answer = command("train", "--plan", *as_flags({**tiny, "steps": None, **budget}))
    assert (answer.code, answer.err) == (0, "")
    pattern = r"in ([\d.]+) minutes: ([\d,]+) steps, ([\d,]+) images, ([\d.]+) epochs of 61 images"
    found = re.search(pattern, answer.words)
    assert found
    minutes, planned, seen, epochs = (float(group.replace(",", "")) for group in found.groups())
    assert planned == steps if steps else minutes == pytest.approx(5, abs=0.1)
    assert seen == 8 * planned
    assert epochs == pytest.approx(seen / 61, abs=0.01)
    assert "largest sensible subset: all 61 images" in answer.words
    assert list(Path.cwd().iterdir()) == []


def test_plan_says_which_subset_a_short_budget_sees(command: Command, tiny: dict[str, Any]) -> None:
    answer = command("train", "--plan", *as_flags({**tiny, "steps": 3}))
    assert (
        "largest sensible subset: 25 images, 24 of them to train on, each seen once (--subset 25)"
        in answer.words
    )


def test_plan_refuses_what_training_does(
    command: Command, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "LARGEST", experiment.LARGEST_HEADER)
    answer = command("train", "--plan", *as_flags({**tiny, "steps": 3}))
    assert answer.code == 2
    assert "checkpoints would take" in answer.err


def test_info_shows_every_hyperparameter_with_its_reason(command: Command, run: Path) -> None:
    answer = command("info", run)
    assert (answer.code, answer.err) == (0, "")
    lines = [" ".join(line.split()) for line in answer.out.splitlines()]
    content, config = json.loads((run / "config.json").read_bytes()), Run(run).about().config
    assert content["reasons"].keys() == Config.model_fields.keys()
    for name, why in content["reasons"].items():
        value = getattr(config, name)
        if value is not None:
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
            assert f"{name.replace('_', '-')} {shown} {why}" in lines
    # The options of the network, below its spec.
    for line in (
        "channels 8 16 chosen for this run",
        f"attention False True {REASONS['attention'].partition(' - ')[2]}",
        f"heads 2 {REASONS['heads'].partition(' - ')[2]}",
        "dropout 0.1 chosen for this run",
    ):
        assert line in lines
    assert "state finished; 12 steps" in answer.words
    assert "61 images of 8x8x1 to train on, 3 held out" in answer.words
    assert "classes 0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in answer.words


def test_info_of_an_unfinished_run_says_how_to_go_on(
    command: Command, run: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    lines = (copy / "log.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "log.jsonl").write_bytes(b"".join(lines[:-1]))
    assert "unfinished; the same command continues it" in command("info", copy).words


def test_sample_makes_what_the_python_function_makes(command: Command, labelled_run: Path) -> None:
    flags = "--n 5 --classes 7 3 --guidance 1.5 --seed 2 --sampler ddim --steps 4"
    written = "--out new.npz --trajectory way.gif"
    answer = command("sample", labelled_run, *flags.split(), *written.split())
    assert (answer.code, answer.err) == (0, "")
    assert "new.npz: 5 images by ddim, 4 steps, 7 network calls each" in answer.words
    options = {"guidance": 1.5, "seed": 2, "sampler": "ddim", "steps": 4}
    expected = api.sample(labelled_run, n=5, classes=(7, 3), **options)
    with np.load("new.npz") as archive:
        assert (archive["images"] == expected).all()
        assert archive["labels"].tolist() == [7, 3, 7, 3, 7]
    assert Path("way.gif").is_file()


def test_classes_are_asked_for_by_name_or_by_number(
    command: Command, train: Callable[..., Path], tmp_path: Path
) -> None:
    """A name of a class is that class, also where it is another one's number."""
    folder = tmp_path / "pictures"
    for name in ("2", "cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(4):
            Image.new("L", (8, 8), 60 * i).save(folder / name / f"{i}.png")
    run = train(data=str(folder), conditional=True, steps=1, snapshots=2)
    asked = ("--n", 4, "--classes", "dog", 2, 1, 0)
    assert command("sample", run, *asked, "--out", "new.npz").code == 0
    with np.load("new.npz") as archive:
        assert archive["labels"].tolist() == [2, 0, 1, 0]
        assert archive["classes"].tolist() == ["2", "cat", "dog"]
    Path("new.npz").unlink()
    for wrong in ("cow", "3", "-1"):
        refused = command("sample", run, f"--classes={wrong}")
        assert_refused(refused, f"no class {wrong}; the classes are 0 to 2: 2, cat, dog")


def test_the_flags_of_the_version_before_are_understood(
    command: Command, tiny: dict[str, Any], labelled_run: Path
) -> None:
    former = {"groups": 3, "label_dropout": 0.2, "score_share": 0.1}
    assert former.keys() == FORMER.keys()
    fields = {**tiny, "steps": 1, "snapshots": 2}
    assert command("train", "--out", "run", *as_flags({**fields, **former})).code == 0
    config = Run(Path("run")).about().config
    assert [getattr(config, FORMER[name]) for name in former] == list(former.values())
    for flag in ("--label", "--classes"):
        made = command("sample", labelled_run, "--n", 2, flag, 3, "--out", f"x{flag}.npz")
        assert (made.code, made.err) == (0, "")
    assert Path("x--label.npz").read_bytes() == Path("x--classes.npz").read_bytes()


def test_a_folder_to_write_to_that_is_a_file_is_named(
    command: Command, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert_refused(command("sample", run, "--out", f"{tmp_path}/notes.txt/"), "notes.txt is a file")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_quality_is_shown_where_the_floor_is_0(run: Path) -> None:
    """Of a data set whose every image is there twice, say."""
    screen = io.StringIO()
    with Watcher(Run(run).about().config, run, Console(file=screen, width=40)) as watcher:
        watcher(Quality(5, 1.0, 3.25, 0.0, 100, 1.0))
        watcher(Quality(5, 1.0, 3.25, 0.65, 100, 1.0))
    nothing, floor = screen.getvalue().splitlines()
    assert nothing.endswith("Frechet distance 3.25 (100 quick samples)")
    assert floor.endswith("Frechet distance 3.25, 5 times the floor (100 quick samples)")


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_live_line_fits_the_terminal(width: int, run: Path) -> None:
    """A narrow one shows the bar, the time that is left, and the step; a wide one everything."""
    screen = io.StringIO()
    console = Console(file=screen, width=width, force_terminal=True, color_system=None)
    config = Run(run).about().config.model_copy(update={"minutes": 100.0, "steps": None})
    with Watcher(config, run, console) as watcher:
        watcher(SessionStarted(0, 0.0, {"precision": "bf16", "compiled": True}, 10**6, []))
        watcher(Projection(0, 0.0, 98_765, 12))
        watcher(Validation(0, 0.0, 0.1234, []))
        watcher(StepTaken(23_456, 0.2, 0.0987, 1e-3, 0.1))
        watcher.bar.refresh()
        (line,) = [
            line for line in screen.getvalue().split("\r")[-1].splitlines() if "to go" in line
        ]
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).rstrip()
    assert len(shown) <= width
    assert re.match(r".{10,30} +0% (100:00|99:59) to go  step 23,456/98,765", shown)
    assert ("epoch" in shown) == ("held-out 0.1234" in shown and width > 120)
    assert "…" not in shown


@pytest.mark.parametrize(
    ("there", "asked", "hint"),
    [("10.0", "3", True), ("10.0", "10", False), ("10.0", "abc", False), (None, "3", False)],
)
def test_make_digits_names_the_command_for_another_number_of_minutes(
    tmp_path: Path, there: str | None, asked: str, hint: bool
) -> None:
    """And only then: the refusal is played by a stand-in."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "bin" / "undiffuse").write_text("#!/bin/sh\nexit 2\n")
    (tmp_path / "bin" / "undiffuse").chmod(0o755)
    if there:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "config.json").write_text(f'{{"config": {{"minutes": {there}}}}}')
    arguments = [f"BIN={tmp_path}/bin", f"RUN={tmp_path}/run", f"MINUTES={asked}"]
    root = Path(__file__).parent.parent
    done = subprocess.run(
        ["make", "-o", "setup", "digits", *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert (f"make digits MINUTES={asked} RUN={tmp_path}/run-{asked}min" in done.stdout) == hint


def test_sample_writes_a_grid_or_a_folder(command: Command, run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    assert command("sample", copy, "--n", 4).code == 0
    with Image.open(copy / "samples.png") as sheet:
        assert sheet.width == sheet.height > 50
    assert command("sample", copy, "--n", 3, "--out", "new/").code == 0
    assert sorted(path.name for path in Path("new").iterdir()) == [
        "00000.png",
        "00001.png",
        "00002.png",
    ]
