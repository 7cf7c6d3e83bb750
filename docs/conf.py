"""How Sphinx builds these pages: ``make docs``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from handoff_dask import __version__

project = "handoff_dask"
author = "The handoff_dask founders"
copyright = author
version = release = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "numpydoc",
    "myst_nb",
    "sphinx_copybutton",
    "handoff_pages",
]
exclude_patterns = ["_build", "jupyter_execute", "README.md"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}

# Pages

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
# `make notebooks` has run them: the copies in docs/notebooks contain the outputs.
nb_execution_mode = "off"
copybutton_exclude = ".linenos, .gp, .go"

# Docstrings

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autosummary_generate = False
numpydoc_show_class_members = False
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
# Docstrings that differ from the code are errors: unknown parameters, or another order.
numpydoc_validation_checks = {"PR02", "PR03"}

# Every reference to one of our names must resolve. Other projects' documentation cannot be resolved
# without a network.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!handoff_dask).*"),
    # Types that users see but do not write.
    (r"py:class", r"handoff_dask\.client\.(explaining\.Verdict|planning\.Tried)"),
    (r"py:class", r"handoff_dask\.model\.function\.Collocated"),
    # The class of the DAG itself.
    (r"py:class", r"handoff_dask\.model\.dag\.Self"),
    # A value, or an awaitable of one.
    (r"py:class", r"handoff_dask\.client\.\w+\.\w+Answer"),
]

# Looks

html_theme = "furo"
html_title = f"handoff_dask {version}"
html_static_path = ["_static"]
html_css_files = ["handoff.css"]
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "github-dark"
