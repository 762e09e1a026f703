"""Adding one thing happens in one place: one registration, and it is everywhere.

It stands in the help, it is validated, it trains and samples, and it stands in `undiffuse info` and
in the report."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import undiffuse
from conftest import as_flags
from undiffuse import UserError, cli
from undiffuse.base.table import Table
from undiffuse.data.dataset import Dataset
from undiffuse.diffusion import process
from undiffuse.report.blocks import plain
from undiffuse.report.sections.hyperparameters import hyperparameters
from undiffuse.report.source import read
from undiffuse.runs.folder import Run
from undiffuse.training.fields import TABLES
from undiffuse.training.presets import make_config
from undiffuse.training.records import Finished, Validation

CALLED: list[str] = []
"""The names of the functions below, each time that one is called."""


def slow_start(t: Tensor, *, power: float = 2.0) -> tuple[Tensor, Tensor]:
    """A schedule."""
    CALLED.append("slow-start")
    angle = t**power * torch.pi / 2
    return angle.cos(), angle.sin()


def half_image(alpha: Tensor, sigma: Tensor, *, part: float = 0.5) -> tuple[Tensor, ...]:
    """A prediction: F is a part of the image."""
    CALLED.append("half-image")
    return alpha * 0, alpha * 0 + 1 / part, 1 / (alpha**2 + sigma**2).sqrt()


def root_snr(log_snr: Tensor, *, power: float = 0.5) -> Tensor:
    """A weighting."""
    CALLED.append("root-snr")
    return (power * log_snr).exp()


def early(u: Tensor, *, power: float = 2.0) -> Tensor:
    """A distribution of times."""
    CALLED.append("early")
    return (1 - u) ** power


def late(schedule: Any, steps: int, *, power: float = 2.0) -> Tensor:
    """A time grid."""
    CALLED.append("late")
    return (torch.arange(steps, -1, -1, dtype=torch.float64) / steps) ** power


def halfway(step: Any, *, pull: float = 0.5) -> Tensor:
    """A sampler."""
    CALLED.append("halfway")
    x_s = process.jump(step.x_0, step.eps, step.at_s.alpha, step.at_s.sigma)
    return x_s if step.last else x_s + pull * (step.x_0 - x_s)


class Pointwise(nn.Module):
    """A network, which sees every pixel alone."""

    def __init__(
        self,
        *,
        shape: tuple[int, int, int],
        conditions: int,
        power: int = 1,
        deep: bool = False,
        widths: tuple[int, ...] = (4, 8),
    ) -> None:
        super().__init__()
        CALLED.append("pointwise")
        self.condition = nn.Embedding(conditions + 1, 1) if conditions else None
        sizes = (shape[0] + 1, *widths * (1 + deep))
        hidden = [nn.Conv2d(a, b, 1) for a, b in pairwise(sizes)]
        self.layers = nn.Sequential(*hidden, nn.SiLU(), nn.Conv2d(sizes[-1], shape[0], 1))
        self.power = power

    def forward(self, x: Tensor, log_snr: Tensor, condition: Tensor | None = None) -> Tensor:
        level = log_snr[:, None, None, None].expand(-1, 1, *x.shape[2:]) / 10
        if self.condition is not None:
            level = level + self.condition(condition)[:, :, None, None]
        return self.layers(torch.cat([x**self.power, level], dim=1))


@dataclass(frozen=True)
class Absolute:
    """|F - x_0| for the prediction x0."""

    denoiser: Any

    def prepare(self, x_0: Tensor, noise: Tensor, t: Tensor, condition: Tensor | None) -> Any:
        CALLED.append("absolute")
        at_t = self.denoiser.noise_level(t)
        _, _, c_in = self.denoiser.coefficients(at_t)
        x_t = process.jump(x_0, noise, at_t.alpha, at_t.sigma)
        return process.expand(c_in, x_t) * x_t, at_t.log_snr.to(x_0.dtype), x_0, condition

    def loss(self, network: Callable[..., Tensor], batch: Any) -> Tensor:
        x, log_snr, x_0, condition = batch
        return (network(x, log_snr, condition) - x_0).abs().mean(dim=(1, 2, 3))


def absolute(denoiser: Any, weighting: Any, *, power: float = 1.0) -> Absolute:
    """An objective."""
    return Absolute(denoiser)


def descent(network: nn.Module, config: Any, *, power: float = 0.5) -> torch.optim.Optimizer:
    """An optimiser."""
    CALLED.append("descent")
    return torch.optim.SGD(network.parameters(), lr=config.lr, momentum=power)


def stripes(split: str) -> Dataset:
    """A data set."""
    CALLED.append("stripes")
    generator = torch.Generator().manual_seed(int(split == "test"))
    images = torch.randint(0, 256, (60, 1, 8, 1), generator=generator).expand(-1, -1, -1, 8)
    return Dataset.of("stripes", images.byte().contiguous(), torch.arange(60) % 2, ("odd", "even"))


@dataclass(frozen=True)
class Addition:
    """What is added to the table of a field, by which name, and a spec that sets an option."""

    function: Callable[..., Any]
    name: str
    spec: str
    default: str

    def fields(self, field: str) -> dict[str, Any]:
        """A configuration with it. Without clusters, so that any network and data go with it."""
        predict = {"predict": "x0"} if field == "objective" else {}
        unused = ("channels", "blocks", "heads", "dropout") if field == "net" else ()
        return {"clusters": 0, **predict, **dict.fromkeys(unused), field: self.spec}


ADDITIONS = {
    "schedule": Addition(slow_start, "slow-start", "slow-start:power=3", "power=2.0"),
    "predict": Addition(half_image, "half-image", "half-image:part=0.25", "part=0.5"),
    "weighting": Addition(root_snr, "root-snr", "root-snr:power=0.25", "power=0.5"),
    "times": Addition(early, "early", "early:power=3", "power=2.0"),
    "grid": Addition(late, "late", "late:power=3", "power=2.0"),
    "sampler": Addition(halfway, "halfway", "halfway:pull=0.25", "pull=0.5"),
    "net": Addition(
        Pointwise, "pointwise", "pointwise:deep=1,widths=2/4/2", "power=1, deep=0, widths=4/8"
    ),
    "objective": Addition(absolute, "absolute", "absolute:power=2", "power=1.0"),
    "optimizer": Addition(descent, "descent", "descent:power=0.25", "power=0.5"),
}


@pytest.fixture(params=list(ADDITIONS))
def field(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def addition(field: str) -> Any:
    """What is added, while it is in its table."""
    addition = ADDITIONS[field]
    CALLED.clear()
    with TABLES[field].added(addition.function):
        yield addition


def shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> str:
    """What the command prints."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(sys, "argv", ["undiffuse", *map(str, arguments)])
    capsys.readouterr()
    with suppress(SystemExit):  # that of the help
        cli.main()
    answer = capsys.readouterr()
    assert answer.err == ""
    return " ".join(answer.out.split())


def test_every_table_of_the_configuration_is_tried_here() -> None:
    assert ADDITIONS.keys() == TABLES.keys()


def test_it_is_known_while_it_is_there(field: str) -> None:
    addition, table = ADDITIONS[field], TABLES[field]
    with pytest.raises(UserError, match=f"no {table.kind} called '{addition.name}'"):
        make_config(**addition.fields(field))
    with table.added(addition.function):
        assert getattr(make_config(**addition.fields(field)), field) == addition.spec
        with pytest.raises(
            UserError, match=f"no parameter 'colour' .*; it has: {addition.default}"
        ):
            make_config(**{**addition.fields(field), field: f"{addition.name}:colour=1"})
        with pytest.raises(UserError, match=f"there are: .*{addition.name}"):
            make_config(**{**addition.fields(field), field: "nonsense"})
    assert addition.name not in table


def test_it_is_in_the_help(
    field: str,
    addition: Addition,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    others = [name for name in TABLES[field] if name != addition.name]
    listed = " | ".join(TABLES[field])
    assert len(others) == len(listed.split(" | ")) - 1
    assert listed in shown(capsys, monkeypatch, "train", "--help")
    if field in ("sampler", "grid"):
        assert listed in shown(capsys, monkeypatch, "sample", "--help")


def test_it_trains_and_samples_and_is_reported(
    field: str,
    addition: Addition,
    tiny: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "run"
    fields = {**tiny, "steps": 2, "snapshots": 2, **addition.fields(field)}
    said = shown(capsys, monkeypatch, "train", "--out", run, *as_flags(fields))
    assert f"{run}: finished, 2 steps" in said
    assert addition.name in CALLED
    assert Run(run).of(Finished)
    assert all(np.isfinite(validation.loss) for validation in Run(run).of(Validation))
    again = shown(capsys, monkeypatch, "train", "--out", run, *as_flags(fields))
    assert "was already finished" in again

    images = undiffuse.sample(run, n=3)
    assert images.shape == (3, 8, 8)
    assert images.std() > 0
    if field in ("sampler", "grid"):
        usual = {"sampler": "ddim", "grid": "uniform", field: addition.spec, "steps": 3}
        CALLED.clear()
        assert (undiffuse.sample(run, n=3, **usual) == undiffuse.sample(run, n=3, **usual)).all()
        assert addition.name in CALLED

    value = getattr(Run(run).about().config, field)
    assert value == addition.spec
    assert f"{field} {value} chosen for this run" in shown(capsys, monkeypatch, "info", run)
    rows = [row for _, row in hyperparameters(read(Run(run)))]
    (row,) = [row for row in rows if row[0] == f"`{field}` \\*"]
    assert (row[1].replace("\u200b", ""), row[3]) == (plain(value), "chosen for this run")


def test_the_options_of_a_network_are_shown_with_their_reasons(
    train: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where it gives some. It is trained with classes, too."""
    addition = ADDITIONS["net"]
    with TABLES["net"].added(Pointwise):
        monkeypatch.setattr(
            Pointwise, "reasons", {"power": "of each pixel - the plainest"}, raising=False
        )
        run = train(**addition.fields("net"), conditional=True, steps=2, snapshots=2)
        said = shown(capsys, monkeypatch, "info", run)
        for row in (
            "power 1 the plainest",
            "deep True chosen for this run",
            "widths 2 4 2 chosen for this run",
        ):
            assert row in said
        assert undiffuse.sample(run, n=2, classes="7").shape == (2, 8, 8)
        x_t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        model = undiffuse.load(run)
        assert not torch.equal(model(x_t, 0.5, classes=7), model(x_t, 0.5))


def test_a_data_set_is_one_function(train: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="neither a data set"):
        train(data="stripes", steps=2, snapshots=2)
    with undiffuse.DATASETS.added(stripes):
        run = train(data="stripes", conditional=True, steps=2, snapshots=2)
        facts = Run(run).about().facts
        assert (facts.name, facts.classes, facts.training) == ("stripes", ("odd", "even"), 57)
        assert undiffuse.sample(run, n=2, classes="even").shape == (2, 8, 8)
        with pytest.raises(UserError, match="there are: mnist, stripes"):
            train(data="nowhere")


MINE = """
import sys
from undiffuse import SAMPLERS, SCHEDULES

@SCHEDULES.add
def straight(t, *, power=1.0):
    return 1 - t**power, t**power

@SAMPLERS.add
def lazy(step):
    return step.x_0 if step.last else step.x_t

from undiffuse.cli import main
main()
"""


def test_a_script_of_your_own_adds_to_the_command(tmp_path: Path) -> None:
    """It registers, and calls the command."""
    script = tmp_path / "mine.py"
    script.write_text(MINE)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command, wide = [sys.executable, script, *arguments], {**os.environ, "COLUMNS": "300"}
        return subprocess.run(
            command, cwd=tmp_path, env=wide, capture_output=True, text=True, check=False
        )

    helped = run("train", "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "| straight" in " ".join(helped.stdout.split())
    refused = run("train", "--schedule", "straight:speed=1", "--sampler", "lazy")
    assert refused.returncode == 2
    assert "'straight' has no parameter 'speed'" in refused.stderr


def test_every_public_table_says_what_its_entries_are() -> None:
    tables = [getattr(undiffuse, name) for name in undiffuse.__all__ if name.isupper()]
    assert len(tables) >= 11
    for table in tables:
        for entry in table:
            if isinstance(table, Table):
                assert table.function(entry).__doc__, entry
            else:
                assert table[entry].heading, entry
