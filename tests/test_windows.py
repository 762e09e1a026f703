"""What Windows does otherwise, as far as it can be tried on another system."""

from __future__ import annotations

import ast
import ntpath
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import undiffuse
from undiffuse.base.files import safe_name, sync_folder
from undiffuse.runs import lock, places

SOURCE = Path(undiffuse.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
NOT_THERE = {
    "fcntl", "grp", "pwd", "resource", "termios", "tty", "pty",  # modules
    "fork", "getuid", "geteuid", "getgid", "getpgid", "killpg", "mkfifo", "register_at_fork",
    "sched_getaffinity", "setsid", "statvfs", "uname", "fchmod", "O_DIRECTORY", "O_NONBLOCK",
    "O_CLOEXEC", "O_NOFOLLOW", "SIGHUP", "SIGKILL", "SIGUSR1", "SIGSTOP", "SIGALRM", "alarm",
}  # fmt: skip
"""Modules, and names of `os` and `signal`, that Windows lacks."""


def opens_text_without_encoding(call: ast.Call) -> bool:
    """Whether a call opens a text file in the encoding of the locale."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    binary = any("b" in str(a.value) for a in call.args if isinstance(a, ast.Constant))
    text = name in ("read_text", "write_text") or (name == "open" and not binary)
    owner = ast.unparse(call.func).partition(".")[0]  # the others here open no text
    return (
        text
        and owner not in ("os", "Image", "archive")
        and "encoding" not in {keyword.arg for keyword in call.keywords}
    )


def test_text_files_name_their_encoding() -> None:
    """Otherwise it is that of the locale, cp1252, which lacks most letters."""
    planted = ("x.read_text()", "open(x)", "x.open('w')")
    for line in planted:
        assert opens_text_without_encoding(ast.parse(line).body[0].value)  # type: ignore[attr-defined]
    found = [
        f"{path.relative_to(SOURCE)}, line {node.lineno}: {ast.unparse(node)}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and opens_text_without_encoding(node)
    ]
    assert found == []


def test_what_windows_lacks_is_used_in_one_file() -> None:
    found = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.attr] if isinstance(node, ast.Attribute) else []
            found |= {(path.name, name) for name in names if name in NOT_THERE}
    assert found == {("lock.py", "fcntl")}


def test_a_disk_that_cannot_be_locked_or_synced_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert lock.lock_folder(tmp_path) is None
    monkeypatch.undo()
    monkeypatch.setattr(os, "name", "nt")
    monkeypatch.setattr(os, "open", None)
    sync_folder(tmp_path)


@pytest.mark.parametrize(
    ("data", "run", "found"),
    [
        ("C:\\data\\cats", "C:\\runs\\a", ("C:\\data\\cats", "..\\..\\data\\cats")),
        ("D:\\cats", "C:\\runs\\a", ("D:\\cats",)),
        ("\\\\server\\share\\cats", "C:\\runs\\a", ("\\\\server\\share\\cats",)),
    ],
)
def test_places_of_data_on_drives(
    data: str, run: str, found: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places.os, "path", ntpath)
    assert places.places_of(data, Path(run)) == found


@given(st.text(min_size=1, max_size=80))
def test_class_names_make_names_of_files(name: str) -> None:
    file = f"00012_{safe_name(name)}.png"
    assert not set(file) & set('<>:"/\\|?*') and file.isprintable()  # noqa: PT018
    assert len(file.encode()) <= 255
    assert ntpath.basename(file) == file
