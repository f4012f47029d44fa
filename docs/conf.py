"""The documentation site: python -m sphinx -W --keep-going -n -b html docs docs/_build

Everything that a page needs comes with it, so that the site can be read without a network.
"""

import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import realcustom_jax  # noqa: E402

project = "RealCustom++ in JAX"
author = "the authors of realcustom_jax"
copyright = "2026, the authors; Apache-2.0"
version = release = realcustom_jax.__version__

extensions = [
    "myst_nb", "sphinx.ext.autodoc", "sphinx_copybutton", "plain_docstrings",
    "repository_files", "term_anchors"]
exclude_patterns = ["_build", "jupyter_execute", "launch"]
repository_url = ""  # where the repository's files can be seen, such as https://host/owner/name/blob/main

html_theme = "furo"
html_title = "RealCustom++ in JAX"
html_theme_options = {"navigation_with_keys": True}
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False

# The notebooks are shown as they are in the repository; .ci/run executes them.
nb_execution_mode = "off"
nb_ipywidgets_js = {}
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
maximum_signature_line_length = 100
add_module_names = False

# With -n every name in a signature has to be found; these are of other libraries, or not part of the public face.
nitpick_ignore_regex = [
    (r"py:.*", r"(jax|numpy|np|flax|PIL|Image|collections|pathlib|transformers|typing|os|io)\..*"),
    (r"py:.*", r"ArrayLike|Array|ndarray|Path|Mapping|Sequence|Callable|Iterable|Any|Image|optional"),
    (r"py:.*", r"realcustom_jax\..*"),
]
