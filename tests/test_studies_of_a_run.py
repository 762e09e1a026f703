"""The studies of guidance, grids and restoration: their rows, their files, and the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from undiffuse.base.errors import UserError
from undiffuse.diffusion.grids import GRIDS
from undiffuse.diffusion.guidance import GUIDANCES
from undiffuse.diffusion.inverse import METHODS
from undiffuse.diffusion.operators import operator_of, pseudo_inverse
from undiffuse.diffusion.sampling import Sampling
from undiffuse.report import Report
from undiffuse.report.blocks import Figure, Heading, Missing, Table
from undiffuse.runs.evaluation import Parts, evaluate_run
from undiffuse.study import STUDIES, make_study
from undiffuse.study.grids import fitted_to
from undiffuse.study.guidance import cases as guidance_cases
from undiffuse.study.restoration import INVERSE, control, figures

Command = Callable[..., str]
FEW = {"guidance": 200, "grids": 500, "restoration": 10}
"""The fewest images of each study."""


@pytest.fixture(scope="module")
def measured(train: Callable[..., Path], short_classifiers: None, shades: Path) -> Path:
    """A run whose data has a classifier, with the first rows of each study."""
    run = train(data=str(shades), conditional=True)
    evaluate_run(run, 100, parts=Parts(likelihood=False, novelty=False))
    for what in FEW:
        list(islice(make_study(what, run, minutes=1e-6).rows(), 2))
    return run


@pytest.mark.parametrize("what", FEW)
def test_a_study_goes_on_where_it_stopped(measured: Path, what: str) -> None:
    study = make_study(what, measured)
    before = [dict(row) for row in study.sheet.rows]
    assert len(before) == 2
    assert study.sheet.facts["n"] == FEW[what]  # of the file, though the minutes allow more
    assert what in study.plan()
    found = list(islice(study.rows(), 3))
    assert [row for _, _, row in found[:2]] == before
    assert json.loads(study.sheet.path.read_text())["rows"] == study.sheet.rows
    assert len(study.sheet.rows) == 3


def test_the_report_shows_what_there_is(measured: Path) -> None:
    blocks = Report(measured).blocks
    headings = [block.words for block in blocks if isinstance(block, Heading)]
    for words in (
        "Strengths of guidance compared", "Times of the steps compared",
        "Images that start from images",
    ):  # fmt: skip
        assert words in headings
    missing = [block.command for block in blocks if isinstance(block, Missing)]
    for what in FEW:
        assert any(f"study {what}" in command for command in missing), what
    tables = [block.caption for block in blocks if isinstance(block, Table)]
    assert any(caption.startswith("Restoration.") for caption in tables)
    assert "guidance" in [block.name for block in blocks if isinstance(block, Figure)]
    Report(measured).write()


def test_the_grid_that_was_found_is_used(measured: Path, tmp_path: Path, command: Command) -> None:
    spec = fitted_to(measured)
    assert spec.startswith("fitted:times=1/")
    words = ["sample", measured, "--n", 2, "--steps", 4]
    command(*words, "--grid", "fitted", "--out", tmp_path / "a.npz")
    command(*words, "--grid", spec, "--out", tmp_path / "b.npz")
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        assert (a["images"] == b["images"]).all()


def test_a_run_without_a_fitted_grid_says_what_to_do(run: Path, command: Command) -> None:
    assert "no grid has been fitted" in command("sample", run, "--grid", "fitted")


def test_the_cases_of_guidance() -> None:
    """Each method is there; CFG++ has a row of comparison with its own sampler."""
    own = Sampling("ddpm", 8, guidance=1.3)
    every = guidance_cases(own, weaker=True)
    methods = {case.sampling.guidance_method.partition(":")[0] for case in every}
    assert methods == set(GUIDANCES)
    assert any(case.weaker for case in every)
    assert not any(case.weaker for case in guidance_cases(own, weaker=False))
    plus = [case for case in every if "DDIM" in case.method]
    assert {case.sampling.guidance for case in plus} > {1.0}
    assert len({(case.method, case.sampling.guidance) for case in every}) == len(every)


def test_every_grid_and_every_method_is_compared(measured: Path) -> None:
    grids = {case.grid.partition(":")[0] for case in make_study("grids", measured).cases}
    assert grids == set(GRIDS)
    methods = {case.method for case in make_study("restoration", measured).cases}
    assert methods == {INVERSE, *METHODS} - {"smc"}  # which takes too long


def test_the_figures_of_restoration() -> None:
    """Against numbers that are known: errors of 0.1 and of 0.2 in half of the answers."""
    truth = torch.zeros(3, 1, 4, 4)
    draws = torch.full((3, 2, 1, 4, 4), 0.2)
    draws[:, 1] = -0.4  # as values from -1 to 1; 1 is the distance from black to white
    found = figures(draws, truth)
    assert found["psnr"] == pytest.approx((20 + 10 * np.log10(1 / 0.04)) / 2)
    assert found["psnr_low"] == pytest.approx(found["psnr"])  # all images are alike
    assert found["psnr_mean"] == pytest.approx(10 * np.log10(1 / 0.05**2))
    assert found["spread"] == pytest.approx(127.5 * 0.6 / 2**0.5)


def test_the_control_does_not_restore_the_noise() -> None:
    """It is nearer to a smooth truth than the pseudo-inverse itself, which fits the noise."""
    operator = operator_of("blur:sigma=1", (1, 16, 16))
    truth = operator_of("blur:sigma=3", (1, 16, 16)).apply(torch.rand(4, 1, 16, 16)) - 0.5
    seen = operator.apply(truth) + 0.1 * torch.randn(4, 1, 16, 16)
    ours, exact = control(operator, seen, 0.1), pseudo_inverse(operator, seen, 200).clamp(-1, 1)
    assert (ours - truth).square().mean() < (exact - truth).square().mean() / 2


def test_an_unconditional_run_has_no_guidance_to_study(run: Path) -> None:
    with pytest.raises(UserError, match="without classes or clusters"):
        make_study("guidance", run)


@pytest.mark.parametrize("what", FEW)
def test_they_are_of_one_run(measured: Path, what: str, command: Command) -> None:
    assert f"the study of {what} is of one run" in command("study", what, measured, "--seeds", 2)
    assert what in STUDIES
