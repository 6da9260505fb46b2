"""How Sphinx makes the site; `build.py` gathers what it is made of."""

project = "rebasin"
author = "the founders of rebasin"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

nb_execution_mode = "off"  # the notebooks are committed as executed
nb_mime_priority_overrides = [("html", "text/html", 0), ("html", "image/png", 5)]
nb_ipywidgets_js = {}  # which would come from the network
myst_heading_anchors = 3
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"

html_theme = "sphinx_book_theme"
html_title = "rebasin"
html_static_path = ["_static"]
html_js_files = ["plotly.min.js"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_show_copyright = False
html_theme_options = {"use_download_button": False, "show_toc_level": 2}
