"""Sphinx configuration."""

from __future__ import annotations

from importlib import metadata

project = "helixnb"
author = "The helixnb authors"
copyright = "2026, the helixnb authors"  # noqa: A001  # Sphinx's name
release = metadata.version("helixnb")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_google_docstring = False
html_theme = "furo"
exclude_patterns = ["_build"]
