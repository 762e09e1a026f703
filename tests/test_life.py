"""The life of a run folder: trained, stopped, killed, renamed, copied, damaged, asked for something else, in any order.

Whatever happened to it, a run ends with the bytes of the undisturbed one, or says in one sentence why it can't go on.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from contextlib import closing, suppress
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
from undiffuse.training.events import Event

from test_session import assert_same_run, files
from undiffuse import api
from undiffuse.base.errors import UserError
from undiffuse.runs.folder import Run
from undiffuse.runs.session import train_session
from undiffuse.runs.signals import Stopped
from undiffuse.training.config import Config
from undiffuse.training.presets import make_config

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

    def events_until(self, step: int, then: object = None) -> None:
        """Train; after each event from this step on call `then`, or leave without a word if there is none."""
        with closing(train_session(self.config, self.path)) as events:
            for event in events:
                if isinstance(event, Event) and event.step >= step:
                    if not callable(then):
                        return
                    then()

    @rule(step=st.integers(0, STEPS))
    def kill(self, step: int) -> None:
        """It is gone from one moment to the next, and a line of the log was cut off."""
        self.events_until(step)
        if self.log.is_file() and not Run(self.path).finished():
            with self.log.open("ab") as file:
                file.write(b'{"event": "st')

    @rule(step=st.integers(0, STEPS), number=st.sampled_from([signal.SIGINT, signal.SIGTERM]))
    def stop(self, step: int, number: int) -> None:
        with suppress(Stopped):
            self.events_until(step, lambda: signal.raise_signal(number))

    @rule()
    def train(self) -> None:
        with closing(train_session(self.config, self.path)) as events:
            for _ in events:
                pass
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
        with (
            pytest.raises(UserError, match=f"steps: {STEPS} there, {steps} asked"),
            closing(
                train_session(self.config.model_copy(update={"steps": steps}), self.path)
            ) as events,
        ):
            next(events)
        assert files(self.path) == before

    @rule(
        name=st.sampled_from(
            ["checkpoint.safetensors", "model.safetensors", "config.json", "log.jsonl"]
        ),
        place=st.floats(0, 1),
    )
    def damage(self, name: str, place: float) -> None:
        """A byte is changed: a sentence names the file, if the file is needed. It is mended again."""
        path = self.path / name
        if not path.is_file() or not (content := path.read_bytes()):
            return
        at = int(place * (content.rfind(b"\n") - 1 if name == "log.jsonl" else len(content) - 1))
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x80]) + content[at + 1 :])
        needed = (
            name == "checkpoint.safetensors" and not Run(self.path).finished()
            if name != "model.safetensors"
            else False
        )
        if name in ("config.json", "log.jsonl") or needed:
            with (
                pytest.raises(UserError, match=name.replace(".", r"\.")),
                closing(train_session(self.config, self.path)) as events,
            ):
                for _ in events:
                    pass
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
        (self.path / f"{name}.tmp").write_bytes(os.urandom(50))

    @rule()
    def draw(self) -> None:
        """The weights can be used at any time, if there are some."""
        try:
            api.load(self.path)
        except UserError as error:
            assert "no weights yet" in str(error) or "no run folder" in str(error)  # noqa: PT017 - it may be raised or not

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
    [int(os.environ.get("EXAMPLES", "200")) // 20, pytest.param(150, marks=pytest.mark.slow)],
)
def test_whatever_happens_to_a_run_it_ends_the_same(
    tmp_path: Path, tiny: dict[str, object], examples: int
) -> None:
    Life.config = make_config(**{**tiny, "checkpoint_every": 1, "score_share": 0.0})
    Life.expected = tmp_path / "expected"
    for _ in train_session(Life.config, Life.expected):
        pass
    run_state_machine_as_test(
        Life, settings=settings(max_examples=examples, stateful_step_count=12)
    )  # type: ignore[no-untyped-call]
