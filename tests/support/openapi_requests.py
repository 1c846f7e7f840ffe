"""Requests for every operation of an OpenAPI document: made by its schemas, then mutated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from tests.support.fuzzing import Mutations

METHODS = ("get", "post", "put", "patch", "delete")
_STRINGS = {
    "date-time": "2026-11-26T12:00:00Z",
    "date": "2026-11-26",
    "uuid": "0b0f6a1c-9e0c-4b58-8f5a-5a9d9c3f1f10",
}
_SEGMENTS = ("a", "t1", "assistant", "%00", "..", "x" * 300, "😀", "a/b", "")
_DEPTH = 6


@dataclass(frozen=True)
class FuzzedRequest:
    """One request; `template` is the path as the document has it."""

    method: str
    template: str
    url: str
    content: bytes
    headers: list[tuple[bytes, bytes]]


class OpenApiRequests:
    """The same document and seed give the same requests.

    `bodies` are valid ones by path, where a schema alone does not lead to any that is taken.
    """

    def __init__(
        self, document: dict[str, Any], seed: int, bodies: Mapping[str, Any] | None = None
    ) -> None:
        self._bodies = bodies or {}
        self.mutations = Mutations(seed)
        self._rng = self.mutations.rng
        self._document = document
        self.operations = [
            (method, path)
            for path, item in document["paths"].items()
            for method in METHODS
            if method in item
        ]

    def request(self) -> FuzzedRequest:
        """A request to any operation, one in eight of them with a method that it may not have."""
        method, template = self._rng.choice(self.operations)
        operation = self._document["paths"][template][method]
        path, query = template, list[tuple[str, str]]()
        for one in operation.get("parameters", ()):
            value = self._parameter(one["schema"])
            if one["in"] == "path":
                path = path.replace(f"{{{one['name']}}}", quote(self._segment(value), safe="%"))
            elif one["in"] == "query" and (one.get("required") or self._rng.random() < 0.6):
                query.append((one["name"], value))
        content = b""
        if described := operation.get("requestBody", {}).get("content"):
            schema = next(iter(described.values())).get("schema", {})
            valid = self._bodies.get(template)
            content = self.mutations.body(self.value(schema) if valid is None else valid)
        headers = self.mutations.headers()
        if self._rng.random() < 0.9:
            headers.append((b"content-type", b"application/json"))
        if self._rng.random() < 1 / 8:
            method = self._rng.choice(METHODS)
        url = path + (f"?{urlencode(query)}" if query else "")
        return FuzzedRequest(method.upper(), template, url, content, headers)

    def value(self, schema: dict[str, Any], depth: int = 0) -> Any:
        """A value that a schema allows, as far as its types, enumerations and bounds say so."""
        if reference := schema.get("$ref"):
            return self.value(self._document_part(reference), depth)
        if schema.get("examples"):
            return self._rng.choice(schema["examples"])
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._rng.choice(schema["enum"])
        for several in ("anyOf", "oneOf"):
            if several in schema:
                return self.value(self._rng.choice(schema[several]), depth)
        match schema.get("type"):
            case "object":
                return self._object(schema, depth)
            case "array":
                fewest = schema.get("minItems", 0)
                count = max(fewest, self._rng.randint(0, 2)) if depth < _DEPTH else fewest
                return [self.value(schema.get("items", {}), depth + 1) for _ in range(count)]
            case "integer" | "number":
                return schema.get("minimum", self._rng.randint(0, 5))
            case "boolean":
                return self._rng.random() < 0.5
            case "null":
                return None
            case _:
                text = _STRINGS.get(schema.get("format", ""), self._rng.choice(("a", "t1", "v2")))
                return text.ljust(schema.get("minLength", 0), "a")

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        required = schema.get("required", ())
        return {
            name: self.value(one, depth + 1)
            for name, one in schema.get("properties", {}).items()
            if name in required or (depth < _DEPTH and self._rng.random() < 0.5)
        }

    def _parameter(self, schema: dict[str, Any]) -> str:
        value = self.value(schema)
        if self._rng.random() < 0.3:
            value = self.mutations.value(value)
        text = value if isinstance(value, str) else json.dumps(value)
        return text.encode(errors="replace").decode()

    def _segment(self, value: str) -> str:
        return value if self._rng.random() < 0.5 else self._rng.choice(_SEGMENTS)

    def _document_part(self, reference: str) -> dict[str, Any]:
        node: Any = self._document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]
        return node
