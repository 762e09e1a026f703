"""The report: what it says against the run folder, and that each of its three forms is whole."""

from __future__ import annotations

import ast
import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import nbformat
import numpy as np
import pypdf
import pytest
import torch
from torch import Tensor, nn

import undiffuse
from conftest import write_idx
from undiffuse import cli
from undiffuse.base.errors import UserError
from undiffuse.diffusion.schedule import SCHEDULES
from undiffuse.measuring.comparison import Comparison
from undiffuse.measuring.quality import METRICS as METRICS_TABLE
from undiffuse.measuring.quality import Metric
from undiffuse.nets import NETWORKS
from undiffuse.report import Report, sections, write_report
from undiffuse.report.blocks import (
    Block,
    Code,
    Command,
    Equation,
    Figure,
    Heading,
    Missing,
    Table,
    Text,
    coded,
    plain,
)
from undiffuse.report.listing import essence
from undiffuse.report.markdown import latex, markdown
from undiffuse.report.source import Source
from undiffuse.runs.folder import Run
from undiffuse.study.sheet import sheet
from undiffuse.training.config import Config
from undiffuse.training.records import CompileFallback, Rollback

SECTIONS = (
    "What a diffusion model is",
    "The forward process: from image to noise",
    "The model: from noise to image",
    "The network",
    "How the network is trained",
    "Sampling new images",
    "Hyperparameters",
    "How training went",
    "Limits, and how to repeat it",
    "References",
    "Appendix",
)


# The vocabulary


@pytest.mark.parametrize(
    ("typst", "expected"),
    [
        ("x_t = sqrt(alpha_t) x_(t-1)", r"x_{t} = \sqrt{\alpha _{t}} x_{t-1}"),
        ("frac(a (b), c)", r"\frac{a (b)}{c}"),
        ("sqrt(1 - macron(alpha)_t) epsilon_0", r"\sqrt{1 - \bar{\alpha}_{t}} \varepsilon _{0}"),
        ("norm(hat(x)_theta - x)^2", r"\lVert \hat{x}_{\theta} - x \rVert^{2}"),
        ('EE_(t tilde.op "Uniform"{2..T})', r"\mathbb{E} _{t \sim  \text{Uniform}\{2..T\}}"),
        ("i slash T", "i /  T"),
        ("cal(N)(0, bold(I))", r"\mathcal{N}(0, \mathbf{I})"),
        ('c_"skip" x', r"c_{\text{skip}} x"),
    ],
)
def test_mathematics_as_latex(typst: str, expected: str) -> None:
    assert latex(typst).strip() == expected


def test_unknown_mathematics_is_an_error() -> None:
    with pytest.raises(ValueError, match="wombat"):
        latex("wombat(x)")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("*strong* and _emphasis_ and `co_de`", "**strong** and *emphasis* and `co_de`"),
        ("with $x_t$ in it", "with $x_{t}$ in it"),
        ('#link("https://a.b/c")[words]', "[words](https://a.b/c)"),
        (plain("1_000 * [x] #y"), r"1\_000 \* \[x\] \#y"),
        (plain("a-b/c 'd' \"e\""), "a-b/c 'd' \"e\""),
        (coded('a=1 "b" \\ $c$'), '`a=1 "b" \\ $c$`'),
    ],
)
def test_text_as_markdown(words: str, expected: str) -> None:
    assert markdown(words) == expected


# Whole reports


@pytest.fixture(scope="module")
def reported(labelled_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Path(shutil.copytree(labelled_run, tmp_path_factory.mktemp("reports") / "run"))
    write_report(run)
    return run


B = TypeVar("B", bound=Block)


def blocks_of(run: Path, kind: type[B]) -> list[B]:
    """The blocks of one kind in the report of a run."""
    return [block for block in Report(run).blocks if isinstance(block, kind)]


def text_of(run: Path) -> str:
    return " ".join(block.words for block in blocks_of(run, Text))


def pdf_text(path: Path) -> str:
    return " ".join(" ".join(page.extract_text() for page in pypdf.PdfReader(path).pages).split())


def test_each_form_has_every_section_and_equation(reported: Path) -> None:
    page = (reported / "report.html").read_text()
    document = pdf_text(reported / "report.pdf")
    cells = nbformat.read(reported / "report.ipynb", as_version=4)
    nbformat.validate(cells)
    prose = "\n".join(cell.source for cell in cells.cells if cell.cell_type == "markdown")
    for section in SECTIONS:
        assert section in page
        assert section in document
        assert f"## {section}" in prose
    for number in range(1, 9):
        assert re.search(rf'class="number">\({number}\)', page)
        assert f"({number})" in document
        assert rf"\tag{{{number}}}" in prose
    # Typst's page once lost the bar of alpha without a word (`overline`): every accent must arrive.
    mathematics = " ".join(block.mathematics for block in blocks_of(reported, Equation))
    assert page.count("<mover") >= mathematics.count("macron(") + mathematics.count("hat(") > 10
    for printed in ("contradicts (1)", "without its root", "without the root", "not DDIM"):
        assert printed in document


def test_a_section_is_one_row(
    monkeypatch: pytest.MonkeyPatch, reported: Path, tmp_path: Path
) -> None:
    """It is in all three forms, at its place."""
    run = Path(shutil.copytree(reported, tmp_path / "run"))

    def dedication(source: Source) -> Iterator[Block]:
        yield Heading(1, "Dedication")
        yield Text(f"For all {source.about.facts.training} images.")

    monkeypatch.setattr(sections, "SECTIONS", [dedication, *sections.SECTIONS])
    write_report(run)
    page = (run / "report.html").read_text()
    notebook = (run / "report.ipynb").read_text()
    for form in (page[page.index("<main") :], notebook, pdf_text(run / "report.pdf")):
        assert 0 < form.index("For all 61 images.") < form.index(SECTIONS[0], form.index("For all"))


def test_every_figure_is_there_and_not_empty(reported: Path) -> None:
    report = Report(reported)
    figures = blocks_of(reported, Figure)
    names = [figure.name for figure in figures]
    assert {"samples", "chain", "noising", "schedules", "loss", "timeline"} <= set(names)
    assert len(names) == len(set(names))
    by_name = {Path(file).stem: content for file, content in report.pictures.items()}
    for figure in figures:
        assert len(by_name[figure.name]) > 500
        assert figure.alt
    page = (reported / "report.html").read_text()
    assert page.count("<img") == len(names)
    assert len(re.findall(r"<img[^>]* alt=\"[^\"]+\"", page)) == len(names)


def test_the_caption_says_where_a_class_lies(
    monkeypatch: pytest.MonkeyPatch, train: Callable[..., Path], labelled_run: Path, tmp_path: Path
) -> None:
    """In a column of a snapshot, and in a row of the grid of `undiffuse sample`.

    The report does not show a grid that was sampled with other options."""
    run = Path(shutil.copytree(train(conditional=True, snapshot_images=20), tmp_path / "run"))

    def caption(of: Path = run) -> str:
        return next(b.caption for b in blocks_of(of, Figure) if b.name == "samples")

    def sample(*flags: str) -> None:
        monkeypatch.setattr(sys, "argv", ["undiffuse", "sample", str(run), "--n", "40", *flags])
        cli.main()

    assert "is a class" not in caption(labelled_run)  # four snapshot images of ten classes
    assert "A column is a class" in caption()
    sample()
    assert "A row is a class" in caption()
    assert Report(run).pictures["samples.png"] == (run / "samples.png").read_bytes()
    for flags in (
        "--classes 7",
        "--sampler posterior-mean",
        "--guidance 3",
        "--steps 1",
        "--no-clip",
    ):
        sample(*flags.split())
        assert "A column is a class" in caption()
    shutil.copy(run / "data.png", run / "samples.png")
    assert "A column is a class" in caption()
    shutil.rmtree(run / "samples")
    assert "There are no images of this run yet." in [b.what for b in blocks_of(run, Missing)]
    write_report(run)


class Essence(ast.NodeTransformer):
    """Code without docstrings, checks that only raise, and registrations in a table."""

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        tables = (
            "GRIDS",
            "GUIDANCES",
            "METHODS",
            "SCHEDULES",
            "TIMES",
            "WEIGHTINGS",
            "PREDICTIONS",
            "SAMPLERS",
            "NETWORKS",
        )
        node.decorator_list = [
            decorator for decorator in node.decorator_list
            if ast.unparse(decorator).partition(".")[0] not in (*tables, "OPTIMIZERS")
        ]  # fmt: skip
        if ast.get_docstring(node) is not None:
            del node.body[0]
        node.body = [
            part for part in node.body
            if not (isinstance(part, ast.If) and not part.orelse
                    and [type(inner) for inner in part.body] == [ast.Raise])
        ] or [ast.Expr(ast.Constant(...))]  # fmt: skip
        return node

    visit_ClassDef = visit_FunctionDef  # noqa: N815


def test_code_is_the_source_that_runs(reported: Path) -> None:
    """But for docstrings, checks and registrations, a listing is the code at its line."""
    found = blocks_of(reported, Code)
    assert len(found) > 20
    root = Path(undiffuse.__file__).parent.parent
    for block in found:
        whole = ast.parse((root / block.file).read_text())
        there = next(
            node
            for node in ast.walk(whole)
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
            and block.line == min([node.lineno, *(d.lineno for d in node.decorator_list)])
        )
        assert ast.unparse(Essence().visit(there)) == ast.unparse(ast.parse(block.source))
        assert "# type:" not in block.source
    assert any("def ddpm_printed" in block.source for block in found)


def test_a_listing_keeps_what_computes_and_its_comments() -> None:
    source = '''
@SAMPLERS.add
def f(x):
    """What f does.

    More of it."""

    if x < 0:
        raise ValueError("no")
    # Why.
    if x > 1:
        x = 1
    return x  # type: ignore[no-any-return]


class C:
    """A class of which nothing is left."""
'''
    assert essence(source) == (
        "def f(x):\n    # Why.\n    if x > 1:\n        x = 1\n    return x\n\n\nclass C:\n    ...\n"
    )


def hyperparameters(run: Path) -> dict[str, tuple[str, ...]]:
    """The rows of both tables of hyperparameters, by the marked-up name."""
    header = ("name", "value", "what it is", "why")
    tables = [table for table in blocks_of(run, Table) if table.header == header]
    assert len(tables) == 2
    return {row[0]: row[1:] for table in tables for row in table.rows}


def test_every_hyperparameter_is_in_the_table_and_changes_are_marked(reported: Path) -> None:
    rows = hyperparameters(reported)
    names = [name.split("`")[1].replace("-", "_") for name in rows]
    net = names.index("net") + 1
    options = ["channels", "blocks", "attention", "heads", "dropout"]
    assert names[net : net + len(options)] == options == list(NETWORKS.defaults("unet"))
    assert sorted(names[:net] + names[net + len(options) :]) == sorted(Config.model_fields)
    why = plain(Run(reported).about().reasons["lr"])
    assert rows["`lr`"] == (plain(0.004), "peak learning rate", why)
    assert rows["`batch-size` \\*"][0] == "8"
    assert names.index("preset") > names.index("guidance")  # in the appendix
    for name, (value, what, why) in rows.items():
        assert value, name
        assert what, name
        assert why, name
        assert "|" not in what


def test_the_options_of_the_network_stand_below_it_with_their_reasons(reported: Path) -> None:
    rows = {name.strip(): row for name, row in hyperparameters(reported).items()}
    value = rows["`net` \\*"][0].replace("\u200b", "")
    assert value == plain("unet:channels=8/16,blocks=1/1,dropout=0.1")
    assert rows["`channels` \\*"] == ("8 16", "channels of each level", "chosen for this run")
    assert rows["`dropout` \\*"] == (plain(0.1), "dropout inside the blocks", "chosen for this run")
    assert rows["`heads`"] == (
        "2",
        "attention heads",
        "of 64 channels each; more are slower; not tuned",
    )
    where = "only at 7x7, where it costs little"
    assert rows["`attention`"] == ("False True", "attention at each level", where)


class Mine(nn.Module):
    """A network of a user's own, which gives no reasons."""

    def __init__(
        self, *, shape: tuple[int, ...], conditions: int, width: int = 1, soft: bool = False
    ) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, log_snr: Tensor, condition: Tensor | None = None) -> Tensor:
        return x * self.scale.mean()


def test_a_network_more_needs_no_edit_here(train: Callable[..., Path]) -> None:
    """Its options, its code and its size are in the report."""
    others = dict.fromkeys(("channels", "blocks", "heads", "dropout"))
    with NETWORKS.added(Mine):
        run = train(net="mine:width=2", clusters=0, steps=2, snapshots=2, **others)
        rows = hyperparameters(run)
        own = {name: row for name, row in rows.items() if "`net`" in name or name[0] != "`"}
        assert {
            name.strip(): (value.replace("\u200b", ""), why)
            for name, (value, _, why) in own.items()
        } == {
            "`net` \\*": (plain("mine:width=2"), "chosen for this run"),
            "`width` \\*": ("2", "chosen for this run"),
            "`soft`": ("False", plain("the network's default")),
        }
        assert "It has 2 weights." in text_of(run)
        assert "A network of a user" in text_of(run)  # its docstring
        code = next(b for b in blocks_of(run, Code) if b.source.startswith("class Mine"))
        assert code.file == "test_report.py"


def test_nothing_is_asked_of_the_network(reported: Path) -> None:
    page = (reported / "report.html").read_text()
    addresses = r'(?:src|srcset|data|poster)="(?!data:)([^"]*)"|@import|url\((?!data:)'
    assert re.findall(addresses, page) == []
    assert "<link" not in page
    assert "<script" not in page


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2, from 1 to 21, of two colours #rgb or #rrggbb."""

    def luminance(colour: str) -> float:
        digits = colour.removeprefix("#")
        digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
        parts = np.array([int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_can_be_read_on_its_ground(reported: Path) -> None:
    """WCAG AA: a contrast of 4.5 for text, by day and by night, the colours of code included."""
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#fff") == pytest.approx(4.48, abs=0.01)
    page = (reported / "report.html").read_text()
    roots = re.findall(r":root {([^}]*)}", page)
    day, night = (dict(re.findall(r"--(\w+): (#\w+)", root)) for root in roots)
    for colours in (day, night):
        for name in ("text", "ink", "line"):
            assert contrast(colours[name], colours["page"]) >= 4.5, (name, colours)
    written = set(re.findall(r'style="color: (#\w+)', page))
    at_night = dict(re.findall(r'span\[style\*="(#\w+)"\] { color: (#\w+)', page))
    assert len(written) > 4
    assert written == at_night.keys() & written
    for colour in written:
        assert contrast(colour, day["page"]) >= 4.5, colour
        assert contrast(at_night[colour], night["page"]) >= 4.5, colour


BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.mark.skipif(BROWSER is None, reason="there is no browser")
def test_a_browser_without_a_network_shows_all_of_it(reported: Path, tmp_path: Path) -> None:
    """Its console stays empty, and every picture has a size."""
    assert BROWSER is not None
    page = (reported / "report.html").read_text()
    probe = (
        "<script>window.onload = () => { const all = [...document.images];"
        "const shown = all.filter(i => i.naturalWidth > 10);"
        "document.title = `${shown.length} of ${all.length}` }</script>"
    )
    copy = tmp_path / "report.html"
    copy.write_text(page.replace("</body>", f"{probe}</body>"))
    flags = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        *("--enable-logging=stderr", "--dump-dom"),
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=5000",
    ]
    command = [BROWSER, *flags, str(copy)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in shown.stderr
    count = page.count("<img")
    assert f"<title>{count} of {count}</title>" in shown.stdout
    for section in SECTIONS:
        assert section in shown.stdout


def test_twice_is_the_same_to_the_byte(reported: Path) -> None:
    names = ("report.html", "report.pdf", "report.ipynb")
    before = {name: (reported / name).read_bytes() for name in names}
    write_report(reported)
    assert all((reported / name).read_bytes() == content for name, content in before.items())
    assert all(len(content) < 5_000_000 for content in before.values())


def test_what_is_not_there_is_named_with_its_command(reported: Path) -> None:
    assert [block.command for block in blocks_of(reported, Missing)] == [
        f"undiffuse evaluate {reported}",
        f"undiffuse study samplers {reported}",
        f"undiffuse study progress {reported}",
        f"undiffuse study schedules {reported}",
    ]


def value(value: float, low: float, high: float, **others: Any) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, **others}


METRICS: dict[str, Any] = {
    "format": 3, "undiffuse": "0.2", "of": {"step": 12}, "seed": 0, "features": None,
    "reference": {
        "name": "digits", "training": 61, "test": 3, "seen": 61, "unseen": 3, "control": "test set",
    },
    "machine": {},
    "warnings": [],
    "sampling": {
        "n": 4321, "sampler": "ddim:eta=0.5", "steps": 17, "network_calls": 34, "grid": "uniform",
        "guidance": 1.0, "guidance_interval": [-3.0, 3.0], "clip": True, "seed": 0,
        "precision": "fp32", "seconds": 1.0,
    },
    "frechet": value(
        0.1234, 0.1111, 0.1357, n=4321, floor=0.0456, ratio=2.706, ratio_low=1.58, ratio_high=3.91
    ),
    "precision": value(0.8765, 0.8701, 0.8802, n=4321, control=0.8999),
    "missing": {"class_agreement": "the images were sampled without classes"},
    "bits_per_dim": {
        "test": 1.2345, "low": 1.2, "high": 1.27, "n": 3, "chain": 1000,
        "training": value(1.2222, 1.2, 1.25, n=3),
        "gap": value(0.0123, 0.0100, 0.0146),
        "log_snr": [-10.0, 10.0], "network_calls": 100, "given_classes": False,
        "prior": value(0.1, 0.1, 0.1),
        "diffusion": value(0.4, 0.4, 0.4),
        "reconstruction": value(0.7, 0.7, 0.7),
        "assumes": "a chain", "interval_of": "the images", "seed": 0, "undiffuse": "0.2",
        "continuous": {
            "test": 1.1, "low": 1.0, "high": 1.2, "n": 3, "diffusion": value(0.3, 0.3, 0.3),
        },
        "levels": [[0.0, 1.0, 1.0]],
        "ode": {
            "test": 1.6543, "low": 1.6111, "high": 1.7222, "n": 333, "steps": 100, "log_snr": 9.0,
            "assumes": "the flow", "change_from_half_the_steps": 0.0,
        },
    },
    "novelty": {
        "alarm": True, "n": 4321, "share": 0.0234, "threshold": 0.567, "expected": 0.001,
        "p_value": 1e-9, "detectable": 0.0017, "share_low": 0.02, "share_high": 0.03,
        "control": {"alarm": False, "p_value": 0.5, "n": 3},
        "ratio": {"quantiles": [], "value": [], "control": []},
        "distance": {"quantiles": [], "value": [], "control": []},
        "pixels": {
            "c_t": {"value": 0.0, "control": 0.0}, "nearer": value(0.1, 0.0, 0.2, n=4321),
        },
        "closest": [],
    },
}  # fmt: skip


def test_numbers_are_those_of_metrics_json(reported: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(reported, tmp_path / "run"))
    (run / "metrics.json").write_text(json.dumps(METRICS))
    write_report(run)
    document = pdf_text(run / "report.pdf")
    for words in (
        "0.123",
        "0.111 to 0.136",
        "0.0456",
        "2.7 times (95% interval 1.6 to 3.9)",
        "0.876",
        "0.900",
        "4,321 images",
        "1.234",
        "1.222",
        "1.200 to 1.270",
        "1.654 (1.611 to 1.722) on 333",
        "+0.012 (+0.010 to +0.015): the overfitting",
    ):
        assert words in document, words
    for words in (
        "ddim:eta=0.5",
        "17 steps, 34 network calls",
        "found copies",
        "2.34%",
        "0.17%",
        "0.567",
        "Not given: share with the class that was asked for, as the images were sampled without",
    ):
        assert words in document, words
    commands = [block.command for block in blocks_of(run, Missing)]
    studies = ("samplers", "progress", "schedules")
    assert commands == [f"undiffuse study {name} {run}" for name in studies]


def test_a_metric_more_needs_no_edit_here(reported: Path, tmp_path: Path) -> None:
    def sharpness(_: Comparison) -> None:
        """Nothing is measured here."""

    run = Path(shutil.copytree(reported, tmp_path / "run"))
    sharp = Metric("sharpness", "sharpness_1", "8-bit values", "higher", sharpness)
    with METRICS_TABLE.added(sharp, "sharpness"):
        found = {**METRICS, "sharpness": value(12.5, 12.1, 12.9, n=4321, control=13.0)}
        (run / "metrics.json").write_text(json.dumps(found))
        table = next(b for b in blocks_of(run, Table) if b.header[0] == "measure")
    row = (r"sharpness\_1 (8\-bit values)", "12.5", "12.1 to 12.9", "13.0")
    assert table.rows[-1] == row
    assert table.rows[0][0] == "Fréchet distance to the training images"


def test_figures_of_earlier_weights_are_not_the_runs(reported: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(reported, tmp_path / "run"))
    (run / "metrics.json").write_text(json.dumps({**METRICS, "of": {"step": 7}}))
    assert any("only one of step 7" in block.what for block in blocks_of(run, Missing))
    assert "2.7 times" not in text_of(run)


def test_a_gap_that_may_be_none_is_not_called_overfitting(reported: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(reported, tmp_path / "run"))
    bits = {**METRICS["bits_per_dim"], "gap": {"value": -0.004, "low": -0.02, "high": 0.012}}
    (run / "metrics.json").write_text(json.dumps({**METRICS, "bits_per_dim": bits}))
    words = "-0.004 (-0.020 to +0.012): no overfitting that these images could show"
    assert words in text_of(run)


def test_a_run_that_went_wrong_says_so(reported: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(reported, tmp_path / "run"))
    first, *others = (run / "log.jsonl").read_text().splitlines()
    fallback = CompileFallback(0, 0.5, "no_such_op")
    rollback = Rollback(5, 1.0, 9, "its loss was not finite")
    records = [json.dumps(record.as_line()) for record in (fallback, rollback)]
    (run / "log.jsonl").write_text("".join(f"{line}\n" for line in [first, *records, *others]))
    words = text_of(run)
    assert (
        "At step 9 training went wrong, as its loss was not finite; it was rolled back to step 5, "
        "and went on with half of the learning rate." in words
    )
    assert r"trained without being compiled: no\_such\_op" in words
    rows = [row for block in blocks_of(run, Table) for row in block.rows]
    assert ("compiled", "False") in rows


def test_a_schedule_that_does_not_keep_the_variance_says_how_the_equations_hold(
    reported: Path, train: Callable[..., Path]
) -> None:
    note = "so (1) to (8) hold for"
    assert note not in text_of(reported)
    assert note in text_of(train(schedule="flow", steps=2, snapshots=2))


def test_a_study_more_needs_no_edit_here(reported: Path, tmp_path: Path) -> None:
    """It is there under its own name, after those that have a title; so is a study just begun."""
    run = Path(shutil.copytree(reported, tmp_path / "run"))
    facts: dict[str, Any] = {"minutes_each": 3.0, "also": {"weight_decay": None}}
    images = {"images_seen": 9872, "images": 61}
    levels = {"levels": [-4.0, 0.0, 4.0], "unseen": [0.4, 0.2, 0.05], "seen": [0.4, 0.2, 0.05]}
    fields = {"subset": "subset", "chain_lengths": "chain", "begun": "lr"}
    for name, field in fields.items():
        kept = sheet(Run(run), name, field=field, **facts)
        kept.save()
        for value, frechet in () if name == "begun" else ((30, 4.0), (None, 1.0)):
            distance = {"frechet": frechet, "frechet_low": frechet, "frechet_high": frechet}
            row = {"value": value, "seed": 0, "steps": 1234, **images, **levels, **distance}
            kept.write("a.png", (run / "loss.png").read_bytes())
            kept.add({**row, "picture": "a.png"})
    (run / "study" / "not a study.json").write_text("{}")
    titles = [b.words for b in blocks_of(run, Heading) if b.words.startswith("Comparing")]
    assert titles == ["Comparing amounts of data", r"Comparing chain\_lengths"]
    missing = {block.command: block.what for block in blocks_of(run, Missing)}
    assert missing[f"undiffuse study begun {run}"] == "The comparison of begun has only begun."
    tables = {b.header[0]: b.rows for b in blocks_of(run, Table) if "seed" in b.header}
    assert [row[0] for row in tables["subset"]] == ['#raw("30")', "all"]
    assert [row[0] for row in tables["chain"]] == ['#raw("30")', "continuous"]
    words = text_of(run)
    assert "1.00, is that of all of the data. No interval of another reaches it." in words
    assert "1.00, is that of continuous. No interval of another reaches it." in words
    drawn = ("subset-compared.svg", "subset-images.svg", "chain_lengths-compared.svg")
    assert {*drawn, "chain_lengths-images.svg"} <= Report(run).pictures.keys()
    write_report(run)
    assert "Comparing chain_lengths" in pdf_text(run / "report.pdf")


@pytest.mark.parametrize("content", ["", "[]", '{"format": 99, "rows": []}', "{half"])
@pytest.mark.parametrize("name", ["subset", "other"])
def test_a_damaged_study_is_named(reported: Path, tmp_path: Path, name: str, content: str) -> None:
    run = Path(shutil.copytree(reported, tmp_path / "run"))
    (run / "study").mkdir()
    (run / "study" / f"{name}.json").write_text(content)
    with pytest.raises(UserError, match=rf"{name}\.json can't be read .*study {name} {run}"):
        write_report(run)


def test_a_schedule_more_needs_no_edit_here(
    monkeypatch: pytest.MonkeyPatch, reported: Path
) -> None:
    """As README has it added."""
    for k in range(5):
        monkeypatch.setitem(SCHEDULES._functions, f"another-{k}", SCHEDULES["linear"])
    assert Report(reported).pictures["schedules.svg"]


@pytest.mark.parametrize(
    ("name", "message"), [("loss.png", "damaged"), ("data.png", "does not fit the rest of the run")]
)
@pytest.mark.parametrize("content", [b"no picture", b""])
def test_a_damaged_picture_is_a_sentence(
    reported: Path, tmp_path: Path, name: str, message: str, content: bytes
) -> None:
    run = Path(shutil.copytree(reported, tmp_path / "run"))
    (run / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        write_report(run)


@pytest.mark.parametrize("guidance", [1.0, None])
def test_guidance_is_reported_as_it_is(
    train: Callable[..., Path], run: Path, guidance: float | None
) -> None:
    said = text_of(train(conditional=True, steps=2, snapshots=2, guidance=guidance))
    assert f"This run's are sampled {'without' if guidance == 1 else 'with 1.50'}." in said
    assert "_Guidance_" not in text_of(run)


@pytest.mark.parametrize("content", ["", "[]", '{"format": 7}', "{half"])
def test_damaged_metrics_are_named(reported: Path, tmp_path: Path, content: str) -> None:
    run = Path(shutil.copytree(reported, tmp_path / "run"))
    (run / "metrics.json").write_text(content)
    with pytest.raises(UserError, match=r"metrics\.json can't be read"):
        write_report(run)


def test_no_run_no_report(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_colour_and_strange_names(train: Callable[..., Path], tmp_path: Path) -> None:
    """A data set whose name is full of marks, in colour, without labels."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 6, 9, 3), dtype=np.uint8)
    folder = write_idx(tmp_path / "_my$ *data* #1 [x]@y", pixels)
    run = train(data=str(folder), steps=2, snapshots=2)
    write_report(run)
    assert "_my$ *data* #1 [x]@y" in pdf_text(run / "report.pdf")
    assert "6 \N{MULTIPLICATION SIGN} 9 pixels, 3 colours" in pdf_text(run / "report.pdf")


def test_an_unfinished_run_says_so(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    lines = (copy / "log.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["step"] <= 7]
    (copy / "log.jsonl").write_text("".join(f"{line}\n" for line in kept))
    for name in ("loss.png", "timeline.png", "model.safetensors", "data.png"):
        (copy / name).unlink()
    write_report(copy)
    document = pdf_text(copy / "report.pdf")
    assert "The run was interrupted" in document
    assert Run(copy).command() in [block.command for block in blocks_of(copy, Missing)]
    assert "undiffuse train --steps" in document
    assert blocks_of(copy, Command) == []
    assert "--replay" not in document
    assert "7 steps" in document


def test_headings_are_nested(reported: Path) -> None:
    levels = [block.level for block in blocks_of(reported, Heading)]
    assert levels[0] == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))


def test_the_notebooks_cells_are_a_program(
    monkeypatch: pytest.MonkeyPatch, reported: Path, tmp_path: Path
) -> None:
    """They run from top to bottom in the run folder, and show what the file says they show."""
    book = nbformat.read(reported / "report.ipynb", as_version=4)
    cells = [cell.source for cell in book.cells if cell.cell_type == "code"]
    program = tmp_path / "cells.py"
    program.write_text("\n".join(cells))
    monkeypatch.chdir(reported)
    names = runpy.run_path(str(program))
    assert [len(row) for row in names["rows"]] == [10, 10, 10]
    spreads = [
        cell.outputs[0].data["text/plain"] for cell in book.cells
        if cell.cell_type == "code" and "round(spread" in cell.source
    ]  # fmt: skip
    (shown,) = map(ast.literal_eval, spreads)
    assert shown == {
        name: round(names["spread"](row), 1)
        for name, row in zip(("posterior-mean", "ddpm", "ddim"), names["rows"], strict=True)
    }
    pictures = [cell for cell in book.cells if "image_grid(" in cell.source]
    assert len(pictures) == 3
    assert all("image/png" in cell.outputs[0].data for cell in pictures)


@pytest.mark.slow
def test_the_notebook_runs(reported: Path) -> None:
    from nbclient import NotebookClient

    book = nbformat.read(reported / "report.ipynb", as_version=4)
    place = {"metadata": {"path": str(reported)}}
    NotebookClient(book, timeout=300, kernel_name="python3", resources=place).execute()
    programs = [cell for cell in book.cells if cell.cell_type == "code"]
    outputs = [cell.outputs for cell in programs if cell.source.startswith("report.figure")]
    assert all(out and set(out[0].data) & {"image/png", "image/svg+xml"} for out in outputs)
