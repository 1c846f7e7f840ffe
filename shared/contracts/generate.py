"""Writes JSON Schemas (events, recipes) and the AsyncAPI document: `make contracts`.

`--check` writes nothing and fails where a file is not what the classes say. `--release` also
freezes the schemas as the next released generation, which every later one must be compatible with.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from shared.contracts.catalogue import BY_SCHEMA, events_of
from shared.contracts.recipes import json_schema as recipe_schema
from shared.contracts.topics import load_topics

CONTRACTS = Path(__file__).parent
SCHEMAS = CONTRACTS / "schemas"
RELEASED = CONTRACTS / "released"
ASYNCAPI = CONTRACTS / "asyncapi.yaml"
RECIPE = CONTRACTS / "recipe.schema.json"
ASYNCAPI_VERSION = "3.0.0"


def schemas() -> dict[str, str]:
    """JSON Schema (2020-12) text of each event, by the schema's name."""
    return {
        name: json.dumps(event.model_json_schema(), indent=1, sort_keys=True) + "\n"
        for name, event in BY_SCHEMA.items()
    }


def asyncapi() -> str:
    """The AsyncAPI 3 document of all topics."""
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    for topic in load_topics():
        name = topic.name.replace("{tenant}", "-tenant-")
        messages = {
            event.__name__: {"$ref": f"#/components/messages/{event.__name__}"}
            for event in events_of(topic)
        }
        channels[name] = {
            "address": topic.name,
            "description": f"{topic.description.strip()} Key: {topic.key}.",
            "messages": messages,
            **({"parameters": {"tenant": {}}} if "{tenant}" in topic.name else {}),
            "bindings": {"kafka": {"topicConfiguration": dict(topic.config)}},
        }
        for role, services in (("send", topic.writers), ("receive", topic.readers)):
            for service in services:
                operations[f"{service}.{role}.{name}"] = {
                    "action": role,
                    "channel": {"$ref": f"#/channels/{name}"},
                }
    messages = {
        event.__name__: {
            "name": event.ce_type,
            "contentType": "application/json",
            "summary": (event.__doc__ or "").strip().splitlines()[0],
            "payload": {"$ref": f"schemas/{name}.json"},
        }
        for name, event in BY_SCHEMA.items()
    }
    document = {
        "asyncapi": ASYNCAPI_VERSION,
        "info": {
            "title": "Ratchet",
            "version": "1",
            "description": "CloudEvents 1.0 in Kafka's binary mode: ce_* and traceparent in headers.",
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages},
    }
    return yaml.safe_dump(document, sort_keys=False, width=100, allow_unicode=True)


def wanted() -> dict[Path, str]:
    """Every generated file with its text."""
    files = {SCHEMAS / f"{name}.json": text for name, text in schemas().items()}
    recipe = json.dumps(recipe_schema(), indent=1, sort_keys=True) + "\n"
    return {**files, ASYNCAPI: asyncapi(), RECIPE: recipe}


def stale() -> list[Path]:
    """Generated files that are missing, differ, or belong to no class any more."""
    files = wanted()
    differing = [p for p, text in files.items() if not p.exists() or p.read_text() != text]
    return differing + [path for path in SCHEMAS.glob("*.json") if path not in files]


def generations() -> list[Path]:
    """Folders of released schemas, oldest first."""
    return sorted(RELEASED.glob("*"), key=lambda path: int(path.name))


def main() -> int:
    """Generate, check or release; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--release", action="store_true")
    arguments = parser.parse_args()
    if arguments.check:
        for path in stale():
            print(f"{path.name}: not what the event classes say; run: make contracts")
        return 1 if stale() else 0
    SCHEMAS.mkdir(exist_ok=True)
    for path in stale():
        path.unlink(missing_ok=True)
    for path, text in wanted().items():
        path.write_text(text)
    if arguments.release:
        folder = RELEASED / str(len(generations()) + 1)
        folder.mkdir(parents=True)
        for name, text in schemas().items():
            (folder / f"{name}.json").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
