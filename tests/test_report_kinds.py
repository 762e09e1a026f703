"""Reports for other readers, with an author, and of two runs side by side."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pypdf
import pytest
import torch

from undiffuse.base.errors import UserError
from undiffuse.diffusion.schedule import SCHEDULES, chain
from undiffuse.report import Report, mistakes, write_report
from undiffuse.report.architecture import skips, stages
from undiffuse.report.blocks import Code, Figure, Heading, Table, Text
from undiffuse.report.numbers import labels, referred
from undiffuse.report.sections import AUDIENCES
from undiffuse.report.side_by_side import compare
from undiffuse.report.source import read
from undiffuse.runs.folder import Run


def headings(report: Report) -> list[str]:
    return [block.words for block in report.blocks if isinstance(block, Heading)]


def words_of(path: Path) -> str:
    return " ".join(" ".join(page.extract_text() for page in pypdf.PdfReader(path).pages).split())


@pytest.fixture(scope="module")
def copied(labelled_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(labelled_run, tmp_path_factory.mktemp("kinds") / "run"))


def test_an_instructor_gets_a_key_and_a_paper_has_no_code(copied: Path) -> None:
    student, instructor, paper = (
        Report(copied, audience=name) for name in ("student", "instructor", "paper")
    )
    key = "For the instructor: grading"
    assert key in headings(instructor)
    assert key not in headings(student) + headings(paper)
    assert any(isinstance(block, Code) for block in student.blocks)
    assert not any(isinstance(block, Code) for block in paper.blocks)
    assert headings(paper)[-1] == "References"
    assert {"mistakes", "noising-printed"} <= {Path(name).stem for name in instructor.pictures}
    with pytest.raises(UserError, match="no audience called 'dean'; there are: student"):
        Report(copied, audience="dean")
    assert list(AUDIENCES) == ["student", "instructor", "paper"]


def test_author_and_course_stand_below_the_title_and_nothing_is_invented(copied: Path) -> None:
    write_report(copied, author="Ada *L*", course="ESE #1")
    assert "<p>Ada *L*, ESE #1</p>" in (copied / "report.html").read_text()
    assert "Ada *L*, ESE #1" in words_of(copied / "report.pdf")
    write_report(copied)
    header = (copied / "report.html").read_text().split("</header>")[0].split("<header>")[1]
    assert header.strip() == "<h1>A diffusion model of digits</h1>"


def test_the_printed_chain_loses_its_noise() -> None:
    """Against the closed form: (2) keeps variance 1, and (2) as printed has far less."""
    x_0 = torch.zeros(1, 1, 32, 32)
    rows = mistakes.noising("linear", x_0)
    assert [len(images) for images in rows.values()] == [11, 11]
    right, printed = (images.var(dim=(1, 2, 3)) for images in rows.values())
    tables = chain(SCHEDULES["linear"], 1000)
    expected, both = [0.0], [0.0]
    for i in range(1000):
        alpha, beta = tables.alpha[i].item(), tables.beta[i].item()
        expected.append(alpha * expected[-1] + beta)
        both.append(alpha * both[-1] + beta**2)
    torch.testing.assert_close(right, torch.tensor(expected[::100]), rtol=0.15, atol=1e-6)
    torch.testing.assert_close(printed, torch.tensor(both[::100]), rtol=0.15, atol=1e-6)
    assert right[-1] > 0.85
    assert printed[-1] < 0.03


def test_a_mistake_changes_the_images_and_no_mistake_does_not(copied: Path) -> None:
    denoiser = Run(copied).model().denoiser
    rows = mistakes.sampling(denoiser, count=4, steps=6)
    right = rows.pop("(8)")
    level = denoiser.noise_level(torch.ones(()))
    assert level.alpha**2 + level.sigma**2 == pytest.approx(1)
    again = mistakes.sampling(denoiser, count=4, steps=6)["(8)"]
    assert torch.equal(right, again)
    for name, images in rows.items():
        assert images.shape == right.shape
        assert (images - right).abs().mean() > 1e-3, name
    assert rows["not clipped"].abs().max() > right.abs().max()


def test_the_stages_are_those_that_the_network_computes(copied: Path) -> None:
    found = stages(read(Run(copied)))
    shapes = {stage.name: stage.shape for stage in found}
    assert found[0].name == "stem"
    assert shapes["stem"] == shapes["down.0"] == shapes["up.0"] == (8, 4, 4)
    assert shapes["trunk"] == (16, 2, 2)
    (pair,) = skips(found)
    assert [found[i].name for i in pair] == ["down.0", "up.0"]


def test_two_runs_side_by_side(train: Callable[..., Path], copied: Path) -> None:
    other = train(conditional=True, lr=1e-3, seed=1)
    files = compare(copied, other)
    assert [path.suffix for path in files] == [".html", ".pdf"]
    words = words_of(files[1])
    assert "The two runs differ in lr, seed." in words
    assert "Both losses are of the same thing" in words
    assert f"undiffuse evaluate {other}" in words
    assert "run (a) and run (b)" in words  # both folders are called run
    same = words_of(compare(copied, copied)[1])
    assert "have the same hyperparameters" in same
    schedule = train(conditional=True, schedule="linear")
    assert "their losses cannot be compared" in words_of(compare(copied, schedule)[1])
    with pytest.raises(UserError, match="nowhere"):
        compare(copied, copied.parent / "nowhere")


def test_the_figures_of_a_report_are_named_once(copied: Path) -> None:
    for audience in AUDIENCES:
        report = Report(copied, audience=audience)
        names = [block.name for block in report.blocks if isinstance(block, Figure)]
        assert len(names) == len(set(names))
        assert {Path(name).stem for name in report.pictures} == set(names)
        json.loads(report.notebook())


# References to figures and tables


def test_the_text_names_the_numbers_of_figures_and_tables() -> None:
    def figure(name: str) -> Figure:
        return Figure(name, "caption", "alt")

    table = Table(("a",), [("1",)], "caption")
    blocks = [
        Heading(1, "One"), figure("a"), Text("First."), figure("b"), table, Text("As follows:"),
        figure("c"), Heading(1, "Two"), table, Text("Last."),
    ]  # fmt: skip
    words = [block.words for block in referred(blocks) if isinstance(block, Text)]
    assert words == ["First. See Figure 2 and Table 1.", "As follows (Figure 3):", "Last."]
    assert list(labels(blocks).values()) == [
        "Figure 1",
        "Figure 2",
        "Table 1",
        "Figure 3",
        "Table 2",
    ]
