"""The study of samplers: what it samples and writes down, and that it can be interrupted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from undiffuse.base.errors import UserError
from undiffuse.base.images import tiles
from undiffuse.base.pixels import to_uint8
from undiffuse.data.splits import random_labels
from undiffuse.diffusion.sampling import Sampling, sample_batches
from undiffuse.report import Report
from undiffuse.report.blocks import Figure, Missing, Table, Text
from undiffuse.report.sections.samplers_compared import discussion, methods
from undiffuse.runs.folder import Run
from undiffuse.study import samplers
from undiffuse.study.samplers import CALLS, COMPARED, cases, sampler_study, spread


@pytest.fixture(scope="module")
def studied(labelled_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Path(shutil.copytree(labelled_run, tmp_path_factory.mktemp("studies") / "run"))
    list(sampler_study(run, minutes=1e-6).rows())
    return run


def test_every_sampler_samples_at_every_number_of_calls(studied: Path) -> None:
    content = json.loads((studied / "study" / "samplers.json").read_text())
    run = Run(studied)
    denoiser = run.model().denoiser
    own = run.about().config.sampling(12, denoiser.conditioning).checked(denoiser)
    *compared, last = cases(denoiser, own)
    assert content["n"] == samplers.FEWEST
    assert [(row["sampler"], row["calls"]) for row in content["rows"]] == [
        *((c.sampler, c.calls) for c in compared),
        (own.sampler, last.calls),
    ]
    assert last.guidance == own.guidance
    assert cases(denoiser, replace(own, guidance=1.0, sampler="ddim", steps=25)) == compared
    assert len(compared) == len(COMPARED) * len(CALLS)
    assert [c.calls for c in compared if c.sampler == "heun"] == [5, 9, 25]
    assert all(c.calls == c.steps in CALLS for c in compared if c.sampler != "heun")


def test_pictures_are_of_the_same_noise_and_the_samplers_own(studied: Path) -> None:
    """`ddim` of the study's picture is what `ddim` samples from the same noise and classes."""
    shown = {}
    for name in ("ddim-25", "ddpm-25"):
        with Image.open(studied / "study" / f"{name}.png") as sheet:
            small = [
                np.asarray(tile.resize((8, 8), Image.Resampling.NEAREST))
                for tile in tiles(sheet, 8, 8)
            ]
        shown[name] = np.stack(small[: samplers.SHOWN])
    assert (shown["ddim-25"] != shown["ddpm-25"]).any()
    assert shown["ddim-25"].std() > 5
    study = sampler_study(studied)
    classes = random_labels(study.whole, study.n, study.seed, "study labels")
    own = Sampling("ddim", 25, seed=study.seed)
    (x, *_) = sample_batches(study.denoiser, study.n, own, classes=classes)
    assert (shown["ddim-25"] == to_uint8(x[: samplers.SHOWN, 0]).numpy()).all()


def test_it_goes_on_where_it_was_interrupted(
    labelled_run: Path, studied: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(labelled_run, tmp_path / "run"))
    list(islice(sampler_study(run, minutes=1e-6).rows(), 5))
    half = json.loads((run / "study" / "samplers.json").read_text())
    assert len(half["rows"]) in (4, 5)
    again = sampler_study(run, minutes=5)  # the number of images is that of before
    assert again.n == samplers.FEWEST
    list(again.rows())
    whole = json.loads((run / "study" / "samplers.json").read_text())
    for ours, theirs in zip(
        whole["rows"],
        json.loads((studied / "study" / "samplers.json").read_text())["rows"],
        strict=True,
    ):
        assert {**ours, "seconds_per_image": 0} == {**theirs, "seconds_per_image": 0}


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_a_damaged_study_is_named(labelled_run: Path, tmp_path: Path, content: str) -> None:
    run = Path(shutil.copytree(labelled_run, tmp_path / "run"))
    (run / "study").mkdir()
    (run / "study" / "samplers.json").write_text(content)
    with pytest.raises(UserError, match=r"samplers\.json"):
        sampler_study(run)


def test_unconditional_denoised_images_are_shown_where_they_were_learnt(
    train: Callable[..., Path], studied: Path
) -> None:
    run = train(conditional=True, condition_dropout=0.0, steps=1, snapshots=2)
    list(sampler_study(run, minutes=1e-6).rows())
    found = [(run / "study" / name).exists() for name in ("denoising.png", "denoised.png")]
    assert found == [True, False]
    shown = {Path(name).stem for name in Report(run).pictures}
    assert {"denoising", "denoised"} & shown == {"denoising"}
    assert (studied / "study" / "denoised.png").exists()


def test_spread_is_the_standard_deviation_over_images() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (50, 1, 4, 4), generator=g, dtype=torch.uint8)
    assert spread(x) == pytest.approx(x.double().var(dim=0).mean().sqrt().item())
    assert spread(x[:1].expand(9, 1, 4, 4)) == 0
    assert spread(x, torch.arange(50)) == 0  # no two have the same condition
    classes = 7 * (torch.arange(50) % 2)  # a number without images is no group
    halves = [spread(x[classes == k]) for k in (0, 7)]
    assert spread(x, classes) ** 2 == pytest.approx((halves[0] ** 2 + halves[1] ** 2) / 2)


def test_the_report_takes_it_in(studied: Path) -> None:
    found = Report(studied)
    table = next(b for b in found.blocks if isinstance(b, Table) and b.header[0] == "sampler")
    assert len(table.rows) == len(COMPARED) * len(CALLS) + 2  # the run's own way, and real images
    assert table.rows[-1][0] == "real images"
    assert {"ways", "denoising", "denoised"} <= {Path(name).stem for name in found.pictures}
    words = " ".join(b.words for b in found.blocks if isinstance(b, Text))
    assert "(7)" in words


def test_an_interrupted_study_is_reported_as_far_as_it_went(
    labelled_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(labelled_run, tmp_path / "run"))
    for _ in zip(range(2), sampler_study(run, minutes=1e-6).rows(), strict=False):
        pass
    blocks = Report(run).blocks
    assert any(
        "2 of 22 cases have been sampled" in b.what for b in blocks if isinstance(b, Missing)
    )
    assert any(
        len(b.rows) == 3 for b in blocks if isinstance(b, Table) and b.header[0] == "sampler"
    )


def test_a_study_of_earlier_weights_begins_anew_and_is_not_reported(
    studied: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(studied, tmp_path / "run"))
    path = run / "study" / "samplers.json"
    path.write_text(path.read_text().replace('"step": 12', '"step": 11'))
    blocks = Report(run).blocks
    assert any("only one of step 11" in b.what for b in blocks if isinstance(b, Missing))
    assert not any(b.name in ("denoised", "denoising") for b in blocks if isinstance(b, Figure))
    assert not any(b.header[0] == "sampler" for b in blocks if isinstance(b, Table))
    assert sampler_study(run, minutes=1e-6).sheet.rows == []


def test_other_images_are_refused(labelled_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(labelled_run, tmp_path / "run"))
    path = run / "config.json"
    path.write_text(path.read_text().replace('"sha256": "', '"sha256": "0', 1))
    with pytest.raises(UserError, match="was trained on other images"):
        sampler_study(run)


def rows(**spreads: float) -> list[dict[str, object]]:
    return [
        {
            "sampler": name,
            "calls": calls,
            "steps": calls,
            "guidance": 1.0,
            "seconds_per_image": 0.01 * calls,
            "spread": spreads.get(name.replace("-", "_"), 80.0),
        }
        for name in COMPARED
        for calls in (10, 50)
    ]


def scored(distances: dict[str, tuple[float, float]]) -> list[dict[str, object]]:
    """Rows with these Frechet distances (of few calls, of many), +-5%."""
    found = rows(posterior_mean=20.0, ddpm_printed=60.0)
    for row in found:
        value = distances.get(str(row["sampler"]), (9.0, 9.0))[row["calls"] == 50]
        row |= {"frechet": value, "frechet_low": 0.95 * value, "frechet_high": 1.05 * value}
    return found


Verdict = Callable[[list[dict[str, object]]], str]


@pytest.fixture
def verdict() -> Verdict:
    return lambda found: " ".join(
        discussion({"rows": found, "real_spread": 81.0}, "frechet" in found[0], clusters=0)
    )


def test_the_answer_goes_as_far_as_the_figures(verdict: Verdict) -> None:
    """Of an interrupted study; (8) is compared with DDIM at the same number of calls."""
    found = scored({"ddpm": (3.0, 1.0), "ddim": (2.0, 1.5)})
    assert "spread" not in verdict(found[:2])
    assert "collapses" not in verdict(found[:4])
    assert "collapses" in verdict(found[:5])
    without = [row for row in found if (row["sampler"], row["calls"]) != ("ddim", 50)]
    assert "calls (50), (8) has" not in verdict(without)


def test_the_table_of_methods_has_the_fewest_and_the_most_calls() -> None:
    found = methods(scored({"ddim": (2.0, 1.5)}), scored=True)
    assert len(found.rows) == len(COMPARED)
    row = next(row for row in found.rows if row[0] == "DDIM")
    assert row[1:6] == ("2.00", "1.50", "80.0", "500", "yes")
    unscored = methods(rows(), scored=False)
    assert all(len(row) == len(unscored.header) == 6 for row in unscored.rows)
    assert methods(scored({})[:1], scored=True).rows == []


def test_the_text_follows_the_figures(verdict: Verdict) -> None:
    assert "On this run (7) collapses" in verdict(rows(posterior_mean=20.0))
    assert "has not collapsed" in verdict(rows())
    study = {"rows": rows(), "real_spread": 81.0}
    assert "of 200 clusters" in " ".join(discussion(study, scored=False, clusters=200))
    assert "less varied than those of (8) (60.0 against 80.0)" in verdict(rows(ddpm_printed=60.0))
    assert "about as varied" in verdict(rows())
    found = verdict(scored({"ddpm": (3.0, 1.0), "ddim": (2.0, 1.5), "heun": (0.5, 0.4)}))
    assert "0.400, is that of Heun with 50 calls; no other row comes as near" in found
    assert "of all ways with 10 calls it has the smallest distance, 0.500" in found
    assert "With many calls (50), (8) has 1.00 and DDIM 1.50. The fresh noise" in found
    assert "With few calls (10), (8) has 3.00 and DDIM 2.00. With few steps" in found
    assert "cannot tell it from 2 of the 13 other rows" in verdict(
        scored({"ddpm": (1.0, 1.02), "ddim": (1.05, 9.0)})
    )
    assert "cannot show a difference" in verdict(scored({"ddpm": (2.0, 1.0), "ddim": (2.05, 1.0)}))


def test_a_solver_that_gets_worse_with_more_calls_is_explained(verdict: Verdict) -> None:
    found = verdict(scored({"ddim": (2.0, 3.0), "heun": (2.0, 2.05), "dpmpp-2m": (2.0, 1.0)}))
    assert "the distance of DDIM (2.00 with 10 calls, 3.00 with 50) rises" in found
    assert "rises" not in verdict(scored({"ddim": (3.0, 2.0)}))


def test_a_way_with_guidance_is_no_part_of_the_comparison(verdict: Verdict) -> None:
    found = scored({"ddpm": (3.0, 1.0)})
    guided = {**found[-1], "guidance": 1.5, "calls": 24, "frechet": 0.1}
    own = "This run's own way, with guidance, has 0.100 here."
    assert own in verdict([*found, guided])
    assert verdict([*found, guided]).partition(own)[0] == verdict(found)
