"""Reference pages made from the code: flags, tables, hyperparameters and docstrings.

```{flags} sample            the flags of a verb, from `undiffuse sample --help`
```{entries} SAMPLERS        what a table holds, from the functions in it
```{fields} Config           a configuration's fields: default, meaning, reason
```{records}                 the records of log.jsonl, from their dataclasses

Docstrings are plain text with code in single backticks. And every name in `undiffuse.__all__` must
have a page: otherwise the build fails.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, get_args

from docutils import nodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

import undiffuse

LOG = logging.getLogger(__name__)
FORMER = ("--label", "--groups", "--label-dropout", "--score-share")  # still understood


# --- docstrings ---


def spans(text: str) -> Iterator[nodes.Node]:
    """A paragraph of plain text, with code in single backticks, as nodes."""
    for number, part in enumerate(re.split(r"`([^`]+)`", " ".join(text.split()))):
        if part:
            yield nodes.literal(part, part) if number % 2 else nodes.Text(part)


def as_nodes(text: str) -> list[nodes.Node]:
    """A docstring: paragraphs, and what is indented as it stands."""
    found: list[nodes.Node] = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        if block.startswith("    "):
            found.append(nodes.literal_block(block, block, language="text"))
        else:
            found.append(nodes.paragraph(block, "", *spans(block)))
    return found


def as_rst(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """The same for autodoc, which wants reStructuredText."""
    text = "\n".join(lines)
    found = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        if block.startswith("    "):
            found += ["::", "", *block.splitlines(), ""]
            continue
        parts = re.split(r"`([^`]+)`", " ".join(block.split()))
        for number in range(0, len(parts), 2):
            parts[number] = re.sub(r"([\\*|_])", r"\\\1", parts[number])
        parts[1::2] = [f"\\ ``{code}``\\ " for code in parts[1::2]]
        found += ["".join(parts), ""]
    lines[:] = found


# --- what the code says of itself ---


def definitions(entries: list[tuple[str, list[nodes.Node]]]) -> nodes.definition_list:
    found = nodes.definition_list()
    for term, meaning in entries:
        own = nodes.term("", "", nodes.literal(term, term))
        found += nodes.definition_list_item("", own, nodes.definition("", *meaning))
    return found


@functools.cache
def help_of(verb: str) -> str:
    """`undiffuse VERB --help`, without line breaks."""
    command = [sys.executable, "-m", "undiffuse", verb, "--help"]
    wide = {**os.environ, "COLUMNS": "4000", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, env=wide, capture_output=True, text=True, check=True).stdout


def parsed(verb: str) -> list[tuple[str, str]]:
    """(a flag or argument with its kind of value, what the help says of it)."""
    found: list[tuple[str, str]] = []
    for line in help_of(verb).splitlines():
        if not line.startswith("│"):
            continue
        inside = line[1:].rstrip("│ ")
        term, _, meaning = inside[1:].partition("  ")
        if inside.startswith("  "):
            found[-1] = (found[-1][0], f"{found[-1][1]} {inside.strip()}".strip())
        else:
            found.append((term.strip(), meaning.strip()))
    return [(term.replace("{None}|", ""), meaning) for term, meaning in found]


def begun(text: str) -> str:
    """With a capital letter, unless it begins with a name of the code."""
    begins_with_name = re.match(r"[a-z-]* \||[a-z]*[^a-z -]", text)
    return text if begins_with_name else text[:1].upper() + text[1:]


class Reference(SphinxDirective):
    """A directive on a public name or on a verb."""

    required_arguments = 1

    def public(self) -> Any:
        try:
            return getattr(undiffuse, self.arguments[0])
        except AttributeError as error:
            raise self.error(str(error)) from error


class Flags(Reference):
    """The flags of a verb."""

    def run(self) -> list[nodes.Node]:
        entries = []
        for term, meaning in parsed(self.arguments[0]):
            if term.startswith("-h"):
                continue
            term = ", ".join(part for part in term.split(", ") if part.split()[0] not in FORMER)
            found = re.fullmatch(r"(.*?)(?: \(default: ([^()]*)\))?", meaning)
            assert found is not None
            text, default = found.groups()
            what, _, why = text.partition(" - ")
            what = begun(what)
            what += f". Why: {why}" if why else ""
            if default not in (None, "None"):
                what += f". Default: `{default}`"
            entries.append((term, [nodes.paragraph("", "", *spans(f"{what}."))]))
        if not entries:
            raise self.error(f"undiffuse {self.arguments[0]} --help lists no flags")
        return [definitions(entries)]


class Entries(Reference):
    """The entries of a table of functions, or of a mapping whose values have captions."""

    def run(self) -> list[nodes.Node]:
        table = self.public()
        entries = []
        for name in table:
            known = table.defaults(name) if hasattr(table, "defaults") else {}
            term = f"{name}:{','.join(f'{k}={self.written(v)}' for k, v in known.items())}"
            entry = table[name]
            doc = entry.__doc__ if callable(entry) else entry.caption
            entries.append((term.rstrip(":"), as_nodes((doc or "").replace("\n    ", "\n"))))
        return [definitions(entries)]

    @staticmethod
    def written(value: Any) -> str:
        parts = value if isinstance(value, tuple) else (value,)
        return "/".join(str(int(part)) if isinstance(part, bool) else str(part) for part in parts)


class Fields(Reference):
    """The fields of a configuration."""

    def run(self) -> list[nodes.Node]:
        entries = []
        for name, field in self.public().model_fields.items():
            what, _, why = (field.description or "").partition(" - ")
            what = begun(what)
            meaning = f"{what}. {f'Why: {why}. ' if why else ''}Default: `{field.default}`."
            entries.append((name, [nodes.paragraph("", "", *spans(meaning))]))
        return [definitions(entries)]


class Records(SphinxDirective):
    """The records of a run."""

    def run(self) -> list[nodes.Node]:
        from undiffuse.training.records import Record

        entries = []
        for kind in get_args(Record):
            fields = {field.name: field for field in dataclasses.fields(kind)}
            event = fields.pop("event").default
            own = [name for name in fields if name not in ("step", "time", "images")]
            listed = f"Class `{kind.__name__}`. Fields: {', '.join(f'`{name}`' for name in own)}."
            what = as_nodes((kind.__doc__ or "").replace("\n    ", "\n"))
            if own:
                what.append(nodes.paragraph("", "", *spans(listed)))
            entries.append((event, what))
        return [definitions(entries)]


# --- the check ---


def check_public_names(app: Any, env: Any) -> None:
    """A warning, which -W makes an error, for each public name without a description."""
    known = set(env.domains["py"].objects)
    for name in undiffuse.__all__:
        if f"undiffuse.{name}" not in known and not name.startswith("__"):
            LOG.warning("undiffuse.%s is public and no page describes it", name)


def setup(app: Any) -> dict[str, bool]:
    app.add_directive("flags", Flags)
    app.add_directive("entries", Entries)
    app.add_directive("fields", Fields)
    app.add_directive("records", Records)
    app.connect("autodoc-process-docstring", as_rst)
    app.connect("env-check-consistency", check_public_names)
    return {"parallel_read_safe": True}
