"""Documents are true: what they name exists, and what they claim has a test."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "docs" / "requirements.md"
STATES = {"built", "partial", "not built"}
ROW = re.compile(r"^\| (?P<id>[A-Z]\d+) \| .* \| (?P<state>[a-z ]+) \| (?P<shown>.*) \|$")
ROWS = [
    (number, found)
    for number, line in enumerate(REQUIREMENTS.read_text().splitlines(), 1)
    if (found := ROW.match(line))
]


@cache
def functions(path: Path) -> frozenset[str]:
    return frozenset(
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def test_every_requirement_is_listed_once() -> None:
    text = REQUIREMENTS.read_text()
    ids = [found["id"] for _, found in ROWS]
    assert len(ids) == len(set(ids))
    assert len(ids) == sum(line.startswith("| ") for line in text.splitlines()) - text.count(
        "| id |"
    )
    sections = re.findall(r"^## ([A-Z])\. ", text, re.MULTILINE)
    assert sections == list(dict.fromkeys(name[0] for name in ids))
    for section in sections:
        numbers = [int(name[1:]) for name in ids if name[0] == section]
        assert numbers == list(range(1, len(numbers) + 1)), section


@pytest.mark.parametrize("row", [found for _, found in ROWS], ids=lambda row: row["id"])
def test_a_requirement_has_a_state_and_the_tests_that_show_it(row: re.Match[str]) -> None:
    assert row["state"] in STATES
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row["shown"])
    assert len(named) == row["shown"].count("`tests/")
    assert bool(named) == (row["state"] != "not built")
    assert ("Missing: " in row["shown"]) == (row["state"] == "partial")
    for path, function in named:
        assert function.startswith("test_")
        assert function in functions(ROOT / path), f"{path}::{function}"
