"""The commands that start from an image file: what they read, write, say and refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from undiffuse.base.errors import UserError
from undiffuse.base.images import is_drawn, note_of
from undiffuse.data.one_image import read_image, read_mask

Command = Callable[..., str]
GREY, COLOUR = (1, 8, 8), (3, 8, 8)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with an image, its right half as a mask, and files that are no such things."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / "image.png")
    right = np.zeros((8, 8), np.uint8)
    right[:, 4:] = 255
    Image.fromarray(right).save(tmp_path / "mask.png")
    Image.fromarray(right * 0).save(tmp_path / "empty.png")
    Image.fromarray(right * 0 + 255).save(tmp_path / "full.png")
    Image.fromarray(np.zeros((7, 8), np.uint8)).save(tmp_path / "other.png")
    Image.fromarray(rng.integers(0, 256, (2, 2), dtype=np.uint8)).save(tmp_path / "small.png")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "text.txt").write_text("no image")
    return tmp_path


CALLS = {
    "inpaint": ["--image", "image.png", "--mask", "mask.png"],
    "edit": ["--image", "image.png", "--strength", "0.5"],
    "interpolate": ["--from", "image.png", "--to", "seed:7"],
    "restore": ["--image", "small.png", "--operator", "downsample:factor=4"],
}
FEW = ["--n", "3", "--steps", "3"]


@pytest.mark.parametrize("verb", CALLS)
def test_each_command_writes_a_sheet_an_archive_or_files(
    run: Path, place: Path, command: Command, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    said = command(verb, run, *CALLS[verb], *FEW, "--out", "sheet.png")
    assert "sheet.png: 3 images by " in said
    assert "3 steps" in said
    note = note_of((place / "sheet.png").read_bytes())
    assert note["verb"] == verb
    assert note["steps"] == 3
    command(verb, run, *CALLS[verb], *FEW, "--out", "images.npz")
    with np.load("images.npz") as archive:
        assert archive["images"].shape == (3, 8, 8)
    command(verb, run, *CALLS[verb], *FEW, "--out", "files/")
    assert len(list(Path("files").iterdir())) == 3


def test_a_box_is_a_mask(
    run: Path, place: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    words = ["inpaint", run, "--image", "image.png", *FEW]
    command(*words, "--box", "4,0,8,8", "--out", "a.npz")
    command(*words, "--mask", "mask.png", "--out", "b.npz")
    with np.load("a.npz") as a, np.load("b.npz") as b:
        assert (a["images"] == b["images"]).all()
        image = np.asarray(Image.open("image.png"))
        assert (a["images"][:, :, :4] == image[:, :4]).all()


def test_a_class_by_name(
    labelled_run: Path, place: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    words = ["edit", labelled_run, *CALLS["edit"], *FEW]
    for flag, out in (("--class", "a.npz"), ("--classes", "b.npz"), ("--label", "c.npz")):
        command(*words, flag, "7", "--out", out)
    with np.load("a.npz") as a, np.load("b.npz") as b, np.load("c.npz") as c:
        assert (a["labels"] == 7).all()
        assert (a["images"] == b["images"]).all()
        assert (a["images"] == c["images"]).all()


@pytest.mark.parametrize("out", ["noise.npz", "noise.png"])
def test_encode_states_its_error(
    run: Path, place: Path, command: Command, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(place)
    said = command("encode", run, "--image", "image.png", "--steps", "20", "--out", out)
    assert "there and back the mean error is" in said
    assert "of 255" in said
    if out.endswith("npz"):
        with np.load(out) as archive:
            assert archive["noise"].shape == (1, 1, 8, 8)
            assert archive["images"].shape == (1, 8, 8)
    else:
        with Image.open(out) as picture:
            assert is_drawn(picture)


def test_degrade_takes_the_whole_image(
    run: Path, place: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    words = ["--operator", "blur:sigma=1", "--degrade", *FEW, "--out", "a.png"]
    assert "a.png: 3 images" in command("restore", run, "--image", "image.png", *words)


BAD = {
    "no mask": (["inpaint", "--image", "image.png"], "either --mask FILE.png or --box"),
    "two masks": (
        ["inpaint", "--image", "image.png", "--mask", "mask.png", "--box", "0,0,1,1"],
        "either --mask FILE.png or --box",
    ),
    "mask of another size": (
        ["inpaint", "--image", "image.png", "--mask", "other.png"],
        "other.png is 8 x 7 pixels, and the model's images are 8 x 8",
    ),
    "empty mask": (["inpaint", "--image", "image.png", "--mask", "empty.png"], "mask is empty"),
    "full mask": (["inpaint", "--image", "image.png", "--mask", "full.png"], "the whole image"),
    "mask that is none": (["inpaint", "--image", "image.png", "--mask", "text.png"], "is broken"),
    "box of three": (["inpaint", "--image", "image.png", "--box", "1,2,3"], "give four numbers"),
    "box of words": (["inpaint", "--image", "image.png", "--box", "a,b,c,d"], "give four numbers"),
    "box outside": (
        ["inpaint", "--image", "image.png", "--box", "4,0,9,8"],
        "not inside the image",
    ),
    "empty box": (["inpaint", "--image", "image.png", "--box", "4,0,4,8"], "is empty"),
    "unknown method": (
        ["inpaint", "--image", "image.png", "--box", "4,0,8,8", "--method", "dps"],
        "no method called 'dps'",
    ),
    "no image": (["edit", "--image", "missing.png"], "missing.png does not exist"),
    "broken image": (["edit", "--image", "text.png"], "text.png is broken or no image"),
    "text": (["edit", "--image", "text.txt"], "text.txt is no image file that is read"),
    "folder": (["edit", "--image", "."], "is a folder; give one image file"),
    "strength": (["edit", "--image", "image.png", "--strength", "1.5"], "from 0 to 1, not 1.5"),
    "negative": (["edit", "--image", "image.png", "--strength", "-1"], "from 0 to 1, not -1"),
    "class of none": (["edit", "--image", "image.png", "--class", "7"], "trained without classes"),
    "no images": (["edit", "--image", "image.png", "--n", "0"], "n must be at least 1"),
    "no steps": (["edit", "--image", "image.png", "--steps", "0"], "steps must be at least 1"),
    "no seed": (["interpolate", "--from", "seed:x", "--to", "seed:1"], "'seed:x' is no seed"),
    "one end": (["interpolate", "--from", "seed:1", "--to", "seed:2", "--n", "1"], "at least 2"),
    "operator": (["restore", "--image", "image.png", "--operator", "zoom"], "no operator called"),
    "factor": (
        ["restore", "--image", "image.png", "--operator", "downsample:factor=3"],
        "must divide the image's 8 x 8",
    ),
    "sigma": (["restore", "--image", "image.png", "--operator", "blur:sigma=-1"], "more than 0"),
    "noise": (
        ["restore", "--image", "image.png", "--operator", "noise", "--noise", "-1"],
        "noise must be at least 0",
    ),
    "place": (["edit", "--image", "image.png", "--out", "a.jpg"], "write FILE.png for a grid"),
    "no such place": (["edit", "--image", "image.png", "--out", "no/a.png"], "there is no folder"),
    "encode to a folder": (["encode", "--image", "image.png", "--out", "a/"], "write FILE.npz"),
    "encode in no steps": (["encode", "--image", "image.png", "--steps", "0"], "at least 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_nothing_is_written(
    run: Path, place: Path, command: Command, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(place)
    before = sorted(place.iterdir())
    (verb, *words), sentence = BAD[case]
    out = [] if "--out" in words else ["--out", "new.png"]
    said = command(verb, run, *words, *out)
    assert sentence in said
    assert said.startswith("undiffuse: ")
    assert said.count("\n") == 1
    assert sorted(place.iterdir()) == before


# One image file


def save(place: Path, pixels: np.ndarray, **options: object) -> Path:
    Image.fromarray(pixels).save(place / "own.png", **options)
    return place / "own.png"


def test_what_is_lost_is_said(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 256, (20, 40, 3), dtype=np.uint8)
    found = read_image(save(tmp_path, wide), GREY)
    assert found.pixels.shape == GREY
    said = " | ".join(found.notes)
    assert "cropped to its middle and resized from 40 x 20 to 8 x 8 pixels" in said
    assert "its colours are lost" in said
    square = read_image(save(tmp_path, wide[:, :20]), COLOUR)
    assert square.pixels.shape == COLOUR
    assert "resized from 20 x 20 to 8 x 8" in " | ".join(square.notes)
    clear = rng.integers(0, 256, (8, 8, 4), dtype=np.uint8)
    assert "transparent pixels" in " | ".join(read_image(save(tmp_path, clear), COLOUR).notes)


def test_an_image_of_the_right_kind_stays_as_it_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (8, 8), dtype=np.uint8)
    found = read_image(save(tmp_path, grey), GREY)
    assert found.notes == ()
    assert torch.equal(found.pixels[0], torch.from_numpy(grey))
    inverted = read_image(save(tmp_path, grey), GREY, invert=True)
    assert torch.equal(inverted.pixels, 255 - found.pixels)
    in_colour = read_image(save(tmp_path, grey), COLOUR).pixels
    assert torch.equal(in_colour, found.pixels.expand(3, -1, -1))


def test_a_part_of_another_shape_is_cut_out_of_the_middle(tmp_path: Path) -> None:
    image = np.zeros((6, 12), np.uint8)
    image[:, 4:8] = 200
    found = read_image(save(tmp_path, image), (1, 6, 4))
    assert (found.pixels == 200).all()


def test_a_sheet_of_samples_is_no_image(run: Path, tmp_path: Path, command: Command) -> None:
    command("sample", run, "--n", 2, "--out", tmp_path / "sheet.png")
    with pytest.raises(UserError, match="is a sheet that undiffuse drew; give one image"):
        read_image(tmp_path / "sheet.png", GREY)
    with pytest.raises(UserError, match="is a sheet that undiffuse drew, not a mask"):
        read_mask(tmp_path / "sheet.png", GREY)


@pytest.mark.parametrize("white", [1, 255])
def test_masks_of_ones_and_of_white(tmp_path: Path, white: int) -> None:
    pixels = np.zeros((8, 8), np.uint8)
    pixels[2:4, 5:] = white
    found = read_mask(save(tmp_path, pixels), GREY)
    assert torch.equal(found, torch.from_numpy(pixels > 0))
