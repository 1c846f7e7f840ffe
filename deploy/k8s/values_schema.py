"""Writes the Kubernetes types of the chart's values: python -m deploy.k8s.values_schema.

What a value hands on to Kubernetes refers to its type by `#/$defs/io.k8s.…` in
`values.schema.json`; this writes the definitions that are referred to, from the schemas of
kubernetes-validate's newest version, so that helm refuses a key that no Kubernetes knows.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import kubernetes_validate

SCHEMA = Path(__file__).parent / "helm" / "ratchet" / "values.schema.json"
PREFIX = "io.k8s."
REFERENCE = "#/$defs/"
_LEFT_OUT = ("description", "format")
"""They check nothing."""


def text(schema: dict[str, Any]) -> str:
    """The file: by hand what is not of Kubernetes, a line for each definition that is."""
    ours = {name: one for name, one in schema["$defs"].items() if not name.startswith(PREFIX)}
    types = definitions({**schema, "$defs": ours})
    marks = {f"{PREFIX}{number}": name for number, name in enumerate(sorted(types))}
    made = json.dumps({**schema, "$defs": {**ours, **dict.fromkeys(marks)}}, indent=2)
    for mark, name in marks.items():
        line = json.dumps(types[name], sort_keys=True)
        made = made.replace(f'"{mark}": null', f'"{name}": {line}', 1)
    return made + "\n"


def definitions(schema: dict[str, Any]) -> dict[str, Any]:
    """The Kubernetes types that a schema refers to, and those that these refer to.

    Raises:
        KeyError: Kubernetes has no such type.

    """
    known = _types()
    found: dict[str, Any] = {}
    wanted = list(_references(schema))
    while wanted:
        name = wanted.pop()
        if name not in found:
            found[name] = _bare(known[name])
            wanted += _references(found[name])
    return found


def _types() -> dict[str, Any]:
    version = kubernetes_validate.latest_version()
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{version}-local-strict"
    return dict(json.loads((folder / "_definitions.json").read_text())["$defs"])


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        for key, value in part.items():
            if key == "$ref" and value.startswith(REFERENCE + PREFIX):
                yield value.removeprefix(REFERENCE)
            else:
                yield from _references(value)
    elif isinstance(part, list):
        for value in part:
            yield from _references(value)


def _bare(part: Any, *, names: bool = False) -> Any:
    """A schema with references into one file; `names`: its keys are names of properties."""
    if isinstance(part, list):
        return [_bare(value) for value in part]
    if not isinstance(part, dict):
        return part
    if names:
        return {key: _bare(value) for key, value in part.items()}
    return {
        key: REFERENCE + value.rpartition("/")[2]
        if key == "$ref"
        else _bare(value, names=key == "properties")
        for key, value in part.items()
        if key not in _LEFT_OUT and not key.startswith("x-")
    }


def main() -> int:
    """Write the file."""
    SCHEMA.write_text(text(json.loads(SCHEMA.read_text())))
    print(SCHEMA)
    return 0


if __name__ == "__main__":
    sys.exit(main())
