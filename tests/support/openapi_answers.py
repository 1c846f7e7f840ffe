"""Answers of an API held against its OpenAPI document, more strictly than clients do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import httpx
from jsonschema import Draft202012Validator

from docs.site.reference import documents
from shared.http.problems import PROBLEM_TYPE

Node = dict[str, Any]
JSON = ("application/json", PROBLEM_TYPE)
OUTSIDE = frozenset((404, 405, 500))
"""Statuses of a path or a method that the document does not have, and of a failure of the service."""


class DocumentedAnswers:
    """Every JSON answer has a documented status, and a body without a field that is not documented."""

    def __init__(self, document: Node) -> None:
        self._components: Node = _closed({"schemas": document["components"]["schemas"]})
        self._operations = [
            (re.compile(re.sub(r"{\w+}", segment, path)), method.upper(), operation)
            for segment in ("[^/]+", ".+")
            for path, item in document["paths"].items()
            for method, operation in item.items()
        ]

    async def check(self, answer: httpx.Response) -> None:
        """A hook of a client.

        Raises:
            AssertionError: the answer is not as the document says.

        """
        request = answer.request
        asked = f"{request.method} {request.url.path}"
        operation = self._operation(request)
        if operation is None:
            return
        documented = operation["responses"].get(str(answer.status_code))
        assert documented or answer.status_code in OUTSIDE, f"{asked}: no {answer.status_code}"
        kind = answer.headers.get("content-type", "").partition(";")[0]
        if not documented or kind not in JSON:
            return
        await answer.aread()
        schema = {**documented["content"][kind]["schema"], "components": self._components}
        for error in Draft202012Validator(schema).iter_errors(answer.json()):
            raise AssertionError(f"{asked} {answer.status_code} {error.json_path}: {error.message}")

    def _operation(self, request: httpx.Request) -> Node | None:
        found = (
            operation
            for pattern, method, operation in self._operations
            if method == request.method and pattern.fullmatch(request.url.path)
        )
        return next(found, None)


@cache
def _documents() -> dict[str, Node]:
    return documents()


@cache
def documented(service: str) -> DocumentedAnswers:
    """The answers that a service documents."""
    return DocumentedAnswers(_documents()[service])


def hooks(service: str) -> dict[str, list[Any]]:
    """`event_hooks` of a client that asks a service."""
    return {"response": [documented(service).check]}


def untyped(schema: Node, document: Node) -> Iterator[str]:
    """What of an answer a client can only know as anything: the answer itself, or a list's items."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        yield from (
            f"{name}{one}" for one in untyped(document["components"]["schemas"][name], document)
        )
        return
    for union in ("anyOf", "oneOf", "allOf"):
        if union in schema:
            for one in schema[union]:
                yield from untyped(one, document)
            return
    match schema.get("type"):
        case "object":
            if not schema.get("properties") and not isinstance(
                schema.get("additionalProperties"), dict
            ):
                yield ": an object without fields"
        case "array":
            yield from (f"[]{one}" for one in untyped(schema.get("items", {}), document))
        case None if "enum" not in schema and "const" not in schema:
            yield ": anything"
        case _:
            pass


def _closed(node: Any) -> Any:
    """The schemas, with no fields allowed but those that they name."""
    match node:
        case dict():
            made = {name: _closed(value) for name, value in node.items()}
            if isinstance(node.get("properties"), dict) and node.get("type") == "object":
                made.setdefault("additionalProperties", False)
            return made
        case list():
            return [_closed(one) for one in node]
        case _:
            return node
