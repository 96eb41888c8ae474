"""Sphinx configuration."""

from __future__ import annotations

from importlib import metadata

project = "helixnb"
author = "The helixnb authors"
copyright = "2026, the helixnb authors"  # noqa: A001  # Sphinx's name
release = metadata.version("helixnb")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "helixnb"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "../helixnb/web/icon.svg"

default_role = "py:obj"  # in docstrings; what is no public name stays as it is
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = False

myst_heading_anchors = 3

# Notebooks are text, and run at every build: what they show is what this version does.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_execution_show_tb = True
nb_merge_streams = True
