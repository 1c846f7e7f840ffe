"""Sphinx's settings for the site of the documents: make docs."""

project = "Ratchet"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "Ratchet"
html_show_copyright = False
html_show_sourcelink = False
include_patterns = [
    "*.md",
    "api/*.md",
    "docs/**",
    "services/*/*.md",
    "demo/*.md",
    "deploy/*/README.md",
]
exclude_patterns = ["docs/site"]
myst_heading_anchors = 4
# A folder is no page: a link to one stays text. That it exists, tests/contract/test_docs.py says.
nitpick_ignore_regex = [("myst", r"(?:[\w.-]+/)*[\w-]+/?")]
