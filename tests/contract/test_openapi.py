"""Each service's OpenAPI document is valid and whole: references, parameters, bodies, problems."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import unescape
from typing import Any

import httpx
import pytest
from openapi_spec_validator import validate

from docs.site.reference import APPS, documents
from shared.http.api_page import operations
from tests.support.openapi_answers import untyped

PROBLEM = "#/components/schemas/Problem"
PROBLEM_TYPE = "application/problem+json"


DOCUMENTS = documents()
each_document = pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS)


def references(node: Any) -> Iterator[str]:
    match node:
        case dict():
            if isinstance(node.get("$ref"), str):
                yield node["$ref"]
            for value in node.values():
                yield from references(value)
        case list():
            for value in node:
                yield from references(value)
        case _:
            pass


@each_document
def test_the_document_is_valid(document: dict[str, Any]) -> None:
    validate(document)


@each_document
def test_every_reference_resolves(document: dict[str, Any]) -> None:
    found = set(references(document))
    assert found, "the document names no schema"
    for reference in found:
        node: Any = document
        for part in reference.removeprefix("#/").split("/"):
            assert part in node, reference
            node = node[part]


@each_document
def test_every_path_parameter_is_declared(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        declared = [one["name"] for one in operation.get("parameters", ()) if one["in"] == "path"]
        assert sorted(declared) == sorted(re.findall(r"{(\w+)}", name)), name


@each_document
def test_every_operation_says_what_it_is_how_it_succeeds_and_how_it_refuses(
    document: dict[str, Any],
) -> None:
    for name, operation in operations(document):
        assert operation.get("summary") or operation.get("description"), name
        refusals = {
            status: answer for status, answer in operation["responses"].items() if status >= "4"
        }
        assert len(operation["responses"]) > len(refusals), f"{name}: no success"
        assert "401" in refusals or name == "GET /v1/adapters", name
        for status, answer in refusals.items():
            schema = answer["content"][PROBLEM_TYPE]["schema"]
            assert schema == {"$ref": PROBLEM}, f"{name} {status}"


@each_document
def test_every_answer_has_a_type(document: dict[str, Any]) -> None:
    """So that a client generated from it knows what it got."""
    for name, operation in operations(document):
        for status, answer in operation["responses"].items():
            assert answer.get("content"), f"{name} {status}: no body"
            for kind, content in answer["content"].items():
                found = list(untyped(content["schema"], document))
                assert not found, f"{name} {status} {kind}: {found}"


@pytest.mark.parametrize(
    ("schema", "found"),
    [
        ({}, [": anything"]),
        ({"type": "object", "additionalProperties": True}, [": an object without fields"]),
        ({"type": "object", "additionalProperties": {"type": "string"}}, []),
        ({"type": "array", "items": {}}, ["[]: anything"]),
        ({"anyOf": [{"type": "null"}, {"$ref": "#/components/schemas/A"}]}, ["A: anything"]),
        ({"enum": ["a"]}, []),
    ],
)
def test_an_answer_without_a_type_is_found(schema: dict[str, Any], found: list[str]) -> None:
    document = {"components": {"schemas": {"A": {"title": "A"}}}}
    assert list(untyped(schema, document)) == found


@each_document
def test_every_schema_has_a_name_of_its_own(document: dict[str, Any]) -> None:
    """FastAPI makes one up for a model that differs as input and output, or is in two modules."""
    names = [*document["components"]["schemas"]]
    assert [name for name in names if not re.fullmatch(r"[A-Z][A-Za-z]*", name)] == []


@pytest.mark.parametrize("service", APPS)
async def test_docs_is_a_whole_page_that_loads_nothing(service: str) -> None:
    document = DOCUMENTS[service]
    transport = httpx.ASGITransport(APPS[service]())
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as http:
        page = await http.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-security-policy"].startswith(
        "default-src 'none'; style-src 'sha256"
    )
    assert not re.findall(r"<(?:script|link|img|iframe|object)|\bsrc=|url\(|@import", page.text)
    assert {*re.findall(r'href="([^"#]+)', page.text)} == {"openapi.json"}
    ids = re.findall(r'id="([^"]+)"', page.text)
    assert len(ids) == len(set(ids))
    assert {*re.findall(r'href="#([^"]+)', page.text)} <= set(ids)
    headings = [unescape(one) for one in re.findall(r"<h[23] id=[^>]+>(.*?)</h", page.text)]
    wanted = [name for name, _ in operations(document)]
    assert headings == [*wanted, "Schemas", *document["components"]["schemas"]]


@each_document
def test_operation_ids_are_unique(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, operation in operations(document)]
    assert len(ids) == len(set(ids))


def test_ingestion_documents_its_bodies_and_answers() -> None:
    paths = DOCUMENTS["feedback"]["paths"]

    def schema_of(holder: dict[str, Any]) -> str:
        return holder["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]

    one, batch = paths["/v1/feedback"]["post"], paths["/v1/feedback/batch"]["post"]
    assert schema_of(one["requestBody"]) == "FeedbackBody"
    kinds = DOCUMENTS["feedback"]["components"]["schemas"]["FeedbackBody"]["anyOf"]
    assert {kind["$ref"].rpartition("/")[2] for kind in kinds} == {"Submission", "SignalSubmission"}
    assert schema_of(batch["requestBody"]) == "FeedbackBatch"
    assert schema_of(one["responses"]["202"]) == "FeedbackReceipt"
    assert schema_of(batch["responses"]["202"]) == "BatchResults"
    assert schema_of(batch["responses"]["207"]) == "BatchResults"
    assert {"422", "503"} <= set(one["responses"])
    withdrawal = paths["/v1/feedback/{feedback_id}"]["delete"]
    required = {one["name"] for one in withdrawal["parameters"] if one["required"]}
    assert required == {"feedback_id", "trace_id"}
    listing = paths["/v1/examples"]["get"]
    names = {one["name"] for one in listing["parameters"]}
    assert {"kind", "version", "since", "until", "category", "cursor", "limit"} <= names


@each_document
def test_no_request_names_a_tenant_but_that_for_a_key(document: dict[str, Any]) -> None:
    """A caller's tenant is its key's; whose key is issued, the rollout service checks."""
    naming: set[str] = set()
    for name, operation in operations(document):
        asked: list[Any] = [operation.get("parameters", []), operation.get("requestBody", {})]
        seen: set[str] = set()
        while asked:
            node = asked.pop()
            if '"tenant"' in json.dumps(node):
                naming.add(name)
            for reference in set(references(node)) - seen:
                seen.add(reference)
                asked.append(document["components"]["schemas"][reference.rpartition("/")[2]])
    assert naming == {"POST /v1/keys"} & {name for name, _ in operations(document)}
