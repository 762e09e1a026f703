"""Where the command writes: it tries the place first, and replaces no file of anyone else."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import undiffuse
from undiffuse.base.errors import UserError
from undiffuse.base.files import refuse_unwritable, write_atomic
from undiffuse.data.loading import load_dataset
from undiffuse.runs import destinations
from undiffuse.runs.folder import Run

Command = Callable[..., str]


@pytest.fixture
def nothing_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    def sampled(*_: object, **__: object) -> None:
        raise AssertionError("images were sampled")

    monkeypatch.setattr("undiffuse.model.request.sample_batches", sampled)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
@pytest.mark.usefixtures("nothing_is_sampled")
@pytest.mark.parametrize(
    "words",
    [
        ["sample", "--out", "/proc/a.png"],
        ["sample", "--out", "/proc/drawn/"],
        ["sample", "--trajectory", "/proc/a.gif"],
        ["evaluate", "--n", "100", "--save", "/proc/a.npz"],
    ],
)
def test_a_place_where_nothing_can_be_written_is_refused_first(
    run: Path, command: Command, words: list[str]
) -> None:
    assert f"{words[-1].rstrip('/')} could not be written" in command(words[0], run, *words[1:])


@pytest.mark.usefixtures("nothing_is_sampled")
def test_a_run_that_cannot_be_written_is_not_evaluated(
    run: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(**_: object) -> None:
        raise PermissionError(13, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    assert "metrics.json could not be written (Read-only" in command("evaluate", run, "--n", 100)


def test_trying_a_place_leaves_nothing(tmp_path: Path) -> None:
    refuse_unwritable(tmp_path / "a" / "b" / "c.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.npz", "a.png"])
def test_a_file_of_someone_else_is_replaced_only_on_demand(
    run: Path, tmp_path: Path, command: Command, name: str
) -> None:
    mine = tmp_path / name
    if name == "a.npz":
        np.savez(mine, images=np.zeros((3, 8, 8), np.uint8))
    else:
        Image.new("L", (8, 8)).save(mine)
    before = mine.read_bytes()
    said = command("sample", run, "--n", 2, "--out", mine)
    assert "a file of that name that undiffuse did not write" in said
    assert "--overwrite" in said
    assert mine.read_bytes() == before
    for words in (["--overwrite"], []):  # the second time it is undiffuse's own
        assert "2 images" in command("sample", run, "--n", 2, "--out", mine, *words)
    assert mine.read_bytes() != before


@pytest.mark.parametrize("name", ["a.gif", "a.png"])
def test_trajectories_are_marked_and_no_data(
    run: Path, tmp_path: Path, command: Command, name: str
) -> None:
    (tmp_path / "drawn").mkdir()
    words = ["sample", run, "--n", 2, "--out", tmp_path / "images.png", "--trajectory"]
    for _ in range(2):
        said = command(*words, tmp_path / "drawn" / name)
        assert "the steps from noise" in said
    with pytest.raises(UserError, match="holds only pictures that undiffuse drew"):
        load_dataset(str(tmp_path / "drawn"))
    Image.new("L", (8, 8)).save(tmp_path / name)
    assert "did not write" in command(*words, tmp_path / name)


def test_results_replace_no_other_file(run: Path, tmp_path: Path, command: Command) -> None:
    images = tmp_path / "images.npz"
    np.savez(images, images=np.zeros((100, 8, 8), np.uint8))
    mine = tmp_path / "notes.json"
    mine.write_text('{"mine": 1}')
    words = ["--images", images, "--data", Run(run).about().config.data, "--out", mine]
    assert "there is a file of that name that is no evaluation" in command("evaluate", *words)
    assert mine.read_text() == '{"mine": 1}'


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    link = tmp_path / "link.png"
    link.symlink_to(tmp_path / "far" / "real.png")
    for content in (b"one", b"two"):
        write_atomic(link, content)
        assert link.is_symlink()
        assert (tmp_path / "far" / "real.png").read_bytes() == content


def test_colours_by_force_make_no_terminal_of_a_pipe(
    run: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.setenv(name, "1")
        sampled = command("sample", run, "--n", 2, "--out", tmp_path / "images.png")
        shown = command("info", run) + sampled
        assert "…" not in shown
        assert not {"\r", "\x1b[2K", "\x1b[?25l", "\x1b[1A"} & set(shown.split("m"))
        assert "\x1b[?25l" not in shown
        monkeypatch.delenv(name)


def test_the_folder_may_be_changed_while_a_run_is_watched(
    tmp_path: Path, tiny: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    path = undiffuse.train("run", **tiny, watch=lambda _: os.chdir(tmp_path / "elsewhere"))
    assert path == tmp_path / "run"
    assert Run(path).finished()
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="a folder in use cannot be removed there")
def test_a_working_folder_that_was_removed_is_a_sentence(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert "the working folder was removed" in command("train", "--steps", 1)
    with pytest.raises(UserError, match="the working folder was removed"):
        undiffuse.train("run", steps=1)


def test_a_folder_of_runs_names_them(run: Path, command: Command) -> None:
    assert f"{run.parent} is no run folder; give one of those in it: " in command(
        "info", run.parent
    )


def test_a_finished_run_that_should_be_longer_is_told_how(
    run: Path, command: Command, tiny: dict[str, object]
) -> None:
    with pytest.raises(UserError, match=r"finished run \(steps: 12 there, 13 asked\).*--from"):
        undiffuse.train(run, **{**tiny, "steps": 13})


def test_an_archive_of_samples_is_read_as_before(run: Path, tmp_path: Path) -> None:
    to = destinations.destination(str(tmp_path / "a.npz"))
    model = undiffuse.load(run)
    request = model.request(3)
    (images,) = request.batches()
    destinations.save_images(to, images, request.classes, model.classes)
    with np.load(to.path) as arrays:
        assert np.array_equal(arrays["images"], images[:, 0].numpy())
