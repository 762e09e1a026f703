"""The report of a run: what a student would hand in.

It reads the run folder and the source code of this package, and nothing else.

    source     what the report reads of the run folder
    words      how it writes numbers, and what it calls things
    blocks     what it is made of: headings, paragraphs, equations, figures, tables, code
    sections/  what it says, a file for each section
    pictures   the figures of images that it draws; charts: the curves; architecture: the network;
               mistakes: what a wrong line of code does
    numbers    the numbers of figures and tables, and references to them
    listing    source code, as a report shows it
    side_by_side  two runs in one document
    document   blocks as a page (HTML) and as a document (PDF)
    notebook   blocks as a Jupyter notebook; markdown: their text in it
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from undiffuse.base.errors import UserError
from undiffuse.measuring.summary import sentences
from undiffuse.report.blocks import Block, Code, Figure
from undiffuse.report.charts import drawings
from undiffuse.report.document import compile_document
from undiffuse.report.notebook import notebook, picture
from undiffuse.report.numbers import referred
from undiffuse.report.pictures import svg
from undiffuse.report.sections import AUDIENCES
from undiffuse.report.source import read
from undiffuse.report.words import data_name
from undiffuse.runs.figures import own_style
from undiffuse.runs.folder import Run


class Report:
    """The report of the run at `path`.

    audience: a name in `AUDIENCES`. author, course: shown below the title. Raises UserError where
    there is no run, and for an unknown audience."""

    def __init__(
        self, path: Path, *, audience: str = "student", author: str = "", course: str = ""
    ) -> None:
        self.run, self.audience = Run(path), audience
        self.byline = ", ".join(filter(None, (author.strip(), course.strip())))
        AUDIENCES.check(audience)
        with self.understood():
            self.content = read(self.run)
        self.title = f"A diffusion model of {data_name(self.content.about.facts.name)}"

    @property
    def findings(self) -> list[str]:
        """The main findings of the run's evaluation, a sentence each."""
        with self.understood():
            return list(sentences(self.content.evaluation)) if self.content.evaluation else []

    @cached_property
    def blocks(self) -> list[Block]:
        with self.understood():
            return referred(AUDIENCES[self.audience](self.content))

    @cached_property
    def pictures(self) -> dict[str, bytes]:
        """The bytes of every picture that the blocks name, by file name."""
        wanted = {block.name for block in self.blocks if isinstance(block, Figure)}
        with own_style(), self.understood():
            drawn = {
                f"{name}.svg": svg(draw(self.content))
                for name, draw in drawings(self.content).items()
                if name in wanted
            }
        kept = {
            name: content
            for name, content in self.content.pictures.items()
            if Path(name).stem in wanted and f"{Path(name).stem}.svg" not in drawn
        }
        return kept | drawn

    @contextmanager
    def understood(self) -> Iterator[None]:
        """A context in which an error about the content of a file is a UserError.

        It names the files whose content may be wrong."""
        try:
            yield
        except UserError:
            raise
        except (
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            ArithmeticError,
            RuntimeError,
            OSError,
        ) as error:
            results = [
                *self.run.path.glob("metrics.json"),
                *sorted(self.run.path.glob("study/*.json")),
            ]
            names = " or ".join(map(str, [self.run.path / "config.json", *results]))
            raise UserError(
                f"{names} does not fit the rest of the run ({error!r}); make that file anew, or "
                "the run"
            ) from error

    def write(self) -> list[Path]:
        """Write report.html, report.pdf and report.ipynb into the run folder. Returns the paths."""
        cells = self.notebook()  # first, because weights that do not fit are refused here
        page, document = compile_document(self.title, self.byline, self.blocks, self.pictures)
        files = {
            "report.html": page.encode(),
            "report.pdf": document,
            "report.ipynb": cells,
        }
        for name, content in files.items():
            self.run.write(name, content)
        return [self.run.path / name for name in files]

    def notebook(self) -> bytes:
        """The notebook's file."""
        has_weights = self.content.has_weights
        with own_style():
            return notebook(self.title, self.blocks, self.pictures, self.run.path, has_weights)

    # What the notebook's cells show.

    def figure(self, name: str) -> Shown:
        """A picture of the report, by its name."""
        file = next(file for file in self.pictures if Path(file).stem == name)
        alt = next(
            block.alt for block in self.blocks if isinstance(block, Figure) and block.name == name
        )
        return Shown(picture(self.pictures[file], file, alt))

    def source(self, file: str, line: int) -> Shown:
        """A piece of the package's code, by its file and first line."""
        found = next(
            b for b in self.blocks if isinstance(b, Code) and (b.file, b.line) == (file, line)
        )
        return Shown(
            {"text/markdown": f"`{file}`, line {line}\n```python\n{found.source.rstrip()}\n```"}
        )


class Shown:
    """What a cell of a notebook shows. forms: its content by MIME type."""

    def __init__(self, forms: dict[str, Any]) -> None:
        self.forms = forms

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return self.forms


def write_report(
    path: Path, *, audience: str = "student", author: str = "", course: str = ""
) -> list[Path]:
    """Write the report of a run into its folder. Returns the paths of its files.

    audience: "student", "instructor" or "paper". author, course: shown below the title. Raises
    UserError where there is no run, and for an unknown audience."""
    return Report(path, audience=audience, author=author, course=course).write()
