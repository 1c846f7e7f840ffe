"""The site of the documents: its contents name every page, its reference every operation and topic."""

from __future__ import annotations

import re

import pytest
from pygments.filters import RaiseOnErrorTokenFilter
from pygments.lexers import get_lexer_by_name

from docs.site.reference import (
    INDEX,
    ROOT,
    asyncapi_page,
    documents,
)
from shared.contracts.catalogue import BY_SCHEMA
from shared.http.api_page import openapi_page, operations
from shared.kafka.topics import load_topics

DOCUMENTS = documents()
ENTRIES = {
    line
    for tree in re.findall(r"^```{toctree}\n(.*?)^```", INDEX.read_text(), re.DOTALL | re.MULTILINE)
    for line in tree.splitlines()
    if line and not line.startswith(":")
}
BLOCK = re.compile(r"^ *```(\w+)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)


def test_the_contents_name_every_page_once() -> None:
    named = [path for entry in ENTRIES for path in ROOT.glob(f"{entry}.md")]
    assert len(named) == len(set(named))
    assert set(ROOT.glob("docs/**/*.md")) - {INDEX} <= set(named)


def test_the_site_is_built_on_every_change() -> None:
    assert "make docs" in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.parametrize("entry", sorted(ENTRIES))
def test_every_block_is_of_the_language_it_names(entry: str) -> None:
    # What Sphinx cannot read is a warning, which ends the build of the site.
    for page in ROOT.glob(f"{entry}.md"):
        for name, block in BLOCK.findall(page.read_text()):
            lexer = get_lexer_by_name(name, filters=[RaiseOnErrorTokenFilter()])
            list(lexer.get_tokens(block))


def test_every_entry_is_a_page() -> None:
    reference = {f"api/{name}" for name in [*DOCUMENTS, "topics"]}
    assert {entry for entry in ENTRIES if not [*ROOT.glob(f"{entry}.md")]} == reference


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_reference_has_every_operation_and_schema(name: str) -> None:
    page = openapi_page(DOCUMENTS[name])
    headings = re.findall(r"^##+ (.+)$", page, re.MULTILINE)
    wanted = [operation for operation, _ in operations(DOCUMENTS[name])]
    assert headings == [*wanted, "Schemas", *DOCUMENTS[name]["components"]["schemas"]]


def test_the_reference_says_types_bounds_and_meaning() -> None:
    page = openapi_page(DOCUMENTS["feedback"])
    assert "| `revision` | integer from 0 to 2147483647 |  |  |" in page
    assert "| `clamp` | query | boolean | bring a rating outside 1 to 5 into it |" in page
    assert "Body: FeedbackBody (`application/json`)" in page


def test_the_reference_has_every_topic_and_event() -> None:
    headings = re.findall(r"^##+ (.+)$", asyncapi_page(), re.MULTILINE)
    topics = [topic.name for topic in load_topics()]
    assert headings == [*topics, "Events", *(event.__name__ for event in BY_SCHEMA.values())]


def test_a_table_keeps_its_columns() -> None:
    pages = [asyncapi_page(), *map(openapi_page, DOCUMENTS.values())]
    for table in re.findall(r"(?:^\|.*\n)+", "\n".join(pages), re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1, table
