"""A longer run goes on from the state that a finished run had before its learning rate fell."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import undiffuse
from helpers_runs import PLAIN, assert_same_run, configured, finish, stop
from undiffuse import api, cli
from undiffuse.base.errors import UserError
from undiffuse.report import write_report
from undiffuse.runs.folder import Run
from undiffuse.runs.longer import BEFORE_DECAY, START
from undiffuse.training.records import Cooldown, Quality, Snapshot, StepTaken

SAME = {"compile": "off", "precision": "fp32"}


@pytest.fixture(scope="module")
def fields(tiny: dict[str, Any]) -> dict[str, Any]:
    return {**tiny, "steps": 20, "decay": 0.5, "quality_share": 0.0, "snapshots": 3}


@pytest.fixture(scope="module")
def old(fields: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return undiffuse.train(tmp_path_factory.mktemp("old") / "run", **fields)


@pytest.fixture(scope="module")
def longer(old: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return undiffuse.train(tmp_path_factory.mktemp("longer") / "run", longer=old, steps=30, **SAME)


def test_the_state_before_the_decay_is_kept(old: Path) -> None:
    run = Run(old)
    assert run.of(Cooldown)[0].start == 10
    assert run.load_tensors(old / BEFORE_DECAY)[1] == 10


def test_it_is_one_run_of_the_whole_length(
    old: Path, longer: Path, fields: dict[str, Any], tmp_path: Path
) -> None:
    """20 steps whose rate falls from step 10 on, and 30 more: as 40 whose rate falls from 25 on."""
    whole = undiffuse.train(tmp_path / "run", **{**fields, "steps": 40, "decay": 15 / 40})
    ((falls,), (there,)) = Run(longer).of(Cooldown), Run(whole).of(Cooldown)
    assert (falls.start, falls.end) == (there.start, there.end) == (25, 40)
    left, right = (load_file(run / "checkpoint.safetensors") for run in (longer, whole))
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
    losses = {record.step: record.loss for record in Run(whole).of(StepTaken)}
    assert {r.step: r.loss for r in Run(longer).of(StepTaken)} == {
        step: loss for step, loss in losses.items() if step > 10
    }


def test_its_snapshots_begin_where_it_begins(longer: Path) -> None:
    steps = [record.step for record in Run(longer).of(Snapshot)]
    assert (steps[0], steps[-1], len(steps)) == (10, 40, 3)
    assert (longer / "samples" / "step_000010.png").is_file()
    assert Run(longer).of(Quality) == []


@pytest.mark.parametrize("at", [1, 11, 18, 27])
def test_it_can_be_interrupted_also_without_the_old_run(
    old: Path, longer: Path, tmp_path: Path, at: int
) -> None:
    copy = Path(shutil.copytree(old, tmp_path / "old"))
    config = api.of_longer(copy, tmp_path / "run", steps=30)
    seen = 0

    def watch(record: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.train_config(config, tmp_path / "run", PLAIN, longer=copy, watch=watch)
    shutil.rmtree(copy)
    undiffuse.train(tmp_path / "run", longer=copy, steps=30, **SAME)
    assert_same_run(longer, tmp_path / "run")


def test_its_replay_is_exact_and_needs_no_other_run(longer: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(longer, tmp_path / "copy"))
    config = Run(copy).about().config
    api.train_config(config, tmp_path / "again", PLAIN, replay=copy)
    assert_same_run(longer, tmp_path / "again")
    assert (tmp_path / "again" / START).read_bytes() == (longer / START).read_bytes()


def test_a_longer_run_can_go_on_too(longer: Path, tmp_path: Path) -> None:
    third = Run(undiffuse.train(tmp_path / "run", longer=longer, steps=10, **SAME))
    start = third.about().start
    assert start is not None
    assert (start.step, third.finished().step) == (25, 35)


def test_it_says_what_it_is(
    old: Path, longer: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Run(longer).about().start
    assert start is not None
    assert (start.run, start.step, start.rate) == (str(old.resolve()), 10, 1.0)
    assert Run(longer).command() == f"undiffuse train --from {old} --steps 30 --out {longer}"
    monkeypatch.setattr("sys.argv", ["undiffuse", "info", str(longer), "--json"])
    cli.main()
    assert json.loads(capsys.readouterr().out)["start"]["step"] == 10
    monkeypatch.setattr("sys.argv", ["undiffuse", "info", str(longer)])
    cli.main()
    assert f"step 10 of {old}" in capsys.readouterr().out
    page = next(path for path in write_report(longer) if path.suffix == ".html").read_text()
    assert "began at step 10 of the run" in page


def test_the_command_trains_longer(
    old: Path, longer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["undiffuse", "train", "--from", str(old), "--steps", "30", "--out", f"{tmp_path}/run"]
    monkeypatch.setattr("sys.argv", [*line, "--compile", "off", "--precision", "fp32"])
    cli.main()
    left, right = (Run(run).finished() for run in (longer, tmp_path / "run"))
    assert left is not None
    assert right is not None
    assert left.step == right.step
    assert Run(tmp_path / "run").about().start == Run(longer).about().start


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--steps 5 --lr 0.1 --out new", "takes no flag of a hyperparameter"),
        ("--steps 5", "--from needs --out"),
        ("--steps 5 --epochs 2 --out new", "give one of"),
        ("--steps 5 --plan --out new", "no --plan"),
    ],
)
def test_what_does_not_go_with_it_is_refused(
    old: Path, tmp_path: Path, flags: str, said: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["undiffuse", "train", "--from", str(old), *flags.split()])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_other_starts_are_refused(
    old: Path, longer: Path, fields: dict[str, Any], tmp_path: Path, train: Callable[..., Path]
) -> None:
    config = configured(**fields)
    stop(config, tmp_path / "unfinished", at=3)
    with pytest.raises(UserError, match="unfinished; the command that began it continues it"):
        undiffuse.train(tmp_path / "new", longer=tmp_path / "unfinished", steps=3)
    finish(configured(**{**fields, "seed": 5}), tmp_path / "other")
    copy = Path(shutil.copytree(longer, tmp_path / "copy"))
    with pytest.raises(UserError, match=r"another configuration|begins from"):
        undiffuse.train(copy, longer=tmp_path / "other", steps=30)
    bare = Path(shutil.copytree(old, tmp_path / "bare"))
    (bare / BEFORE_DECAY).unlink()
    with pytest.raises(UserError, match="from which a longer run begins; train it again"):
        undiffuse.train(tmp_path / "new", longer=bare, steps=3)
    assert not (tmp_path / "new").exists()
