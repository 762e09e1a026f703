"""The life of a run folder: trained, stopped, killed, renamed, copied, damaged, in any order.

Whatever happened to it, a run ends with the bytes of the undisturbed one, or says in one sentence
why it can't go on.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from helpers_runs import PLAIN, assert_same_run, configured, files, go_on, session
from undiffuse import api
from undiffuse.base.errors import UserError
from undiffuse.base.files import temporary_name
from undiffuse.runs.folder import Run
from undiffuse.runs.signals import Interrupted
from undiffuse.training.config import Config
from undiffuse.training.records import SessionStarted

OPTIONS = PLAIN.model_copy(update={"checkpoint_every": 1})
STEPS = 12


class Life(RuleBasedStateMachine):
    """One folder. `expected` is the same run, undisturbed."""

    config: Config
    expected: Path

    @initialize()
    def begin(self) -> None:
        self.place = Path(tempfile.mkdtemp())
        self.path = self.place / "run"
        self.names = 0

    def teardown(self) -> None:
        """Whatever happened, the same command makes the run."""
        self.train()
        shutil.rmtree(self.place)

    def train_until(self, step: int, then: object = None) -> None:
        """Train. After each record from this step on call `then`, or leave where there is none.

        Signals are the process's own business until the first record was read."""
        with session(self.config, self.path, OPTIONS) as records:
            for record in records:
                if record.step >= step:
                    if not callable(then):
                        return
                    if not isinstance(record, SessionStarted):
                        then()

    @rule(step=st.integers(0, STEPS))
    def kill(self, step: int) -> None:
        """It is gone from one moment to the next, and a line of the log was cut off."""
        self.train_until(step)
        if self.log.is_file() and not Run(self.path).finished():
            with self.log.open("ab") as file:
                file.write(b'{"event": "st')

    @rule(step=st.integers(0, STEPS), number=st.sampled_from([signal.SIGINT, signal.SIGTERM]))
    def stop(self, step: int, number: int) -> None:
        with suppress(Interrupted):
            self.train_until(step, lambda: signal.raise_signal(number))

    @rule()
    def train(self) -> None:
        go_on(self.config, self.path, OPTIONS)
        assert_same_run(self.expected, self.path)

    @rule()
    @precondition(lambda self: self.path.exists())
    def rename(self) -> None:
        self.names += 1
        self.path = self.path.rename(self.place / f"run {self.names}")

    @rule()
    @precondition(lambda self: self.path.exists())
    def copy(self) -> None:
        self.names += 1
        self.path = Path(shutil.copytree(self.path, self.place / f"run {self.names}"))

    @rule(steps=st.sampled_from([STEPS - 1, STEPS + 1]))
    @precondition(lambda self: Run(self.path).exists())
    def ask_for_something_else(self, steps: int) -> None:
        """Refused, and nothing changed."""
        before = files(self.path)
        other = self.config.model_copy(update={"steps": steps})
        with (
            pytest.raises(UserError, match=f"steps: {STEPS} there, {steps} asked"),
            session(other, self.path, OPTIONS) as records,
        ):
            next(records)
        assert files(self.path) == before

    @rule(
        name=st.sampled_from(
            ["checkpoint.safetensors", "model.safetensors", "config.json", "log.jsonl"]
        ),
        place=st.floats(0, 1),
    )
    def damage(self, name: str, place: float) -> None:
        """A byte is changed: a sentence names the file, if it is needed. Then it is put back."""
        path = self.path / name
        if not path.is_file() or not (content := path.read_bytes()):
            return
        at = int(place * (content.rfind(b"\n") - 1 if name == "log.jsonl" else len(content) - 1))
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x80]) + content[at + 1 :])
        needed = name == "checkpoint.safetensors" and not Run(self.path).finished()
        if name in ("config.json", "log.jsonl") or needed:
            with pytest.raises(UserError, match=name.replace(".", r"\.")):
                go_on(self.config, self.path, OPTIONS)
        if name == "model.safetensors":
            with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
                api.load(self.path)
        path.write_bytes(content)

    @rule(
        name=st.sampled_from(
            ["checkpoint.safetensors", "config.json", "log.jsonl", "model.safetensors"]
        )
    )
    @precondition(lambda self: self.path.exists())
    def leave_half_a_write(self, name: str) -> None:
        (self.path / temporary_name(name)).write_bytes(os.urandom(50))

    @rule()
    def load(self) -> None:
        """The model can be used at any time, if there are weights."""
        try:
            api.load(self.path)
        except UserError as error:  # it may be raised or not
            assert "no weights yet" in str(error) or "no run folder" in str(error)  # noqa: PT017

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    @invariant()
    def the_files_are_whole(self) -> None:
        run = Run(self.path)
        for path in (run.checkpoint_path, run.model_path):
            if path.is_file():
                run.load_tensors(path)


@pytest.mark.parametrize(
    "examples",
    [int(os.environ.get("EXAMPLES", "200")) // 40, pytest.param(150, marks=pytest.mark.slow)],
)
def test_whatever_happens_to_a_run_it_ends_the_same(
    tmp_path: Path, tiny: dict[str, object], examples: int
) -> None:
    Life.config = configured(**{**tiny, "quality_share": 0.0})
    Life.expected = tmp_path / "expected"
    go_on(Life.config, Life.expected, OPTIONS)
    run_state_machine_as_test(
        Life, settings=settings(max_examples=examples, stateful_step_count=12)
    )  # type: ignore[no-untyped-call]
