"""The site's source: the tree's documents where they stand, and the API reference beside them.

    python -m docs.site.reference FOLDER

The reference is made from the OpenAPI documents of the services that have one, and from AsyncAPI. The
router's API is OpenAI's; services/router/README.md says what it takes and refuses.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from fastapi import FastAPI

from services.feedback import api as feedback_api
from services.feedback.metrics import FeedbackMetrics
from services.feedback.read_model.api import QueryApi, query_router
from services.inference import api as inference_api
from services.inference.generation_api import generation_router
from services.rollout import routes as rollout_routes
from services.rollout.access import Access
from services.rollout.api import RolloutApi
from services.rollout.console.operator_actions import OperatorActions
from services.rollout.console.operator_views import OperatorViews
from shared.contracts.generate import ASYNCAPI, CONTRACTS
from shared.keys import KeyRing

ROOT = Path(__file__).parents[2]
INDEX = Path(__file__).parent / "index.md"
METHODS = ("get", "post", "put", "patch", "delete")
Node = dict[str, Any]


def feedback_app() -> FastAPI:
    """Feedback's routes over parts without a state."""
    queries = query_router(QueryApi.__new__(QueryApi))
    api = feedback_api.FeedbackApi.__new__(feedback_api.FeedbackApi)
    return feedback_api.create_app(api, FeedbackMetrics.__new__(FeedbackMetrics), queries)


def inference_app() -> FastAPI:
    """The adapter agent's routes over parts without a state."""
    nothing: Any = None
    keys = KeyRing(required=True)
    generation = generation_router(nothing, nothing, nothing, nothing, keys, nothing)
    return inference_api.create_app(nothing, nothing, keys, generation, nothing, nothing)


def rollout_app() -> FastAPI:
    """The controller's routes over parts without a state."""
    made = (one.__new__(one) for one in (RolloutApi, OperatorViews, OperatorActions, Access))
    return rollout_routes.create_app(*made)  # type: ignore[arg-type]


def documents() -> dict[str, Node]:
    """OpenAPI document of each service that has one."""
    apps = {"feedback": feedback_app, "inference": inference_app, "rollout": rollout_app}
    return {name: app().openapi() for name, app in apps.items()}


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
        lines += [f"## {name}", "", _prose(operation.get("summary")), ""]
        if (description := operation.get("description")) != operation.get("summary"):
            lines += [_prose(description), ""]
        parameters = (
            (f"`{one['name']}`", one["in"], _type(one["schema"]), _cell(one.get("description")))
            for one in operation.get("parameters", ())
        )
        lines += _table(("parameter", "in", "type", "meaning"), parameters)
        if "requestBody" in operation:
            lines += [f"Body: {_contents(operation['requestBody'])}", ""]
        answers = (
            (status, _cell(answer.get("description")), _contents(answer))
            for status, answer in operation["responses"].items()
        )
        lines += _table(("status", "meaning", "body"), answers)
    lines += ["## Schemas", ""]
    for name, schema in document["components"]["schemas"].items():
        lines += _schema(name, schema)
    return "\n".join(lines)


def asyncapi_page() -> str:
    """A Markdown page: each topic with its key, writers, readers and events."""
    document = yaml.safe_load(ASYNCAPI.read_text())
    roles: dict[tuple[str, str], list[str]] = {}
    for name, operation in document["operations"].items():
        channel = operation["channel"]["$ref"].rpartition("/")[2]
        roles.setdefault((channel, operation["action"]), []).append(name.partition(".")[0])
    lines = ["# API: topics and events", "", _prose(document["info"]["description"]), ""]
    for name, channel in document["channels"].items():
        lines += [f"## {channel['address']}", "", _prose(channel["description"]), ""]
        sides = (
            (said, ", ".join(roles.get((name, action), ())) or "–")
            for said, action in (("written by", "send"), ("read by", "receive"))
        )
        events = (f"[{event}](#{event.lower()})" for event in channel["messages"])
        config = channel["bindings"]["kafka"]["topicConfiguration"]
        settings = ", ".join(f"`{key}={value}`" for key, value in config.items())
        rows = [*sides, ("events", ", ".join(events) or "–"), ("settings", settings or "–")]
        lines += _table(("what", "is"), rows)
    lines += ["## Events", ""]
    for name, message in document["components"]["messages"].items():
        schema = json.loads((CONTRACTS / message["payload"]["$ref"]).read_text())
        lines += _schema(name, schema, f"`{message['name']}`. ")
    return "\n".join(lines)


def _schema(name: str, schema: Node, before: str = "") -> list[str]:
    required = schema.get("required", ())
    rows = (
        (
            f"`{field}`",
            _type(one),
            "yes" if field in required else "",
            _cell(one.get("description")),
        )
        for field, one in schema.get("properties", {}).items()
    )
    shape = [] if "properties" in schema else [f"Type: {_type(schema)}", ""]
    head = [f"### {name}", "", f"{before}{_prose(schema.get('description'))}", ""]
    return [*head, *shape, *_table(("field", "type", "required", "meaning"), rows)]


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
    low, high = schema.get("minimum"), schema.get("maximum")
    bounds = f" from {low}" * (low is not None) + f" to {high}" * (high is not None)
    longest = f" of at most {schema['maxLength']} characters" if "maxLength" in schema else ""
    return f"{kind}{bounds}{longest}"


def _contents(holder: Node) -> str:
    bodies = holder.get("content", {}).items()
    return ", ".join(f"{_type(one.get('schema', {}))} (`{kind}`)" for kind, one in bodies) or "–"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    body = [f"| {' | '.join(row)} |" for row in rows]
    rule = "|" + "---|" * len(head)
    return [f"| {' | '.join(head)} |", rule, *body, ""] if body else []


def _prose(text: str | None) -> str:
    return (text or "").replace("<", "&lt;").replace("*", "\\*")


def _cell(text: str | None) -> str:
    return " ".join(_prose(text).replace("|", "\\|").split())


def main() -> None:
    """Fill the folder anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    shutil.copy(INDEX, folder)
    (folder / "api").mkdir()
    for name, document in documents().items():
        (folder / "api" / f"{name}.md").write_text(openapi_page(document))
    (folder / "api" / "topics.md").write_text(asyncapi_page())


if __name__ == "__main__":
    main()
