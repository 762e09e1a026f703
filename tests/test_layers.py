"""The shape of the house: imports go strictly down, one outside library lives in one file, and --help is quick."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import undiffuse

LEVELS = [
    ["errors", "layers", "machine"],
    ["registry", "rng", "files"],
    ["schedule", "process", "clock", "metrics", "optimizers", "nets"],  # nets is the table; its networks come higher
    ["denoiser", "data", "images", "groups", "log", "nets.unet"],
    ["objective", "sampling", "features", "likelihood", "novelty", "nets.*"],
    ["config"],
    ["run"],
    ["export", "figures", "training", "report.blocks"],
    ["session"],
    ["study"],
    ["api", "console", "plan", "study.samplers", "study.trainings"],
    ["evaluation", "report.document", "report.notebook"],
    ["report.content"],
    ["report.pictures"],
    ["report"],
    ["cli"],
    ["__main__"],
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
OUTSIDE = {
    "diffusers": {"nets.unet2d"},
    "tyro": {"cli"},
    "safetensors": {"files"},
    "matplotlib": {"figures", "report.pictures"},
    "typst": {"report.document"},
    "rich": {"console", "cli"},
    "pydantic": {"config", "log", "run", "cli"},
}
HELP = ["cli", "config"]  # what `undiffuse --help` imports, with what these import at the top

ROOT = Path(undiffuse.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}
PACKAGE = MODULES.pop("__init__")  # `import undiffuse`, for its __version__, is free to all


def family(module: str) -> str:
    """The module's name in LEVELS."""
    package, dot, _ = module.partition(".")
    named = {name for names in LEVELS for name in names}
    return f"{package}.*" if dot and module not in named else module


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(node: ast.AST, *, types: bool = False, functions: bool = True) -> Iterator[str]:
    """Full names that a file imports; `types`: also those under TYPE_CHECKING; `functions`: also inside functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif is_type_checking(child) and not types:
            yield from (name for other in child.orelse for name in imports(other, types=types, functions=functions))
        elif functions or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imports(child, types=types, functions=functions)


def our_imports(path: Path, **which: bool) -> set[str]:
    """The package's modules that a file imports: the longest part of each name that is one."""
    found = set()
    for name in imports(ast.parse(path.read_text()), **which):
        parts = name.split(".")
        if parts.pop(0) == "undiffuse":
            candidates = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
            found |= {next((candidate for candidate in candidates if candidate in MODULES), "")} - {""}
    return found


def test_every_module_has_a_level() -> None:
    assert {family(module) for module in MODULES} == set(LEVEL)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_down(module: str) -> None:
    upward = {other for other in our_imports(MODULES[module]) if LEVEL[family(other)] >= LEVEL[family(module)]}
    assert not upward


def test_the_package_imports_only_the_ground() -> None:
    assert {LEVEL[family(other)] for other in our_imports(PACKAGE)} <= {0}


@pytest.mark.parametrize("library", OUTSIDE)
def test_one_library_one_file(library: str) -> None:
    users = {
        module
        for module, path in MODULES.items()
        if any(name.split(".")[0] == library for name in imports(ast.parse(path.read_text()), types=True))
    }
    assert users
    assert users <= OUTSIDE[library]


def test_help_does_not_wait_for_torch() -> None:
    needed, new = set(), set(HELP)
    while new:
        needed |= new
        new = {other for module in new for other in our_imports(MODULES[module], functions=False)} - needed
    assert {"sampling", "objective", "nets"} <= needed
    for module in needed:
        tops = {name.split(".")[0] for name in imports(ast.parse(MODULES[module].read_text()), functions=False)}
        assert not tops & {"torch", "numpy", "diffusers", "matplotlib", "safetensors", "PIL"}, module
    code = "import sys, undiffuse.cli, undiffuse.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
