"""Image files: values, negatives, names without an ending, and Pillow's settings of the caller."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from undiffuse.base.errors import UserError
from undiffuse.data.loading import load_dataset

GREY = np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8)


def bytes_of(picture: np.ndarray, kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
def test_floats_of_a_set_have_one_scale(tmp_path: Path, low: float, high: float) -> None:
    """The first picture is dark: by its own range it would become another picture."""
    pixels = GREY.copy()
    pixels[0] //= 8
    for number, image in enumerate(pixels):
        values = (low + (high - low) * image / 255).astype(np.float32)
        Image.fromarray(values).save(tmp_path / f"{number}.tif")
    found = load_dataset(str(tmp_path))
    assert torch.equal(found.images[:, 0], torch.from_numpy(pixels))
    said = f"{tmp_path}: the values {low:g} to {high:g} are read as 0 to 255"
    assert list(found.notes) == ([said] if high == 1 else [])


def test_floats_beyond_the_range_of_images_are_refused(tmp_path: Path) -> None:
    for number, top in enumerate((1.0, 200.0, 4000.0)):
        Image.fromarray(np.full((8, 8), top, np.float32)).save(tmp_path / f"{number}.tif")
    with pytest.raises(UserError, match="values from 4000 to 4000"):
        load_dataset(str(tmp_path))


@pytest.mark.parametrize("bits", [8, 16])
def test_tiff_with_white_as_0_is_no_negative(tmp_path: Path, bits: int) -> None:
    for number, image in enumerate(GREY):
        stored = 255 - image if bits == 8 else (65535 - 257 * image.astype(int)).astype(np.uint16)
        content = bytearray(bytes_of(stored, "TIFF"))
        tag = content.index(b"\x06\x01\x03\x00")  # 262, PhotometricInterpretation, a short
        assert content[tag + 8] == 1  # BlackIsZero
        content[tag + 8] = 0
        (tmp_path / f"{number}.tif").write_bytes(content)
    found = load_dataset(str(tmp_path))
    assert torch.equal(found.images[:, 0], torch.from_numpy(GREY))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "JPEG", "WEBP"])
def test_pictures_without_an_ending_are_read(tmp_path: Path, kind: str) -> None:
    flat = np.full((8, 8), 200, np.uint8)
    (tmp_path / "b").write_bytes(bytes_of(flat, kind))
    (tmp_path / "a.png").write_bytes(bytes_of(GREY[0], "PNG"))
    (tmp_path / "README").write_text("BMW and GIFs: no pictures")
    found = load_dataset(str(tmp_path))
    assert len(found) == 2
    assert found.images[1].float().mean() == pytest.approx(200, abs=2)
    assert "read: 1 without ending, 1 .png" in found.notes


def test_pillows_settings_of_the_caller_do_not_reach_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bytes_of(GREY[0], "PNG")
    (tmp_path / "whole.png").write_bytes(whole)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert len(load_dataset(str(tmp_path))) == 1
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"half\.png is broken or no image"):
        load_dataset(str(tmp_path))
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == (10, True)


def test_all_broken_pictures_are_named_at_once(tmp_path: Path) -> None:
    for number in range(14):
        content = bytes_of(GREY[0], "PNG")
        (tmp_path / f"{number:02}.png").write_bytes(content[:40] if number % 7 else content)
    with pytest.raises(UserError) as caught:
        load_dataset(str(tmp_path))
    said = str(caught.value)
    assert said.startswith(f"12 files in {tmp_path} are broken or no images; fix or remove them: ")
    assert all(f"{number:02}.png" in said for number in (1, 2, 3, 4, 5, 6, 8, 9, 10, 11))
    assert said.endswith(" and 2 more")


def test_folders_without_pictures_and_tables_of_classes_are_named(tmp_path: Path) -> None:
    for name in ("flat", "deep/cats", "deep/dogs", "deep/birds"):
        (tmp_path / name).mkdir(parents=True)
    for place in ("flat/0.png", "deep/cats/0.png", "deep/dogs/0.png"):
        (tmp_path / place).write_bytes(bytes_of(GREY[0], "PNG"))
    (tmp_path / "flat" / "labels.csv").write_text("file,label\n0.png,cat\n")
    assert "labels.csv is not read" in load_dataset(str(tmp_path / "flat")).notes[0]
    assert load_dataset(str(tmp_path / "deep")).notes == ("without pictures, so no classes: birds",)


def test_a_folder_with_the_name_of_a_data_set_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_dataset("mnist", split="test").notes == ()
    Path("mnist").mkdir()
    (said,) = load_dataset("mnist", split="test").notes
    assert said.endswith("for the folder here write ./mnist")
