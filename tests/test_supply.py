"""What is installed and what is built: exact, hashed, and the same twice."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distributions
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import undiffuse

HOME = Path(__file__).parent.parent
LOCKS = ("requirements.lock", "requirements-torch.lock", "requirements-torch-cpu.lock")
PROJECT = tomllib.loads((HOME / "pyproject.toml").read_text())


def pinned(lock: str) -> dict[str, list[tuple[Requirement, int]]]:
    """name -> its requirements, one for each range of Pythons, and the number of hashes of each."""
    found: dict[str, list[tuple[Requirement, int]]] = {}
    for package in re.split(r"\n(?=\S)", (HOME / lock).read_text().strip()):
        if package.startswith("#"):
            continue
        requirement, *hashes = package.split(" \\\n")
        assert all(re.fullmatch(r" +--hash=sha256:[0-9a-f]{64}", line) for line in hashes)
        parsed = Requirement(requirement)
        found.setdefault(canonicalize_name(parsed.name), []).append((parsed, len(hashes)))
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_is_pinned_to_one_version_and_its_hashes(lock: str) -> None:
    for name, requirements in pinned(lock).items():
        for requirement, hashes in requirements:
            assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), name
            assert hashes, name


def test_torch_is_the_same_version_wherever_it_comes_from() -> None:
    ((of_index, _),), ((of_cpu, _),) = (pinned(lock)["torch"] for lock in LOCKS[1:])
    assert str(of_cpu.specifier) == f"{of_index.specifier}+cpu"


def test_the_locks_hold_what_the_project_asks_for() -> None:
    locked = {name: found for lock in LOCKS[:2] for name, found in pinned(lock).items()}
    project = PROJECT["project"]
    extras = project["optional-dependencies"].values()
    asked = [
        *project["dependencies"],
        *chain.from_iterable(extras),
        *PROJECT["build-system"]["requires"],
    ]
    named = [
        line
        for line in (HOME / "requirements.in").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    for requirement in map(Requirement, [*asked, *named]):
        for found, _ in locked[canonicalize_name(requirement.name)]:
            assert str(found.specifier).removeprefix("==") in requirement.specifier
    assert {Requirement(line).name for line in asked} <= {Requirement(line).name for line in named}


def test_what_is_installed_here_is_what_the_locks_say() -> None:
    if Path(sys.prefix) != HOME / ".venv" or not (HOME / ".venv" / ".ready").is_file():
        pytest.skip("not in the environment that `make` sets up")
    locked: dict[str, set[str]] = {}
    for lock in LOCKS:
        for name, requirements in pinned(lock).items():
            here = {
                str(found.specifier)
                for found, _ in requirements
                if not found.marker or found.marker.evaluate()
            }
            locked[name] = locked.get(name, set()) | here
    installed = {
        canonicalize_name(found.metadata["Name"]): f"=={found.version}" for found in distributions()
    }
    assert {
        name: version
        for name, version in installed.items()
        if version not in locked.get(name, {version})
    } == {}


def test_the_wheel_is_the_same_to_the_byte_wherever_and_whenever_it_is_built(
    tmp_path: Path,
) -> None:
    wheels = []
    for number in range(2):
        place = tmp_path / str(number) / ("in/a/deep/folder" if number else "here")
        place.mkdir(parents=True)
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(HOME / name, place)
        shutil.copytree(HOME / "src", place / "src", ignore=shutil.ignore_patterns("__pycache__"))
        for path in place.rglob("*"):
            os.utime(path, (10**9, 10**9 + number * 10**6))
            if path.is_file():
                path.chmod((0o644, 0o600)[number])
        build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
        subprocess.run(build, cwd=place, check=True, capture_output=True)
        (wheel,) = (place / "dist").iterdir()
        wheels.append((wheel.name, wheel.read_bytes()))
    assert wheels[0] == wheels[1]


def test_the_packages_work_in_an_empty_environment(tmp_path: Path) -> None:
    """Built, installed beside nothing but what it depends on, and used from an empty folder.

    The source package is installed. What it installs is what the wheel holds."""
    for target in ("wheel", "sdist"):
        build = [sys.executable, "-m", "hatchling", "build", "--target", target]
        subprocess.run([*build, "--directory", tmp_path], cwd=HOME, check=True, capture_output=True)
    (wheel,), (package,) = tmp_path.glob("undiffuse-*.whl"), tmp_path.glob("undiffuse-*.tar.gz")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "empty"], check=True)
    (site,) = (tmp_path / "empty" / "lib").glob("python*/site-packages")
    # What the package depends on is found where it is installed here, but not the package itself.
    (site / "dependencies.pth").write_text(f"{Path(pytest.__file__).parent.parent}\n")
    python = tmp_path / "empty" / "bin" / "python"
    quiet = ["--quiet", "--disable-pip-version-check"]
    install = [python, "-m", "pip", "install", *quiet, "--no-deps", "--no-index"]
    done = subprocess.run(
        [*install, "--no-build-isolation", package], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist() if "dist-info" not in name}
    assert len(held) > 100
    assert {name for name in held if (site / name).read_bytes() != held[name]} == set()
    here = tmp_path / "here"
    here.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*arguments: str) -> str:
        command = [python, *arguments]
        found = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
        assert found.returncode == 0, found.stderr
        return found.stdout.strip()

    where = run("-c", "import undiffuse; print(undiffuse.__file__)")
    assert Path(where).is_relative_to(site)
    assert run("-m", "undiffuse", "--version") == f"undiffuse {undiffuse.__version__}"
    tiny = "--steps 2 --subset 60 --channels 8 16 --batch-size 4 --snapshots 2 --snapshot-images 2"
    run("-m", "undiffuse", "train", *tiny.split(), "--compile", "off", "--out", "run")
    run("-m", "undiffuse", "sample", "run", "--n", "2")
    assert (here / "run" / "samples.png").is_file()
