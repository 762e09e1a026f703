"""Studies that train: what they vary and measure, that they can be interrupted; their report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from torch import Tensor

import undiffuse.study.trainings as trainings  # the module itself, not its lazy stand-in
from conftest import write_idx
from undiffuse import cli
from undiffuse.base.errors import UserError
from undiffuse.data.dataset import Dataset
from undiffuse.data.splits import left_out, subset
from undiffuse.diffusion.denoiser import Denoiser
from undiffuse.diffusion.schedule import SCHEDULES
from undiffuse.report import Report
from undiffuse.report.blocks import Figure, Missing, Table, Text
from undiffuse.report.sections.trainings_compared import best_of
from undiffuse.runs.folder import Run
from undiffuse.runs.studies import FORMAT
from undiffuse.study import OF_ONE_RUN
from undiffuse.study.questions import QUESTIONS, Question
from undiffuse.study.trainings import LEVELS, errors, training_study


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies that take seconds."""
    monkeypatch.setattr(trainings, "MEASURING", 1.0)
    monkeypatch.setattr(trainings, "SHORTEST", 0.5)
    monkeypatch.setattr(trainings, "DRAWN", 30)
    monkeypatch.setitem(QUESTIONS, "schedules", Question("schedule", ("cosine", "flow")))
    monkeypatch.setitem(QUESTIONS, "subset", Question("subset", (30, None)))


def copy(run: Path, to: Path) -> Path:
    return Path(shutil.copytree(run, to / "run"))


def test_the_command_knows_the_studies() -> None:
    what = get_type_hints(cli.study)["what"]
    assert sorted(get_args(what)) == sorted((*OF_ONE_RUN, *QUESTIONS))


def test_errors_are_those_of_the_perfect_denoiser() -> None:
    """For Gaussian pixels the error of E[x_0 | x_t] is the posterior's variance.

    That is s^2 sigma^2 / (alpha^2 s^2 + sigma^2)."""
    s = 0.3
    real = torch.randn(400, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * s
    real = ((real + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def network(x: Tensor, log_snr: Tensor, condition: Tensor | None) -> Tensor:
        alpha, sigma = (
            level.sqrt()[:, None, None, None] for level in (log_snr.sigmoid(), (-log_snr).sigmoid())
        )
        return alpha * s**2 / (alpha**2 * s**2 + sigma**2) * x

    for schedule in ("cosine", "log-linear"):
        found = errors(Denoiser(network, schedule, "x0", (1, 16, 16)), real)
        snr = np.exp(LEVELS)
        assert found == pytest.approx(s**2 / (snr * s**2 + 1), rel=0.03)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(("what", "field"), [("schedules", "schedule"), ("subset", "subset")])
def test_each_value_is_trained_with_everything_else_the_same(
    run: Path, tmp_path: Path, what: str, field: str
) -> None:
    base = copy(run, tmp_path)
    study = training_study(base, what, minutes=0.2, seeds=2)
    assert "4 of 4 trainings" in study.plan()
    found = [row for *_, row in study.rows() if row]
    kept = json.loads((base / "study" / f"{what}.json").read_text())
    assert kept["rows"] == json.loads(json.dumps(found))
    assert [(row["value"], row["seed"]) for row in found] == [
        (v, k) for k in range(2) for v in QUESTIONS[what].values
    ]
    own = Run(base).about().config.model_dump()
    for row in found:
        folder = base / "study" / what / f"{row['value']}-seed{row['seed']}"
        config = Run(folder).about().config.model_dump()
        different = {name for name in own if own[name] != config[name]}
        assert different <= {field, "seed", "minutes", "steps", "quality_share", "snapshots"}
        assert config[field] == row["value"]
        assert config["minutes"] == kept["minutes_each"]
        of = row["value"] if what == "subset" and row["value"] else 64
        assert row["images"] == of - of // 20
        assert (base / "study" / row["picture"]).is_file()
        assert all(0 < error < 10 for error in row["unseen"] + row["seen"])
    again = [row for *_, row in training_study(base, what, 0.2, 2).rows()]
    assert again == kept["rows"]  # nothing is done twice


@pytest.mark.usefixtures("short")
def test_a_study_goes_on_where_it_was_interrupted(run: Path, tmp_path: Path) -> None:
    base = copy(run, tmp_path)
    rows = training_study(base, "schedules", minutes=0.1).rows()
    list(islice(rows, 3))  # in the midst of the first training
    rows.close()
    assert json.loads((base / "study" / "schedules.json").read_text())["rows"] == []
    assert any("has only begun" in b.what for b in Report(base).blocks if isinstance(b, Missing))
    first = base / "study" / "schedules" / "cosine-seed0" / "config.json"
    began = first.stat().st_mtime_ns
    again = training_study(base, "schedules", minutes=0.1)
    assert [row["value"] for *_, row in again.rows() if row] == ["cosine", "flow"]
    assert first.stat().st_mtime_ns == began
    more = training_study(base, "schedules", minutes=50)  # the minutes of before are kept
    assert more.minutes == again.minutes
    assert "0 of 2 trainings" in more.plan()
    assert "started with; for 25.0 minutes each, remove" in more.plan()
    other = training_study(base, "schedules", 0.1, seed=1)
    assert [row["value"] for *_, row in other.rows() if row] == ["cosine", "flow"]
    kept = json.loads((base / "study" / "schedules.json").read_text())["rows"]
    assert [row["seed"] for row in kept] == [0, 0, 1, 1]


@pytest.mark.usefixtures("short")
def test_only_some_values_are_compared(run: Path, tmp_path: Path) -> None:
    base = copy(run, tmp_path)
    study = training_study(base, "predictions", minutes=0.1, only=("eps", "v"))
    assert [value for value, _ in study.trainings] == ["eps", "v"]
    for only, sentence in (
        (("v",), "at least two values"),
        (("v", "v"), "at least two values"),
        (("v", "w"), "has no predict 'w'; it has: x0, eps, v"),
    ):
        with pytest.raises(UserError, match=sentence):
            training_study(base, "predictions", minutes=0.1, only=only)


@pytest.mark.parametrize(
    ("what", "options", "message"),
    [
        (
            "schedules",
            {"minutes": 1.0},
            "5 trainings and their measurements take at least 4 minutes",
        ),
        ("predictions", {"minutes": float("nan")}, "must be a finite number above 0, not nan"),
        ("predictions", {"minutes": float("inf")}, "must be a finite number above 0, not inf"),
        ("subset", {"seeds": 0}, "at least one seed"),
    ],
)
def test_impossible_studies_are_refused(
    run: Path, what: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        training_study(run, what, **options)
    assert not (run / "study").exists()


@pytest.mark.usefixtures("short")
def test_what_cannot_be_trained_is_left_out_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch, train: Callable[..., Path]
) -> None:
    schedules = ("linear", "cosine", "log-linear")
    monkeypatch.setitem(QUESTIONS, "schedules", Question("schedule", schedules))
    run = train(predict="eps", schedule="linear", steps=2, snapshots=2)
    study = training_study(run, "schedules", minutes=1)
    assert study.trainings == [("linear", 0), ("log-linear", 0)]
    assert "schedule cosine is left out, because it can't be trained here" in study.plan()
    monkeypatch.setitem(QUESTIONS, "schedules", Question("schedule", ("cosine", "flow")))
    with pytest.raises(UserError, match="there is nothing to compare: schedule cosine"):
        training_study(run, "schedules", minutes=1)


def test_a_run_without_unconditional_predictions_is_refused(train: Callable[..., Path]) -> None:
    run = train(conditional=True, condition_dropout=0.0, steps=1, snapshots=2)
    for what in QUESTIONS:
        with pytest.raises(
            UserError,
            match=r"--condition-dropout 0, so it has no unconditional predictions"
            r".*study a run with --condition-dropout 0\.1",
        ):
            training_study(run, what)
    assert not (run / "study").exists()
    # Of too few images for clusters: all of its predictions are unconditional.
    plain = train(condition_dropout=0.0, steps=1, snapshots=2)
    assert training_study(plain, "schedules").trainings


def test_a_study_of_too_few_images_is_refused(train: Callable[..., Path], tmp_path: Path) -> None:
    few = write_idx(tmp_path / "few", np.full((19, 8, 8), 99, np.uint8))
    with pytest.raises(UserError, match="too few images to hold some out"):
        training_study(train(data=str(few), steps=2, snapshots=2), "schedules")


def test_a_run_on_all_of_its_data_as_a_subset_can_be_studied(
    monkeypatch: pytest.MonkeyPatch, train: Callable[..., Path]
) -> None:
    monkeypatch.setattr(trainings, "DRAWN", 30)
    found, _ = trainings.measured(Run(train(subset=64, steps=2, snapshots=2)))
    assert all(error > 0 for error in found["unseen"])


def test_predictions_are_compared_where_all_are_possible() -> None:
    schedule = SCHEDULES[QUESTIONS["predictions"].also["schedule"]]
    alpha, _ = schedule(torch.ones((), dtype=torch.float64))
    assert alpha > 1e-6


def test_left_out_images_are_not_in_the_subset() -> None:
    pixels = torch.arange(200, dtype=torch.uint8)[:, None, None, None]
    whole = Dataset.of("numbers", pixels)
    inside, outside = (
        set(part.images.flatten().tolist())
        for part in (subset(whole, 120, 4), left_out(whole, 120, 4, 50))
    )
    assert (len(inside), len(outside)) == (120, 50)
    assert not inside & outside


# The report


FACTS = {"format": FORMAT, "minutes_each": 3.0, "field": "subset", "also": {}, "machine": {}}


@pytest.fixture
def row() -> Callable[..., dict[str, Any]]:
    def make(value: Any, frechet: float, seed: int = 0, **fields: Any) -> dict[str, Any]:
        quality = {
            "frechet": frechet,
            "frechet_low": 0.9 * frechet,
            "frechet_high": 1.1 * frechet,
            "floor": 0.1,
        }
        near = {"copies": value == 30, "near": 0.25, "near_expected": 0.01}
        errors = {"levels": LEVELS, "unseen": [0.5, 0.4, 0.3, 0.2, 0.1, 0.05], "seen": [0.4] * 6}
        return {
            "value": value,
            "seed": seed,
            "steps": 1234,
            "images_seen": 1234 * 64,
            "images": 57_000,
            **quality,
            **near,
            **errors,
            **fields,
            "picture": "a.png",
        }

    return make


Row = Callable[..., dict[str, Any]]


def test_the_best_value_is_that_of_the_smallest_mean(row: Row) -> None:
    rows = [
        row("cosine", 2.0),
        row("flow", 1.0),
        row("linear", 1.15),
        row("cosine", 1.0, 1),
        row("flow", 1.2, 1),
    ]
    words = best_of({"field": "schedule", "rows": rows})
    assert '1.10, is that of #raw("flow")' in words
    assert '#raw("linear")' in words
    subsets = {"field": "subset", "rows": [row(None, 1.0), row(30, 5.0)]}
    assert "No interval of another" in best_of(subsets)
    assert "all of the data" in best_of(subsets)


def test_the_report_takes_studies_in(run: Path, tmp_path: Path, row: Row) -> None:
    base = copy(run, tmp_path)
    assert any(
        isinstance(b, Missing) and "study schedules" in b.command for b in Report(base).blocks
    )
    facts = {**FACTS, "also": {"schedule": "linear"}}
    (base / "study").mkdir()
    (base / "study" / "a.png").write_bytes((base / "loss.png").read_bytes())
    path = base / "study" / "subset.json"
    path.write_text(json.dumps({**facts, "rows": [row(30, 4.0), row(None, 1.0)]}))
    found = Report(base)
    assert not any(isinstance(b, Missing) and "study schedules" in b.command for b in found.blocks)
    table = next(b for b in found.blocks if isinstance(b, Table) and b.header[0] == "subset")
    assert [cells[0] for cells in table.rows] == ['#raw("30")', "all"]
    assert table.header[3:] == (
        "error at -4",
        "error at 0",
        "error at 4",
        "Fréchet distance",
        "95% interval",
        "near",
    )
    assert table.rows[0][2:] == (
        "1,234",
        "0.4000",
        "0.2000",
        "0.0500",
        "4.00",
        "3.60 to 4.40",
        "25.0% (1.0%), copies",
    )
    assert {"subset-compared.svg", "subset-images.svg"} <= found.pictures.keys()
    assert any(isinstance(b, Text) and "all of the data" in b.words for b in found.blocks)
    assert any(isinstance(b, Figure) and b.name == "subset-compared" for b in found.blocks)
    assert len(found.write()) == 3


@pytest.mark.parametrize("name", ["../loss.png", "/etc/hostname", "missing.png"])
def test_a_picture_outside_of_the_study_is_refused(
    run: Path, tmp_path: Path, row: Row, name: str
) -> None:
    base = copy(run, tmp_path)
    (base / "study").mkdir()
    path = base / "study" / "subset.json"
    path.write_text(json.dumps({**FACTS, "rows": [{**row(30, 4.0), "picture": name}]}))
    with pytest.raises(UserError, match="has no picture"):
        Report(base)
