"""Sphinx configuration for both languages; `make docs` passes the language and source folder."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
# The reference imports Airflow, which writes a configuration file if there is none.
home = tempfile.TemporaryDirectory(prefix="airflow-")
os.environ.setdefault("AIRFLOW_HOME", home.name)
logging.getLogger("airflow").setLevel(logging.WARNING)  # it logs where its settings are

from airflow_provider_r7mail import __version__  # noqa: E402 - after the path

project = "airflow-provider-r7mail"
html_title = f"{project} {__version__}"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "generated"]

# Settings shared by both languages.
master_doc = "index"
myst_heading_anchors = 4
myst_enable_extensions = ["deflist"]

# Docstrings use single backticks for code, as in Markdown; parameters are shown with their types.
default_role = "literal"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
add_module_names = False

# Every reference to our own names must resolve, except type variables. Third-party names can't:
# their sites are not queried.
nitpick_ignore_regex = [("py:.*", r"(?!airflow_provider_r7mail\.).*|.*\.T")]

# Pygments doesn't know every SQL dialect: what it can't parse is shown without highlighting.
suppress_warnings = ["misc.highlighting_failure"]

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["extra.css"]
templates_path = ["_templates"]
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "sidebar/language.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
