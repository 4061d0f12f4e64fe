"""The site: `make docs` builds docs/_build/html from these pages, offline; warnings are errors."""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]

project = "resnet_core"
author = "the authors of resnet_core"
copyright = author  # no date, so that two builds are equal
html_title = "resnet_core"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_show_sourcelink = html_copy_source = html_show_sphinx = False
html_show_search_summary = False  # it would fetch pages, which a browser refuses to a page from a file
html_theme_options = {"top_of_page_buttons": []}

extensions = ["myst_parser", "sphinx.ext.autodoc", "annotated", "repository"]
exclude_patterns = ["_build", "explorer", "annotated/notes", "figures"]
myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 4
myst_url_schemes = {
    "http": None,
    "https": None,
    "mailto": None,
    "repository": {"url": "{{path}}"},
    "explorer": {"url": "explorer/index.html#{{path}}?{{query}}"},
}
default_role = "code"  # in docstrings
autodoc_typehints = "none"
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"


def setup(app):
    app.connect("autodoc-process-docstring", read_docstring)
    app.connect("html-page-context", give_captions_their_level, priority=900)


def give_captions_their_level(app, name, template, context, doctree):
    """The captions of the sidebar are headings to a screen reader, which wants to know their level."""
    tree = context.get("furo_navigation_tree", "")
    context["furo_navigation_tree"] = tree.replace('role="heading"', 'role="heading" aria-level="2"')


def read_docstring(app, what, name, module, options, lines):
    """Of a folder's docstring only the first line is a text. Outside of code a `*` is a star, not an emphasis."""
    if what == "module":
        del lines[1:]
    for number, line in enumerate(lines):
        parts = line.split("`")
        parts[::2] = [text.replace("*", r"\*") for text in parts[::2]]
        lines[number] = "`".join(parts)
