"""Equations as MathML, made when the pages are built: browsers show it without any script."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert


def mathml(latex: str, display: str) -> str:
    """One equation. Bars and hats are those that browsers place well."""
    found = re.sub(r"\s+", " ", convert(latex.strip(), display=display))
    bar = r'<mover>(<mi>[^<]*</mi>)<mo stretchy="true">&#x000AF;</mo>'
    found = re.sub(bar, r'<mover accent="true">\1<mo>&#xAF;</mo>', found)
    return found.replace("<mo>&#x0005E;</mo></mover>", '<mo stretchy="false">&#x2C6;</mo></mover>')


def inline(self: Any, node: nodes.math) -> None:
    self.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def block(self: Any, node: nodes.math_block) -> None:
    number = f'<span class="eqno">({node["number"]})</span>' if node["number"] else ""
    equations = "".join(mathml(part, "block") for part in node.astext().split("\n\n"))
    self.body.append(self.starttag(node, "div", CLASS="equation"))
    self.body.append(f'<div class="formula">{equations}</div>{number}</div>\n')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
