"""README and docs/: every example runs, every command and every test that they name exists.

Examples train for minutes and measure thousands of images. Here `undiffuse.train` and
`undiffuse.evaluate` are replaced by `small_train` and `small_evaluate` below. These are the real
functions with the example's own arguments, but for the budget (12 steps), the data (600 images of
8x8 pixels in ten classes, unless the example has its own data set) and, unless the example names a
network, a tiny network; and 120 images are measured. Everything else is as on the page.

A block that must not be run is marked ```python no-run, and the text before it says why.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import undiffuse
from conftest import write_idx

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TABLES = [name for name in undiffuse.__all__ if name.isupper()]
VERBS = (
    "train", "sample", "inpaint", "edit", "interpolate", "restore", "encode", "evaluate", "study",
    "average", "report", "info",
)  # fmt: skip
OF_THE_NETWORK = {"net", "channels", "blocks", "attention", "heads", "dropout"}
EXAMPLE = "an_example"
WRITTEN = {"study/", "mnist/", "nets/name.py"}
"""What pages name and the package does not have: a folder of a run, an example."""
BUDGETS = {"minutes", "epochs", "steps"}


def name_of(page: Path) -> str:
    return page.stem


def blocks(page: Path, *kinds: str) -> list[str]:
    """The fenced blocks of a page whose info string is one of `kinds`."""
    return [text for kind, text in BLOCK.findall(page.read_text()) if kind.strip() in kinds]


# --- Python ---


@pytest.fixture(scope="module")
def ten_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like MNIST's: 600 images of 8x8 to train on, 240 to test with, in ten classes."""
    folder = tmp_path_factory.mktemp("ten")
    for part, n, seed in (("train", 600, 0), ("t10k", 240, 1)):
        labels = np.arange(n) % 10
        images = np.random.default_rng(seed).integers(0, 60, (n, 8, 8))
        for image, label in zip(images, labels, strict=True):
            image[label % 4 : label % 4 + 4, label // 2 : label // 2 + 3] += 180
        write_idx(folder / part, images.astype(np.uint8), labels.tolist())
        for kind, d in (("images", 3), ("labels", 1)):
            file = f"{kind}-idx{d}-ubyte"
            (folder / part / file).rename(folder / f"{part}-{file}")
        (folder / part).rmdir()
    return folder


@pytest.fixture
def reader(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    tiny: dict[str, Any],
    ten_classes: Path,
    short_classifiers: None,
) -> Iterator[None]:
    """Somebody who tries the examples in an empty folder; what they add to tables goes again."""
    train, evaluate = undiffuse.train, undiffuse.evaluate

    def small_train(out: Any = None, preset: str = "fast", **fields: Any) -> Path:
        if "longer" in fields:  # it takes the other run's configuration
            return train(out, longer=fields["longer"], steps=12)
        smaller = {
            key: value
            for key, value in tiny.items()
            if key not in OF_THE_NETWORK or "net" not in fields
        }
        own = fields.get("data") in undiffuse.DATASETS and fields["data"] != "mnist"
        data = fields["data"] if own else str(ten_classes)
        asked = {key: value for key, value in fields.items() if key not in BUDGETS}
        return train(out, preset, **{**smaller, **asked, "data": data})

    def small_evaluate(run: Any, n: int = 10_000, **options: Any) -> dict[str, Any]:
        return evaluate(run, n=min(n, 120), **{**options, "bits_images": 20, "ode_images": 4})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path_factory.getbasetemp() / "docs-cache"))
    monkeypatch.setattr(undiffuse, "train", small_train)
    monkeypatch.setattr(undiffuse, "evaluate", small_evaluate)
    yield
    for functions in (getattr(undiffuse, name)._functions for name in TABLES):
        added = [key for key, made in functions.items() if made.__module__ == EXAMPLE]
        for key in added:
            del functions[key]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_examples_run(page: Path, reader: None) -> None:
    """All blocks of a page, in their order, in one namespace."""
    namespace: dict[str, Any] = {"__name__": EXAMPLE}
    for number, code in enumerate(blocks(page, "python"), start=1):
        exec(compile(code, f"{page.name}, block {number}", "exec"), namespace)  # noqa: S102


def test_there_are_examples() -> None:
    assert sum(len(blocks(page, "python")) for page in PAGES) > 15


# --- commands ---


@functools.cache
def flags_of(verb: str) -> set[str]:
    """The flags that `undiffuse VERB --help` lists."""
    command = [sys.executable, "-m", "undiffuse", verb, "--help"]
    wide = {**os.environ, "COLUMNS": "300"}
    done = subprocess.run(command, env=wide, capture_output=True, text=True, check=True)
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", done.stdout))


def commands(page: Path) -> Iterator[str]:
    """Each `undiffuse ...` line of a page's shell blocks, and each in a line of text."""
    for block in blocks(page, "", "sh"):
        joined = re.sub(r"\\?\n[ \t]+", " ", block)
        yield from re.findall(r"^(?:\.venv/bin/)?undiffuse (.*)", joined, re.MULTILINE)
    outside = BLOCK.sub("", page.read_text())
    yield from re.findall(r"`undiffuse ([^`]+)`", outside)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_have_these_verbs_and_flags(page: Path) -> None:
    for command in commands(page):
        verb, _, rest = command.partition(" ")
        if verb.isupper():  # VERB stands for any
            continue
        assert verb in VERBS, f"undiffuse {command}"
        flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest.partition(" #")[0]))
        assert flags <= flags_of(verb) | {"--help"}, f"undiffuse {command}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_has_these_targets(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    in_blocks = re.findall(r"^make ([a-z-]+)", "\n".join(blocks(page, "", "sh")), re.MULTILINE)
    in_lines = re.findall(r"`make ([a-z-]+)[^`]*`", page.read_text())
    assert {*in_blocks, *in_lines} <= targets


# --- what else a page promises ---


@functools.cache
def our_tests() -> dict[str, set[str]]:
    """The tests by file."""
    files = (ROOT / "tests").glob("test_*.py")
    return {f.name: set(re.findall(r"def (test_\w+)", f.read_text())) for f in files}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_tests_that_are_named_exist(page: Path) -> None:
    text = page.read_text()
    everywhere = set().union(*our_tests().values())
    for file in re.findall(r"`(?:tests/)?(test_\w+\.py)`", text):
        assert file in our_tests()
    for file, name in re.findall(r"`(?:tests/)?(test_\w+\.py)::(test_\w+)`", text):
        assert name in our_tests()[file], f"{file}::{name}"
    for name in re.findall(r"`(test_\w+)`", text):
        assert name in everywhere, name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_modules_that_are_named_exist(page: Path) -> None:
    places = (ROOT / "src", ROOT / "tests", ROOT / "scripts", ROOT / "benchmarks")
    ours = [str(path) for place in places for path in (place, *place.rglob("*"))]
    for file in re.findall(r"`([a-z_/0-9]+(?:\.py|/))[` ]", page.read_text()):
        end = f"/{file.rstrip('/')}"
        assert any(path.endswith(end) for path in ours) or file in WRITTEN, file


def test_the_keys_of_config_json_are_listed(run: Path) -> None:
    section = (ROOT / "docs" / "files.md").read_text().split("## config.json")[1].split("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert sorted(listed) == sorted(json.loads((run / "config.json").read_text()))


@pytest.mark.parametrize("page", PAGES[1:], ids=name_of)
def test_lines_are_at_most_100_columns(page: Path) -> None:
    lines = enumerate(page.read_text().splitlines(), start=1)
    assert not [number for number, line in lines if len(line) > 100]


def test_the_pages_build(tmp_path: Path) -> None:
    """A dead link, an unknown name, an undocumented public name are errors. No network is used."""
    for package in ("sphinx", "furo", "myst_parser", "latex2mathml"):
        pytest.importorskip(package)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-E"]
    done = subprocess.run(
        [*command, "-d", str(tmp_path / "trees"), str(ROOT / "docs"), str(tmp_path / "html")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "html" / "mathematics.html").read_text()
    assert page.count("<math") > 100
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=\"(https?:)?//", page)
