"""An experiment's randomness: a function of seed and step in every part, and of nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from undiffuse.base import rng
from undiffuse.base.errors import UserError
from undiffuse.runs.folder import Run
from undiffuse.runs.session import train_session
from undiffuse.training.experiment import Experiment, make_experiment
from undiffuse.training.options import make_options
from undiffuse.training.presets import make_config
from undiffuse.training.records import SessionStarted, StepTaken

Make = Callable[..., Experiment]


@pytest.fixture
def make(tiny: dict[str, Any]) -> Make:
    options = ("compile", "precision", "checkpoint_every")
    fields = {name: value for name, value in tiny.items() if name not in options}
    return lambda **changes: make_experiment(make_config(**{**fields, **changes}))


def noise_of(experiment: Experiment, step: int, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The noise that a batch is made with."""
    seen: list[Tensor] = []
    normal_each = rng.normal_each

    def spy(*arguments: Any) -> Tensor:
        seen.append(normal_each(*arguments))
        return seen[-1]

    with monkeypatch.context() as patch:
        patch.setattr(rng, "normal_each", spy)
        experiment.batch(step)
    return seen[0]


def test_weights_follow_from_the_seed(make: Make) -> None:
    def weights(seed: int) -> Tensor:
        return next(p.detach() for p in make(seed=seed).state.network.parameters() if p.std() > 0)

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_making_a_network_leaves_the_global_random_state(make: Make) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    make()
    assert torch.equal(torch.rand(3), expected)


def test_noise_times_and_images_follow_from_seed_and_step(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, same, other = make(seed=1), make(seed=1), make(seed=2)
    same.batch(7)  # what was asked for before changes nothing
    for a, b in ((first, 4), (other, 3)):
        assert not torch.equal(noise_of(first, 3, monkeypatch), noise_of(a, b, monkeypatch))
        assert not torch.equal(first.batch(3).log_snr, a.batch(b).log_snr)
        assert not torch.equal(first.batch(3).target, a.batch(b).target)
    for ours, theirs in zip(first.batch(3), same.batch(3), strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)


def test_noise_is_one_stream_a_sample(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a process can make the noise of its own rows only."""
    noise = noise_of(make(seed=1), 3, monkeypatch)
    for row in (0, 2, 7):
        assert torch.equal(noise[row], rng.normal(noise.shape[1:], 1, "noise", 3, row))


def test_an_unfinished_run_is_sampled_with_averaged_weights(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    config, options = make_config(**without(tiny)), make_options(**session(tiny))
    stop_after(5, train_session(config, tmp_path / "run", options))
    run = Run(tmp_path / "run")
    averages, _ = run.load_tensors(run.checkpoint_path, "ema/")
    weights, _ = run.load_tensors(run.checkpoint_path, "weights/")
    found = run.model().network.state_dict()
    assert all(torch.equal(found[name], value) for name, value in averages.items())
    assert any(not torch.equal(found[name], value) for name, value in weights.items())


def test_a_resumed_session_counts_the_seconds_of_those_before(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    config, options = make_config(**without(tiny)), make_options(**session(tiny))
    stop_after(5, train_session(config, tmp_path / "run", options))
    spent = max(record.time for record in Run(tmp_path / "run").records())
    assert spent > 0
    with closing(train_session(config, tmp_path / "run", options)) as records:
        again = next(records)
    assert isinstance(again, SessionStarted)
    assert again.time >= spent


def session(fields: dict[str, Any]) -> dict[str, Any]:
    """The options of a session among fields, with a checkpoint at every step."""
    chosen = {name: fields[name] for name in ("compile", "precision") if name in fields}
    return {**chosen, "checkpoint_every": 1}


def without(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of the configuration."""
    return {name: value for name, value in fields.items() if name not in session(fields)}


def stop_after(step: int, records: Any) -> None:
    """Go on to a step and abandon the session, as a crash does."""
    with closing(records):
        for record in records:
            if isinstance(record, StepTaken) and record.step == step:
                return


@pytest.mark.parametrize("version", [1, 2])
def test_a_run_folder_of_version_0_1_is_refused_with_a_sentence(
    run: Path, tmp_path: Path, version: int
) -> None:
    path = tmp_path / "run"
    path.mkdir()
    content = json.loads((run / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**content, "format": version}))
    said = f"{path} is a run folder of version 0.1, which this version cannot read; train a new run"
    with pytest.raises(UserError, match=re.escape(said)):
        Run(path).about()
