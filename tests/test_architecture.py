"""The shape of the house: packages in bands, imports that go down, no circle, a quick --help."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import undiffuse

BANDS = [
    {"base"},
    {"diffusion", "nets", "data"},
    {"model"},
    {"training", "measuring"},
    {"runs"},
    {"console", "report", "study", "web", "exchange", "trackers"},
    {"api", "cli", "__main__", ""},
]
BAND = {name: number for number, names in enumerate(BANDS) for name in names}
KNOWS_NOTHING_OF = {
    "diffusion": {"data", "nets"},
    "data": {"diffusion", "nets"},
    "nets": {"data"},
    "training": {"measuring"},
    "measuring": {"training"},
}
OUTSIDE = {
    "diffusers": {"nets.unet2d"},
    "tyro": {"cli", "cli.edits", "cli.output", "cli.train", "cli.verbs"},
    "safetensors": {"base.tensors"},
    "matplotlib": {
        "runs.figures",
        "report.pictures",
        "report.charts",
        "report.architecture",
        "report.side_by_side",
    },
    "typst": {"report.document"},
    "rich": {"console.live", "console.results", "console.info", "cli.output"},
}

ROOT = Path(undiffuse.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    .removesuffix("__init__")
    .rstrip("."): path
    for path in ROOT.rglob("*.py")
}


def package(module: str) -> str:
    return module.partition(".")[0]


def imports(path: Path) -> Iterator[str]:
    """The full names that a file imports, anywhere in it, under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def our_imports(path: Path) -> set[str]:
    """The package's modules that a file imports: the longest part of each name that is one."""
    found = set()
    for name in imports(path):
        parts = name.split(".")
        if parts.pop(0) == "undiffuse":
            candidates = (".".join(parts[:n]) for n in range(len(parts), -1, -1))
            found.add(next(candidate for candidate in candidates if candidate in MODULES))
    return found


IMPORTS = {module: our_imports(path) - {module} for module, path in MODULES.items()}


def test_every_module_is_in_a_band() -> None:
    assert {package(module) for module in MODULES} <= set(BAND)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_down(module: str) -> None:
    """`undiffuse` itself, for the version, may be imported by all; it imports lazily."""
    own = package(module)
    others = {package(other) for other in IMPORTS[module] if other} - {own}
    assert not {other for other in others if BAND[other] > BAND[own]}
    assert not others & KNOWS_NOTHING_OF.get(own, set())
    if own in BANDS[5]:
        assert not others & BANDS[5], "what shows a run knows nothing of other ways to show it"


def test_no_circle() -> None:
    done: list[str] = []

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, f"a circle: {' -> '.join((*above, module))}"
        if module not in done:
            for other in sorted(IMPORTS[module] - {""}):
                visit(other, (*above, module))
            done.append(module)

    for module in sorted(MODULES):
        visit(module, ())


@pytest.mark.parametrize("library", OUTSIDE)
def test_one_library_one_place(library: str) -> None:
    users = {
        module
        for module, path in MODULES.items()
        if any(name.split(".")[0] == library for name in imports(path))
    }
    assert users
    assert users <= OUTSIDE[library]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_has_one_subject(module: str) -> None:
    """At most 400 lines, functions of at most 60, lines of at most 100 columns."""
    text = MODULES[module].read_text()
    assert len(text.splitlines()) <= 400
    assert [line for line in text.splitlines() if len(line) > 100] == []
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]
    assert [f.name for f in functions if (f.end_lineno or 0) - f.lineno >= 60] == []


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, undiffuse.cli, undiffuse.training.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
