"""Sphinx: `make docs`. The pages read as well where they are."""

project = "rtpool_sync"
author = copyright = "rtpool_sync contributors"
extensions = ["myst_parser"]
html_theme = "furo"
root_doc = "index"
myst_heading_anchors = 3
# Links to files of the repository that are no pages of the site; index.md is the table of contents.
suppress_warnings = ["myst.xref_missing", "toc.not_included"]
