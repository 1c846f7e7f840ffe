"""OpenAPI documents: what FastAPI cannot know of routes that read their requests themselves.

FastAPI describes what it validates. Errors here are problems, not its own validation errors, bodies
on the hot path are read raw, and path parameters may be read from the request. `describe` puts all of
that into the document, so that clients can be generated from it, and serves it as a page at `/docs`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema

from shared.http.api_page import PAGE_HEADERS, openapi_html
from shared.http.problems import PROBLEM_TYPE

DOCS = "/docs"
REF = "#/components/schemas/{model}"
_UNUSED = ("HTTPValidationError", "ValidationError")
"""Components of FastAPI's own errors, which `handle_errors` replaces."""
_OPERATIONS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")


class ProblemField(BaseModel):
    """A field of the request, the rule that it breaks, and what to do."""

    field: str
    rule: str
    remedy: str


class Problem(BaseModel):
    """Why a request was refused (RFC 9457)."""

    type: str = Field(description="always about:blank")
    title: str
    status: int
    code: str = Field(description="stable name for programs")
    detail: str = Field(description="what was wrong and what to do")
    errors: list[ProblemField] | None = None


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route for the problems that it answers with."""
    return {status: {"description": HTTPStatus(status).phrase} for status in statuses}


def answers(model: Any, *statuses: int) -> dict[str, Any]:
    """Arguments of a route whose answers with these statuses, else 200, are JSON of this model.

    The first status is that of an answer without one of its own. The model describes what the route
    writes, and neither checks nor changes it.
    """
    known = statuses or (int(HTTPStatus.OK),)
    said = {one: {"model": model, "description": HTTPStatus(one).phrase} for one in known}
    return {"status_code": known[0], "responses": said}


def text_answer(*media_types: str, said: str) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route that answers 200 with a text of one of these types."""
    content = {one: {"schema": {"type": "string"}} for one in media_types}
    return {200: {"description": said, "content": content}}


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """`requestBody` of a route that reads a model from the raw request."""
    return {"required": True, "content": json_content(model)}


def json_content(model: type[BaseModel]) -> dict[str, Any]:
    """`content` of a request or response that is this model."""
    return {"application/json": {"schema": {"$ref": REF.format(model=model.__name__)}}}


def query_parameters(model: type[BaseModel], *, without: str = "") -> list[dict[str, Any]]:
    """`parameters` of a route that reads a model from the raw query."""
    schema = model.model_json_schema(ref_template=REF)
    required = schema.get("required", ())
    return [
        {"name": name, "in": "query", "required": name in required, "schema": field}
        for name, field in schema["properties"].items()
        if name != without
    ]


def describe(
    app: FastAPI,
    models: Sequence[type[BaseModel]] = (),
    *,
    problems: Sequence[int] = (),
    writing: Sequence[int] = (),
) -> None:
    """Complete the document of an application whose routes may name `models`; `/docs` shows it.

    To be called before routes are added. An operation's id is its endpoint's name. `problems` are statuses of problems that every route may answer with, `writing` further ones of
    routes that are not read by GET.
    """

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _completed(app, models, problems, writing)
        return app.openapi_schema

    def page(_: Request) -> Response:
        return Response(openapi_html(app.openapi()), media_type="text/html", headers=PAGE_HEADERS)

    def operation_id(route: APIRoute) -> str:
        return route.name

    # Generated clients name a function by it; FastAPI's own is made of path and method.
    app.router.generate_unique_id_function = operation_id
    app.openapi = document  # type: ignore[method-assign]
    app.add_route(DOCS, page, include_in_schema=False)


def _completed(
    app: FastAPI,
    models: Sequence[type[BaseModel]],
    problems: Sequence[int],
    writing: Sequence[int],
) -> dict[str, Any]:
    found = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    components: dict[str, Any] = found.setdefault("components", {})
    schemas: dict[str, Any] = components.setdefault("schemas", {})
    for name in _UNUSED:
        schemas.pop(name, None)
    _, defined = models_json_schema(
        [(model, "validation") for model in (Problem, *models)], ref_template=REF
    )
    schemas.update(defined["$defs"])
    components["securitySchemes"] = {"apiKey": {"type": "http", "scheme": "bearer"}}
    # Without a key too: in the local profile none is asked for.
    found["security"] = [{"apiKey": []}, {}]
    for path, item in found["paths"].items():
        for method in _OPERATIONS:
            if method in item:
                further = () if method == "get" else writing
                _complete(path, item[method], (*problems, *further))
    return found


def _complete(path: str, operation: dict[str, Any], problems: Sequence[int]) -> None:
    parameters: list[dict[str, Any]] = operation.setdefault("parameters", [])
    declared = {one["name"] for one in parameters if one["in"] == "path"}
    parameters.extend(
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", path)
        if name not in declared
    )
    responses: dict[str, Any] = operation["responses"]
    for status in problems:
        responses.setdefault(str(status), {})
    for status, response in responses.items():
        for content in response.get("content", {}).values():
            if "$ref" in content["schema"]:  # what the route's annotation says beside it is less
                content["schema"] = {"$ref": content["schema"]["$ref"]}
        if status.isdigit() and int(status) >= HTTPStatus.BAD_REQUEST:
            response["content"] = {PROBLEM_TYPE: json_content(Problem)["application/json"]}
            response["description"] = HTTPStatus(int(status)).phrase
