"""Answers are text: whatever they say, the page gets no element that could run or fetch."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.feedback.voting.markdown import SAFE_SCHEMES, render
from tests.support.xss import PAYLOADS

ELEMENTS = {
    *("p", "em", "strong", "code", "pre", "a", "ul", "ol", "li", "blockquote", "hr", "br"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"),
}
ATTRIBUTES = {"a": {"href", "target", "rel", "title"}, "code": {"class"}, "ol": {"start"}}


class Elements(HTMLParser):
    """Every element of a text with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def elements(text: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Elements()
    parser.feed(render(text))
    return parser.found


def check(text: str) -> None:
    for name, attributes in elements(text):
        assert name in ELEMENTS
        assert attributes.keys() <= ATTRIBUTES.get(name, set())
        if name == "a":
            assert (attributes["href"] or "").lower().startswith(SAFE_SCHEMES)
            assert attributes["rel"] == "noopener noreferrer nofollow"


def test_there_are_thirty_payloads() -> None:
    assert len(set(PAYLOADS)) == 30


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_payload_stays_text(payload: str) -> None:
    check(payload)


@given(st.lists(st.sampled_from([*PAYLOADS, "\n", "    ", "> ", "- ", "`", "*", "[", "]("])))
def test_no_mix_of_payloads_and_markdown_gets_an_element_in(parts: list[str]) -> None:
    check("".join(parts))


def test_markdown_is_rendered() -> None:
    names = [
        name for name, _ in elements("# T\n\n- **a** `b`\n\n| c |\n|-|\n| d |\n\n```py\ne\n```")
    ]
    assert {"h1", "li", "strong", "code", "table", "pre"} <= set(names)
    assert render("<b>bold</b>").strip() == "<p>&lt;b&gt;bold&lt;/b&gt;</p>"


@pytest.mark.timeout(10)
@pytest.mark.parametrize("text", ["[" * 20_000, "> " * 5_000, "*a" * 20_000, "`" * 50_000])
def test_a_text_made_to_be_slow_is_not(text: str) -> None:
    render(text)
