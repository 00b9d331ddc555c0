"""Builds the site from the pages of docs/: ``make docs``."""

import inspect
import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring

import dithead

project = "DiT-Head"
version = release = dithead.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = f"DiT-Head {release}"
html_show_copyright = False
highlight_language = "none"  # for blocks that name no language
myst_heading_anchors = 3

autodoc_member_order = "bysource"
maximum_signature_line_length = 80
python_use_unqualified_type_names = True


def link_pages(app: Sphinx, docname: str, source: list[str]) -> None:
    """Make links of other pages' names, which the files write as paths in the repository."""
    source[0] = re.sub(r"(?<!\[)`docs/(\w[\w-]*\.md)`", r"[`docs/\1`](\1)", source[0])


def read_docstring(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Read sections in Google's style. Fields are plain text, colons included; in sections, a line
    may explain two arguments, and the type of what is returned is in the signature."""
    if what in ("attribute", "property"):
        return
    text = "\n".join(lines)
    for argument in inspect.signature(obj).parameters if callable(obj) else ():
        text = re.sub(rf"^( +)(\w+: .*\.) ({argument}: )", r"\1\2\n\1\3", text, flags=re.M)
    text = re.sub(r"^((?:Returns|Yields):\n +)", r"\1: ", text, flags=re.M)
    config = Config(napoleon_use_ivar=True)
    lines[:] = GoogleDocstring(text, config, app, what, name, obj, options).lines()


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", link_pages)
    app.connect("autodoc-process-docstring", read_docstring)
