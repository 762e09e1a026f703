"""Data, paths and requests as they are in the world. Each kind of report has its right value."""

from __future__ import annotations

import gzip
import json
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

import undiffuse
from undiffuse.base.errors import UserError
from undiffuse.base.files import is_clutter
from undiffuse.data.loading import load_dataset as load
from undiffuse.data.picture import ENDINGS
from undiffuse.diffusion.conditioning import Conditioning
from undiffuse.runs.evaluation import Parts, evaluate_run
from undiffuse.runs.folder import Run
from undiffuse.training.experiment import DataFacts
from undiffuse.training.presets import make_config

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (12, 8, 8), dtype=np.uint8)
TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def idx(array: np.ndarray, code: int = 8) -> bytes:
    header = bytes((0, 0, code, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(TYPES[code]).tobytes()


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def picture(path: Path, array: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


# --- IDX ---


@pytest.mark.parametrize("code", [11, 12, 13, 14])
def test_idx_of_every_type_is_read(tmp_path: Path, code: int) -> None:
    write(tmp_path / "a" / "images", idx(GREY.astype(float), code))
    found = load(str(tmp_path / "a"))
    assert torch.equal(found.images[:, 0], torch.from_numpy(GREY))
    assert found.notes == ()


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0)])
def test_floats_are_stretched_with_a_note(tmp_path: Path, low: float, high: float) -> None:
    write(tmp_path / "images", idx(low + (high - low) * GREY / 255.0, 13))
    found = load(str(tmp_path))
    assert torch.equal(found.images[:, 0], torch.from_numpy(GREY))
    assert f"{low:g} to {high:g}" in found.notes[0]


@pytest.mark.parametrize("values", [GREY * 3.0, GREY - 300.0, GREY * np.nan])
def test_other_values_are_refused(tmp_path: Path, values: np.ndarray) -> None:
    write(tmp_path / "images", idx(values, 13))
    with pytest.raises(UserError, match="images need 0 to 255, or floats"):
        load(str(tmp_path))


def test_flat_idx_is_of_squares(tmp_path: Path) -> None:
    write(tmp_path / "a" / "train-images-idx2-ubyte", idx(GREY.reshape(12, 64)))
    assert torch.equal(load(str(tmp_path / "a")).images[:, 0], torch.from_numpy(GREY))
    write(tmp_path / "b" / "train-images-idx2-ubyte", idx(GREY.reshape(12, 64)[:, :60]))
    with pytest.raises(UserError, match="60 numbers for each image, which is no square"):
        load(str(tmp_path / "b"))


def test_qmnist_labels_have_columns(tmp_path: Path) -> None:
    labels = np.stack([np.arange(12) % 3, np.arange(12) + 500], axis=1)
    write(tmp_path / "qmnist-train-images-idx3-ubyte", idx(GREY))
    write(tmp_path / "qmnist-train-labels-idx2-int", idx(labels, 12))
    found = load(str(tmp_path))
    assert found.classes == ("0", "1", "2")
    assert found.labels.tolist() == (np.arange(12) % 3).tolist()
    assert "of its 2 columns the first is the class" in found.notes[0]


def test_emnist_is_turned_upright_and_counts_from_one(tmp_path: Path) -> None:
    for part, rows in (("train", slice(0, 8)), ("test", slice(8, 12))):
        labels = (np.arange(12)[rows] % 4 + 1).astype(np.uint8)
        named = f"emnist-letters-{part}"
        write(tmp_path / f"{named}-images-idx3-ubyte.gz", gzip.compress(idx(GREY[rows])))
        write(tmp_path / f"{named}-labels-idx1-ubyte.gz", gzip.compress(idx(labels)))
    found, test = load(str(tmp_path)), load(str(tmp_path), split="test")
    assert torch.equal(found.images[:, 0], torch.from_numpy(GREY[:8]).mT)
    assert len(test) == 4
    assert found.classes == test.classes == ("1", "2", "3", "4")
    assert any("turned upright" in note for note in found.notes)
    write(tmp_path / "emnist-digits-train-images-idx3-ubyte", idx(GREY))
    with pytest.raises(UserError, match=r"several data sets .*emnist-letters-train-images"):
        load(str(tmp_path))


def test_torchvisions_folder_is_found(tmp_path: Path) -> None:
    raw = tmp_path / "data" / "MNIST" / "raw"
    write(raw / "train-images-idx3-ubyte", idx(GREY))
    write(raw / "t10k-images-idx3-ubyte", idx(GREY[:3]))
    for above in ("data", "data/MNIST", "data/MNIST/raw"):
        assert torch.equal(load(str(tmp_path / above)).images[:, 0], torch.from_numpy(GREY))
        assert len(load(str(tmp_path / above), split="test")) == 3
    assert load(str(tmp_path / "data")).name == "MNIST"
    write(tmp_path / "data" / "KMNIST" / "raw" / "train-images-idx3-ubyte", idx(GREY))
    with pytest.raises(UserError, match=r"several folders; give one of .*KMNIST/raw, .*MNIST/raw"):
        load(str(tmp_path / "data"))


def test_files_beside_images_are_no_data(tmp_path: Path) -> None:
    for number, image in enumerate(GREY):
        picture(tmp_path / f"{number:02}.png", image)
    for name in ("subset_idx1000.txt", "class_to_idx3.json", "labels.csv", "Thumbs.db"):
        write(tmp_path / name, b"\0\0\0\1 no image")
    for name in (
        ".DS_Store",
        "._00.png",
        "__MACOSX/00.png",
        "@eaDir/00.png",
        "desktop.ini",
        "lost+found/00.png",
        "$RECYCLE.BIN/00.png",
        ".ipynb_checkpoints/00.png",
    ):
        write(tmp_path / name, b"no image")
    assert torch.equal(load(str(tmp_path)).images[:, 0], torch.from_numpy(GREY))
    assert is_clutter(tmp_path / "Thumbs.db")


# --- Folders of pictures ---


@pytest.mark.parametrize("parts", [("train", "test"), ("training", "testing"), ("Train", "val")])
def test_parts_of_a_data_set_are_no_classes(tmp_path: Path, parts: tuple[str, str]) -> None:
    for part, count in zip(parts, (8, 4), strict=True):
        for number in range(count):
            picture(tmp_path / part / str(number % 2) / f"{number}.png", GREY[number])
    found = load(str(tmp_path))
    assert (found.classes, len(found)) == (("0", "1"), 8)
    assert f"{parts[0]}/ is the training set" in found.notes[0]
    if parts[1] == "val":
        with pytest.raises(UserError, match="no test set"):
            load(str(tmp_path), split="test")
    else:
        test = load(str(tmp_path), split="test")
        assert (test.classes, test.labels.tolist()) == (("0", "1"), [0, 0, 1, 1])
        picture(tmp_path / parts[1] / "2" / "x.png", GREY[0])
        with pytest.raises(UserError, match="of the class 2, which the training images lack"):
            load(str(tmp_path), split="test")


def test_classes_that_are_numbers_are_in_their_order(tmp_path: Path) -> None:
    for number in range(12):
        picture(tmp_path / str(number) / "a.png", GREY[number])
    assert load(str(tmp_path)).classes == tuple(map(str, range(12)))


LOSSY = (".jpg", ".jpeg", ".jpe", ".jfif", ".webp")


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_kind_of_picture_is_read(tmp_path: Path, ending: str) -> None:
    shade = np.full((8, 8), 200, np.uint8)
    kind = {"format": "JPEG"} if ending in (".jfif", ".jpe") else {}
    picture(tmp_path / f"a{ending}", shade, **kind)
    picture(tmp_path / "b.png", shade)
    found = load(str(tmp_path)).images.int()
    assert found.shape == (2, 1, 8, 8)
    assert (found[0] - found[1]).abs().max() <= (2 if ending in LOSSY else 0)


def test_pictures_that_are_not_read_are_counted(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", GREY[0])
    for name in ("b.heic", "c.HEIC", "d.svg"):
        write(tmp_path / name, b"?")
    assert load(str(tmp_path)).notes == (
        "passed over: 2 .heic, 1 .svg; convert them to PNG or JPEG to train on them too",
    )


def test_an_animation_gives_its_first_picture(tmp_path: Path) -> None:
    first, *rest = (Image.fromarray(image) for image in GREY[:3])
    first.save(tmp_path / "a.png", save_all=True, append_images=rest)
    assert torch.equal(load(str(tmp_path)).images[0, 0], torch.from_numpy(GREY[0]))


@pytest.mark.parametrize("stored", ["RGB", "P"])
def test_grey_pictures_stored_in_colour_are_grey(tmp_path: Path, stored: str) -> None:
    for number, image in enumerate(GREY):
        Image.fromarray(image).convert(stored).save(tmp_path / f"{number:02}.png")
    found = load(str(tmp_path))
    assert torch.equal(found.images[:, 0], torch.from_numpy(GREY))
    assert "read as grey" in found.notes[0]


@pytest.mark.parametrize(("ink", "ground"), [(0, 255), (40, 255), (200, 0)])
def test_a_drawing_on_nothing_stays_visible(tmp_path: Path, ink: int, ground: int) -> None:
    drawn = np.where(GREY[0] > 128, 255, 0).astype(np.uint8)
    rgba = np.dstack([np.full((8, 8, 3), ink, np.uint8), drawn])
    picture(tmp_path / "a.png", rgba)
    found = load(str(tmp_path))
    expected = torch.from_numpy(np.where(drawn > 0, ink, ground))
    assert torch.equal(found.images[0, 0].int(), expected.int())
    assert f"lie on {'white' if ground else 'black'}" in found.notes[0]
    black = load(str(tmp_path), background="black") if ink else None
    assert black is None or black.images[0, 0].max() == ink
    white = load(str(tmp_path), background="white").images[0, 0]
    assert set(white.unique().tolist()) == {ink, 255}


@pytest.mark.parametrize("kind", ["idx", "png", "resized"])
def test_images_of_0_and_1_are_black_and_white(tmp_path: Path, kind: str) -> None:
    masks = (GREY > 128).astype(np.uint8)
    if kind == "idx":
        write(tmp_path / "images", idx(masks))
    else:
        for number, mask in enumerate(masks):
            picture(tmp_path / f"{number:02}.png", mask)
    found = load(str(tmp_path), size=4 if kind == "resized" else None)
    if kind == "resized":
        assert found.images.max() > 200
    else:
        assert torch.equal(found.images[:, 0], torch.from_numpy(masks * np.uint8(255)))
    assert "0 or 1, which are read as black and white" in found.notes[0]


@pytest.mark.parametrize("ending", ["png", "tif", "gif", "webp"])
def test_of_several_pictures_in_a_file_the_first_is_read_and_it_is_said(
    tmp_path: Path, ending: str
) -> None:
    first, second = (np.kron(image, np.ones((2, 2), np.uint8)) for image in GREY[:2])
    lossless = {"lossless": True} if ending == "webp" else {}
    picture(
        tmp_path / f"0.{ending}", first, save_all=True, append_images=[Image.fromarray(second)],
        **lossless,
    )  # fmt: skip
    picture(tmp_path / f"1.{ending}", second, **lossless)
    found = load(str(tmp_path))
    assert torch.equal(found.images[:, 0], torch.from_numpy(np.stack([first, second])))
    assert "1 of 2 files hold several pictures" in found.notes[0]


def test_each_note_is_given_once(tmp_path: Path) -> None:
    """Images of 0 and 1 are read twice: they are known as such at the end only."""
    for number, mask in enumerate((GREY > 128).astype(np.uint8)):
        clear = np.where(GREY[0] > 50, 255, 0).astype(np.uint8)
        picture(tmp_path / f"{number:02}.png", np.dstack([mask, clear]))
    notes = load(str(tmp_path), background="black").notes
    assert len(notes) == len({note.split(":")[0] for note in notes}) == 2


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (np.zeros((8, 8), np.uint8), "all its images are black"),
        ((GREY[0] % 10).astype(np.uint8), "no pixel is brighter than 9 of 255"),
        (GREY[0].astype(np.uint16), r"brighter than \d+ of 65,535"),
    ],
)
def test_images_that_look_black_are_refused(tmp_path: Path, pixels: np.ndarray, said: str) -> None:
    picture(tmp_path / "a.png", pixels)
    with pytest.raises(UserError, match=said):
        load(str(tmp_path))


def test_sixteen_bits_with_alpha(tmp_path: Path) -> None:
    """Written byte by byte: grey and alpha, 16 bits each."""
    grey = RNG.integers(0, 65536, (8, 8), dtype=np.uint16)
    alpha = np.where(grey % 3 == 0, 0, 65535).astype(np.uint16)
    rows = np.stack([grey, alpha], axis=2).astype(">u2")
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    chunks = [
        b"IHDR" + struct.pack(">IIBBBBB", 8, 8, 16, 4, 0, 0, 0),
        b"IDAT" + zlib.compress(body),
        b"IEND",
    ]
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks
    )
    write(tmp_path / "a.png", content)
    found = load(str(tmp_path), background="black").images[0, 0].numpy().astype(float)
    assert np.abs(found - np.where(alpha > 0, grey / 257, 0)).max() <= 1


def test_long_texts_do_not_break_a_picture(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * 2_000_000, zip=True)
    picture(tmp_path / "a.png", GREY[0], pnginfo=info)
    picture(tmp_path / "b.png", GREY[1], icc_profile=b"p" * 2_000_000)
    picture(tmp_path / "c.png", GREY[2], exif=b"Exif\0\0This is no EXIF")
    assert torch.equal(load(str(tmp_path)).images[:, 0], torch.from_numpy(GREY[:3]))


def test_names_that_are_not_utf_8_are_escaped(tmp_path: Path) -> None:
    folder = bytes(tmp_path) + b"/imgs"
    for name in (b"caf\xe9", b"tee"):
        place = Path((folder + b"/" + name).decode("utf-8", "surrogateescape"))
        picture(place / "a.png", GREY[0])
    assert load(str(tmp_path / "imgs")).classes == ("caf\\xe9", "tee")


# --- Runs, wherever they lie ---


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for number in range(40):
        image = RNG.integers(0, 256, (8, 8), dtype=np.uint8)
        picture(tmp_path / "imgs" / f"{number:02}.png", image)
    return tmp_path / "imgs"


@pytest.fixture
def small(tiny: dict[str, Any], pictures: Path) -> dict[str, Any]:
    return {**tiny, "data": str(pictures), "steps": 4}


@pytest.mark.parametrize("where", ["imgs/run", ".", "imgs/deep/run"])
def test_a_run_may_lie_inside_or_above_its_data(
    tmp_path: Path, small: dict[str, Any], where: str
) -> None:
    first = Run(undiffuse.train(tmp_path / where, **small))
    assert first.about().facts.training == 38
    assert len(load(small["data"])) == 40  # what was written is not read back
    undiffuse.train(tmp_path / where, **small)
    other = undiffuse.train(tmp_path.parent / f"{tmp_path.name}-other", **small)
    assert (first.model_path).read_bytes() == Run(other).model_path.read_bytes()


def test_sheets_are_not_read_back_as_data(
    tmp_path: Path, small: dict[str, Any], pictures: Path
) -> None:
    run = undiffuse.train(tmp_path / "run", **small)
    shutil.copy(run / "samples" / "step_000004.png", pictures / "zz.png")
    request = undiffuse.load(run).request(4)
    from undiffuse.runs.destinations import destination, save_images  # as the command does

    images = torch.cat(list(request.batches()))
    save_images(destination(str(pictures / "sheet.png")), images, None, (), request.note)
    (pictures / "zz.png").unlink()
    found = load(str(pictures))
    assert len(found) == 40
    assert found.notes == ("passed over: 1 pictures that undiffuse drew",)


def test_data_that_moved_are_the_same_data(
    tmp_path: Path, small: dict[str, Any], pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Run(undiffuse.train("run", **{**small, "data": "imgs"}))
    assert run.data_place() == str(pictures)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    moved = Run(tmp_path / "run")
    assert Path(moved.data_place()) == pictures
    undiffuse.train(moved.path, **{**small, "data": str(pictures)})
    pictures.rename(tmp_path / "photos")
    with pytest.raises(UserError, match=r"not in .*imgs any more; give data=FOLDER"):
        moved.data_place()
    undiffuse.train(moved.path, **{**small, "data": str(tmp_path / "photos")})
    assert moved.data_place() == str(tmp_path / "photos")
    both = tmp_path / "together"
    both.mkdir()
    (tmp_path / "photos").rename(both / "photos")
    moved.path.rename(both / "run")
    assert Path(Run(both / "run").data_place()).resolve() == both / "photos"
    picture(both / "photos" / "00.png", GREY[0])
    with pytest.raises(UserError, match="other"):
        undiffuse.train(both / "run", **{**small, "data": str(both / "photos")})


@pytest.mark.parametrize("names", [12_000, 3])
def test_what_create_writes_about_reads(tmp_path: Path, names: int) -> None:
    classes = tuple(f"人物{number:05}" + "名" * 12 for number in range(names))
    facts = DataFacts("d", (1, 8, 65_535), classes, 24_000, 1000, "0" * 64)
    config = make_config(steps=1, conditional=True, clusters=0)
    run = Run(tmp_path / "run")
    run.create(config, facts, Conditioning(classes), None)
    assert run.about().facts == facts


@given(
    st.lists(st.text(min_size=1, max_size=9), min_size=1, max_size=5, unique=True),
    st.tuples(*[st.integers(1, 70_000)] * 3),
    st.integers(0, 10**12),
)
def test_what_create_takes_about_reads(
    names: list[str], shape: tuple[int, int, int], training: int
) -> None:
    """Of any facts: they are read as they were written, or nothing is written."""
    facts = DataFacts(names[0], shape, tuple(names), training, 0, "0" * 64)
    config = make_config(steps=1, conditional=True, clusters=0)
    with tempfile.TemporaryDirectory() as place:
        run = Run(Path(place, "run"))
        try:
            run.create(config, facts, Conditioning(tuple(names)), None)
        except UserError:
            assert not run.path.exists()
        else:
            assert run.about().facts == facts


# --- Requests ---


def test_a_folder_is_overwritten_and_other_files_stay(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from undiffuse import cli

    def sample(*arguments: object) -> None:
        line = ["undiffuse", "sample", run, "--out", f"{tmp_path}/drawn/", *arguments]
        monkeypatch.setattr("sys.argv", list(map(str, line)))
        cli.main()

    sample("--n", 5)
    write(tmp_path / "drawn" / "notes.txt", b"mine")
    picture(tmp_path / "drawn" / "mine.png", GREY[0])
    with pytest.raises(SystemExit):
        sample("--n", 2)
    sample("--n", 2, "--overwrite")
    names = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert [name[:5] for name in names[:2]] == ["00000", "00001"]
    assert names[2:] == ["mine.png", "notes.txt"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["sample", "{run}", "--n", "2", "--classes"], "--classes needs at least one class"),
        (["sample", "{run}", "--label", "--n", "2"], "--classes needs at least one class"),
        (["info", "{run}/config.json"], "config.json is a file; give a run folder"),
        (["train", "--data", "{run}/config.json"], "config.json' is a file; give the folder"),
        (["train", "--steps", "1", "--out", "{link}"], "is a link to nowhere, which does not"),
    ],
)
def test_what_is_not_what_was_meant_is_refused_with_the_remedy(
    run: Path, tmp_path: Path, asked: list[str], said: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from undiffuse import cli

    link = tmp_path / "link"
    link.symlink_to("nowhere")
    words = [word.format(run=run, link=link) for word in asked]
    monkeypatch.setattr("sys.argv", ["undiffuse", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_class_called_none_is_a_class(
    tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from undiffuse import cli

    for name in ("None", "other"):
        for number, image in enumerate(GREY):
            picture(tmp_path / "data" / name / f"{number}.png", image)
    fields = {**tiny, "data": str(tmp_path / "data"), "steps": 1, "snapshots": 2}
    run = undiffuse.train(tmp_path / "run", **fields, conditional=True)
    words = ["sample", str(run), "--n", "2", "--classes", "None", "--out", f"{tmp_path}/drawn/"]
    monkeypatch.setattr("sys.argv", ["undiffuse", *words])
    cli.main()
    drawn = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert drawn == ["00000_None.png", "00001_None.png"]


def test_info_in_a_pipe_is_whole(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from undiffuse import cli

    monkeypatch.setattr("sys.argv", ["undiffuse", "info", str(run)])
    for columns in ("80", "20", "1", "0"):
        monkeypatch.setenv("COLUMNS", columns)
        cli.main()
        shown = capsys.readouterr().out
        about = Run(run).about()
        assert "…" not in shown
        for value in (str(run), about.config.times, about.reasons["times"]):
            assert value in shown
    monkeypatch.setattr("sys.argv", ["undiffuse", "info", str(run), "--json"])
    cli.main()
    found = json.loads(capsys.readouterr().out)
    assert found["config"] == about.config.model_dump(mode="json")
    assert found["state"] == "finished"
    assert found["hyperparameters"]["times"]["why"] == about.reasons["times"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--classes", "0", "--classes", "1"], "--classes is given twice"),
        (["--label", "0", "--classes=1"], "--classes is given twice"),
        (["--n=3", "--n", "4"], "--n is given twice"),
    ],
)
def test_a_flag_given_twice_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], said: str,
) -> None:  # fmt: skip
    from undiffuse import cli

    monkeypatch.setattr("sys.argv", ["undiffuse", "sample", str(run), *arguments])
    with pytest.raises(SystemExit):
        cli.main()
    assert said in capsys.readouterr().err


def test_a_flag_that_swallowed_the_run_says_so(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from undiffuse import cli

    monkeypatch.chdir(run.parent)
    monkeypatch.setattr("sys.argv", ["undiffuse", "sample", "--label", "a", run.name, "--n", "2"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "give the run folder first" in capsys.readouterr().err


@pytest.mark.parametrize("guidance", [1e39, 1e300, -1, float("nan"), float("inf")])
def test_guidance_that_overflows_is_refused(run: Path, guidance: float) -> None:
    with pytest.raises(UserError, match="guidance must be from 0 to 1,000,000"):
        undiffuse.load(run).request(1, guidance=guidance)


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("n", np.int64(3), True), ("n", 3.0, True), ("n", "3", False), ("n", True, False),
        ("seed", np.uint8(3), True), ("seed", torch.tensor(3), True), ("seed", "x", False),
        ("steps", np.int64(2), True), ("steps", 2.5, False), ("steps", "5", False),
        ("guidance", np.float32(1), True), ("guidance", "2", False),
        ("batch_size", 2.0, True), ("batch_size", None, False),
    ],
)  # fmt: skip
def test_numbers_of_every_type(run: Path, name: str, value: Any, accepted: bool) -> None:
    model = undiffuse.load(run)
    given = {"n": 2, name: value}
    if accepted:
        assert model.request(**given).n >= 1
    else:
        with pytest.raises(UserError, match=f"{name} must be a"):
            model.request(**given)


@pytest.mark.parametrize("kind", [str, Path])
def test_paths_of_every_type_and_the_home_folder(
    tmp_path: Path, small: dict[str, Any], kind: Callable[[Any], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    run = undiffuse.train(kind("~/run"), **{**small, "data": kind("~/imgs")})
    assert Path(run) == tmp_path / "run"
    assert undiffuse.sample(kind("~/run"), 2).shape == (2, 8, 8)
    assert not (tmp_path / "~").exists()


def test_a_user_without_a_home_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    with pytest.raises(UserError, match="no home folder here; give the whole path"):
        undiffuse.load("~/run")


def test_evaluate_takes_data_that_moved(
    tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(1).integers(0, 256, (2100, 8, 8), dtype=np.uint8)
    write(tmp_path / "old" / "images", idx(images))
    run = undiffuse.train(tmp_path / "run", **{**tiny, "data": str(tmp_path / "old"), "steps": 2})
    (tmp_path / "old").rename(tmp_path / "new")
    parts = Parts(quality=False, likelihood=False)
    with pytest.raises(UserError, match="give data=FOLDER"):
        evaluate_run(run, 100, parts=parts)
    found = evaluate_run(run, 100, parts=parts, data=str(tmp_path / "new"))
    assert found["novelty"]["n"] == 100
