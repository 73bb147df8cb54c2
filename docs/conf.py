"""Configuration of the documentation (``make docs``)."""

from __future__ import annotations

from importlib.metadata import version as installed_version

project = "datafree"
author = "the datafree authors"
release = installed_version("datafree")
version = release

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"datafree {release}"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
# Attributes of plain classes are documented in the class docstring, fields of configurations by a
# string under each.
napoleon_use_ivar = True
napoleon_numpy_docstring = False
