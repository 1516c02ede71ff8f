"""Sphinx configuration."""

from lossdoctor import __version__ as release

project = "lossdoctor"
version = release
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
exclude_patterns = ["_build"]
myst_heading_anchors = 3
autodoc_typehints = "none"
nitpicky = False
