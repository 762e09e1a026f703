"""`make torture`, in short."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "torture.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_run_that_is_killed_again_and_again_ends_the_same() -> None:
    command = [sys.executable, str(SCRIPT), "--kills", "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    kills, writing, _ = map(int, re.findall(r"\d+", done.stdout))
    assert kills >= 20
    assert writing >= 3
