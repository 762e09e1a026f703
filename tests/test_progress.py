"""Quality over time: the averages that a run keeps, and the study that samples from them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch

from undiffuse.base.errors import UserError
from undiffuse.base.pixels import to_uint8
from undiffuse.diffusion.sampling import sample_batches
from undiffuse.measuring.scorer import scorer_for
from undiffuse.report import Report
from undiffuse.report.blocks import Figure, Missing, Text
from undiffuse.runs.averages import file_of, kept_averages, model_at
from undiffuse.runs.evaluation import Parts, evaluate_run
from undiffuse.runs.folder import Run
from undiffuse.study import make_study
from undiffuse.study.progress import FEWEST, progress_study
from undiffuse.training.records import Snapshot


@pytest.fixture(scope="module")
def measured(train: Callable[..., Path], short_classifiers: None, shades: Path) -> Path:
    """A run whose data has a classifier, with the first row of the study."""
    run = train(data=str(shades), conditional=True)
    evaluate_run(run, 100, parts=Parts(likelihood=False, novelty=False))
    list(islice(progress_study(run, minutes=1e-6).rows(), 1))
    return run


def test_a_run_keeps_its_averages_in_half_of_the_precision(labelled_run: Path) -> None:
    run = Run(labelled_run)
    steps = kept_averages(run)
    assert steps == [record.step for record in run.of(Snapshot)]
    model = run.model()
    assert steps[-1] == model.description.step
    end = model_at(run, steps[-1]).network.state_dict()
    for name, value in model.network.state_dict().items():
        assert torch.equal(end[name], value.bfloat16().float()), name
    first = model_at(run, steps[0]).network.state_dict()
    assert any(not torch.equal(first[name], end[name]) for name in end)


def test_each_row_is_of_its_steps_average(measured: Path) -> None:
    """The distance is that of samples which are made here in the same way."""
    study = progress_study(measured)
    assert study.n == FEWEST  # of the file, though the minutes would allow more
    assert study.sheet.rows[0]["step"] == study.steps[0] > 0
    list(study.rows())
    found = json.loads(study.sheet.path.read_text())
    assert [row["step"] for row in found["rows"]] == study.steps == kept_averages(Run(measured))[1:]
    last = found["rows"][-1]
    assert last["minutes"] == Run(measured).of(Snapshot)[-1].time / 60
    assert last["images_seen"] == last["step"] * Run(measured).about().config.batch_size
    about = Run(measured).about()
    own = about.config.sampling(found["step"], about.conditioning)
    assert (found["sampler"], found["guidance"]) == (own.sampler, own.guidance)
    scorer = scorer_for(study.whole)
    assert scorer is not None
    for row in found["rows"]:
        denoiser = model_at(Run(measured), row["step"]).denoiser
        batches = sample_batches(denoiser, study.n, study.sampling, classes=study.classes)
        distance = scorer(to_uint8(torch.cat(list(batches))))
        assert row["frechet"] == pytest.approx(distance, rel=0.1)  # bfloat16 where the CPU has it
        assert row["frechet_low"] < row["frechet"] < row["frechet_high"]


def test_the_report_shows_it_and_names_what_is_missing(measured: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(measured, tmp_path / "run"))
    list(make_study("progress", run).rows())
    blocks = Report(run).blocks
    assert "quality" in {b.name for b in blocks if isinstance(b, Figure)}
    last = json.loads((run / "study" / "progress.json").read_text())["rows"][-1]
    words = " ".join(b.words for b in blocks if isinstance(b, Text))
    assert f"at step {last['step']:,}" in words
    shutil.rmtree(run / "study")
    commands = [b.command for b in Report(run).blocks if isinstance(b, Missing)]
    assert f"undiffuse study progress {run}" in commands
    shutil.rmtree(run / "averages")  # as in a run of an older version
    commands = [b.command for b in Report(run).blocks if isinstance(b, Missing)]
    assert not any("progress" in command for command in commands)


def test_what_cannot_be_measured_is_a_sentence(
    labelled_run: Path, measured: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(measured, tmp_path / "run"))
    with pytest.raises(UserError, match="leave --seeds and --values out"):
        make_study("progress", run, seeds=2)
    with pytest.raises(UserError, match=r"no averaged weights of step 5; it has: 0, "):
        model_at(Run(run), 5)
    end = kept_averages(Run(run))[-1]
    shutil.copy(file_of(Run(run), 0), file_of(Run(run), end))
    with pytest.raises(UserError, match="is damaged: it holds step 0"):
        model_at(Run(run), end)
    shutil.rmtree(run / "averages")
    with pytest.raises(UserError, match="kept no averaged weights"):
        progress_study(run)
