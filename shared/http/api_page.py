"""An API as a page: Markdown of its OpenAPI document, and the HTML of that, which needs no network."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Iterator
from hashlib import sha256
from html import escape
from itertools import pairwise
from typing import Any, cast

from markdown_it import MarkdownIt

METHODS = ("get", "post", "put", "patch", "delete")
Node = dict[str, Any]
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
nav ul { columns: 22rem; list-style: none; padding: 0; }
h2, h3 { margin-top: 2.5rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; }
th, td { border: 1px solid #ccc; padding: .25rem .5rem; text-align: left; vertical-align: top; }
code { font-size: .9em; }
"""
PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; "
        f"style-src 'sha256-{b64encode(sha256(_STYLE.encode()).digest()).decode()}'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""Of the HTML: it loads nothing, from nowhere."""


def operations(document: Node) -> Iterator[tuple[str, Node]]:
    """(method and path, operation) of a document."""
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                yield f"{method.upper()} {path}", item[method]


def openapi_page(document: Node) -> str:
    """A Markdown page: each operation with parameters, body and answers, then each schema."""
    lines = [f"# API: {document['info']['title']}", ""]
    for name, operation in operations(document):
        lines += [f"## {name}", "", prose(operation.get("summary")), ""]
        if (description := operation.get("description")) != operation.get("summary"):
            lines += [prose(description), ""]
        parameters = (
            (f"`{one['name']}`", one["in"], _type(one["schema"]), cell(one.get("description")))
            for one in operation.get("parameters", ())
        )
        lines += table(("parameter", "in", "type", "meaning"), parameters)
        if "requestBody" in operation:
            lines += [f"Body: {_contents(operation['requestBody'])}", ""]
        answers = (
            (status, cell(answer.get("description")), _contents(answer))
            for status, answer in operation["responses"].items()
        )
        lines += table(("status", "meaning", "body"), answers)
    lines += ["## Schemas", ""]
    for name, schema in document["components"]["schemas"].items():
        lines += schema_section(name, schema)
    return "\n".join(lines)


def openapi_html(document: Node) -> str:
    """The page of `openapi_page` as HTML, with links to its operations; no script, nothing loaded."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(openapi_page(document))
    links: list[str] = []
    for token, inline in pairwise(tokens):
        if token.type == "heading_open":
            name = re.sub(r"\W+", "-", inline.content).strip("-").lower()
            token.attrSet("id", name)
            if token.tag == "h2":
                links.append(f'<li><a href="#{name}">{escape(inline.content)}</a></li>')
    title = escape(document["info"]["title"])
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body>"
        f'<nav><a href="openapi.json">openapi.json</a><ul>{"".join(links)}</ul></nav>'
        f"<main>{parser.renderer.render(tokens, parser.options, {})}</main></body></html>"
    )


def schema_section(name: str, schema: Node, before: str = "") -> list[str]:
    """Lines of Markdown about a schema: its meaning after `before`, and its fields."""
    required = schema.get("required", ())
    rows = (
        (
            f"`{field}`",
            _type(one),
            "yes" if field in required else "",
            cell(one.get("description")),
        )
        for field, one in schema.get("properties", {}).items()
    )
    shape = [] if "properties" in schema else [f"Type: {_type(schema)}", ""]
    head = [f"### {name}", "", f"{before}{prose(schema.get('description'))}", ""]
    return [*head, *shape, *table(("field", "type", "required", "meaning"), rows)]


def _type(schema: Node) -> str:
    """The schema in a few words: a name, alternatives, the values or the bounds."""
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return " or ".join(_type(one) for one in schema[union])
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return ", ".join(f"`{value}`" for value in values)
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if isinstance(values := schema.get("additionalProperties"), dict):
        return f"{_type(cast('Node', values))} by name"
    low, high = schema.get("minimum"), schema.get("maximum")
    bounds = f" from {low}" * (low is not None) + f" to {high}" * (high is not None)
    longest = f" of at most {schema['maxLength']} characters" if "maxLength" in schema else ""
    return f"{kind}{bounds}{longest}"


def _contents(holder: Node) -> str:
    bodies = holder.get("content", {}).items()
    return ", ".join(f"{_type(one.get('schema', {}))} (`{kind}`)" for kind, one in bodies) or "–"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Lines of a Markdown table; none without rows."""
    body = [f"| {' | '.join(row)} |" for row in rows]
    rule = "|" + "---|" * len(head)
    return [f"| {' | '.join(head)} |", rule, *body, ""] if body else []


def prose(text: str | None) -> str:
    """A text whose signs are no markup."""
    return (text or "").replace("<", "&lt;").replace("*", "\\*")


def cell(text: str | None) -> str:
    """A text as one cell of a table."""
    return " ".join(prose(text).replace("|", "\\|").split())
