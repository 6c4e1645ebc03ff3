"""Sphinx: `make docs`. The pages read as well where they are."""

import re

project = "rtpool_sync"
author = copyright = "rtpool_sync contributors"
extensions = ["myst_parser"]
html_theme = "furo"
root_doc = "index"
myst_heading_anchors = 3
# Links to files of the repository that are no pages of the site.
suppress_warnings = ["myst.xref_missing"]


def add_contents(app, docname, source):
    """Make the sidebar of what index.md links to: there it is a list that can be read everywhere."""
    if docname == root_doc:
        pages = re.findall(r"\]\(([\w/-]+)\.md\)", source[0])
        source[0] += "\n".join(["\n\n```{toctree}", ":hidden:", "", *pages, "```", ""])


def setup(app):
    app.connect("source-read", add_contents)
