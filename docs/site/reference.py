"""The site's source: the tree's documents where they stand, and the API reference beside them.

    python -m docs.site.reference FOLDER

The reference is made from the OpenAPI documents of the services that have one, and from AsyncAPI. The
router's API is OpenAI's; services/router/README.md says what it takes and refuses.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import yaml
from fastapi import FastAPI

from services.feedback import api as feedback_api
from services.feedback.annotation.api import annotation_router
from services.feedback.erasure.api import user_router
from services.feedback.read_model.api import query_router
from services.feedback.voting.mount import VotingOptions, mount_voting
from services.inference import api as inference_api
from services.inference.generation_api import generation_router
from services.rollout import routes as rollout_routes
from services.rollout.access import Access
from services.rollout.api import RolloutApi
from services.rollout.console.operator_actions import OperatorActions
from services.rollout.console.operator_views import OperatorViews
from shared.contracts.generate import ASYNCAPI, CONTRACTS
from shared.http.api_page import Node, openapi_page, prose, schema_section, table
from shared.keys import KeyRing

ROOT = Path(__file__).parents[2]
INDEX = Path(__file__).parent / "index.md"


def feedback_app() -> FastAPI:
    """Feedback's routes over parts without a state."""
    nothing: Any = None
    routers = (query_router(nothing), annotation_router(nothing), user_router(nothing))
    api = feedback_api.FeedbackApi.__new__(feedback_api.FeedbackApi)
    app = feedback_api.create_app(api, nothing, *routers)
    mount_voting(app, nothing, VotingOptions(nothing, None, ""), nothing, nothing)
    return app


def inference_app() -> FastAPI:
    """The adapter agent's routes over parts without a state."""
    nothing: Any = None
    keys = KeyRing(required=True)
    generation = generation_router(nothing, nothing, nothing, nothing, keys, nothing, nothing)
    return inference_api.create_app(nothing, nothing, keys, generation, nothing, nothing)


def rollout_app() -> FastAPI:
    """The controller's routes over parts without a state."""
    made = (one.__new__(one) for one in (RolloutApi, OperatorViews, OperatorActions, Access))
    return rollout_routes.create_app(*made)  # type: ignore[arg-type]


APPS = {"feedback": feedback_app, "inference": inference_app, "rollout": rollout_app}


def documents() -> dict[str, Node]:
    """OpenAPI document of each service that has one."""
    return {name: app().openapi() for name, app in APPS.items()}


def asyncapi_page() -> str:
    """A Markdown page: each topic with its key, writers, readers and events."""
    document = yaml.safe_load(ASYNCAPI.read_text())
    roles: dict[tuple[str, str], list[str]] = {}
    for name, operation in document["operations"].items():
        channel = operation["channel"]["$ref"].rpartition("/")[2]
        roles.setdefault((channel, operation["action"]), []).append(name.partition(".")[0])
    lines = ["# API: topics and events", "", prose(document["info"]["description"]), ""]
    for name, channel in document["channels"].items():
        lines += [f"## {channel['address']}", "", prose(channel["description"]), ""]
        sides = (
            (said, ", ".join(roles.get((name, action), ())) or "–")
            for said, action in (("written by", "send"), ("read by", "receive"))
        )
        events = (f"[{event}](#{event.lower()})" for event in channel["messages"])
        config = channel["bindings"]["kafka"]["topicConfiguration"]
        settings = ", ".join(f"`{key}={value}`" for key, value in config.items())
        rows = [*sides, ("events", ", ".join(events) or "–"), ("settings", settings or "–")]
        lines += table(("what", "is"), rows)
    lines += ["## Events", ""]
    for name, message in document["components"]["messages"].items():
        schema = json.loads((CONTRACTS / message["payload"]["$ref"]).read_text())
        lines += schema_section(name, schema, f"`{message['name']}`. ")
    return "\n".join(lines)


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
