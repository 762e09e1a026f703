"""How Sphinx builds these pages: `make docs`, without a network."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent / "src")]

import undiffuse  # noqa: E402

project = "undiffuse"
author = "The undiffuse authors"
copyright = "2026, The undiffuse authors"
version = release = undiffuse.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "mathml", "reference"]
exclude_patterns = ["_build"]
suppress_warnings = ["config.cache"]

# A dead link, an unknown name or a missing picture is an error: `make docs` builds with -W and -n.
# Types in signatures that have no page of their own, such as torch.Tensor, are let through.
nitpicky = True
nitpick_ignore_regex = [("py:(class|obj|data)", r"(?!undiffuse\.\w+$).*")]

myst_enable_extensions = ["dollarmath", "deflist", "attrs_inline", "colon_fence"]
myst_heading_anchors = 3
myst_dmath_double_inline = False

add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 80
smartquotes = False  # "--out" is no dash

html_theme = "furo"
html_title = f"undiffuse {release}"
html_static_path = ["_static"]
html_css_files = ["undiffuse.css"]
html_show_sphinx = False
html_show_sourcelink = False
html_copy_source = False
