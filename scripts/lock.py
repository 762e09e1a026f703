"""Writes requirements.lock and requirements-torch.lock again, from requirements.in. It needs uv.

    pip install uv && python scripts/lock.py

Both files hold exact versions with the hashes of all files, for every system and every Python that
the project supports. requirements-torch.lock holds the package index's build of torch, which on
Linux needs the libraries of a GPU. requirements-torch-cpu.lock holds torch's CPU build. It is
written by hand, and `make setup` tries it first.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

HOME = Path(__file__).parent.parent
TORCH = re.compile(r"(torch==|nvidia-|cuda-|triton==)")
RESOLVE = [
    "uv", "pip", "compile", "requirements.in", "--universal", "--generate-hashes",
    "--python-version", "3.11", "--no-header", "--no-annotate", "--quiet",
]  # fmt: skip


def main() -> None:
    text = subprocess.run(RESOLVE, cwd=HOME, check=True, stdout=subprocess.PIPE, text=True).stdout
    parts: tuple[list[str], list[str]] = ([], [])
    for package in re.split(r"\n(?=\S)", text.strip()):
        parts[bool(TORCH.match(package))].append(package)
    for name, what, packages in (
        (
            "requirements.lock",
            "Everything in requirements.in and what it needs, without torch",
            parts[0],
        ),
        (
            "requirements-torch.lock",
            "The package index's torch, and what that needs on Linux",
            parts[1],
        ),
    ):
        (HOME / name).write_text("\n".join([f"# {what}: by scripts/lock.py.", *packages, ""]))
        print(f"{name}: {len(packages)} packages")


if __name__ == "__main__":
    main()
