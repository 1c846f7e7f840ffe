"""Markdown to safe HTML: raw HTML stays text, images and unsafe links too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token

SAFE_SCHEMES = ("http://", "https://", "mailto:")
MAX_NESTING = 20
"""Depth of nested blocks that is rendered; what lies deeper is left out."""


def _renderer() -> MarkdownIt:
    # No raw HTML and no images: an image's address would tell another server who votes on what.
    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": MAX_NESTING}).enable("table")
    parser.disable(["image", "html_block", "html_inline"])
    parser.validateLink = lambda url: url.lower().startswith(SAFE_SCHEMES)  # type: ignore[method-assign]
    parser.core.ruler.push("plain_attributes", _plain_attributes)
    return parser


def render(text: str) -> str:
    """The HTML of a text whose author is not trusted."""
    return _PARSER.render(text)


def _plain_attributes(state: StateCore) -> None:
    _clean(state.tokens)


def _clean(tokens: Sequence[Token]) -> None:
    """Links open elsewhere and name no referrer; inline styles would break the page's policy."""
    for token in tokens:
        attributes: dict[str, Any] = token.attrs
        attributes.pop("style", None)
        if token.type == "link_open":
            attributes |= {"target": "_blank", "rel": "noopener noreferrer nofollow"}
        _clean(token.children or ())


_PARSER = _renderer()
