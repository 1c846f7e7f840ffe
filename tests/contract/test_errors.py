"""Every refusal and failure that a caller is told of says what to do: `field: rule; remedy`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from shared.errors import RatchetError

ROOT = Path(__file__).parents[2]
MODULES = sorted([*ROOT.glob("shared/**/*.py"), *ROOT.glob("services/**/*.py")])
PASSED_ON = {
    "str(error)": "another refusal's text, which has a remedy",
    "error.detail": "another refusal's text, which has a remedy",
    "f'{record.name}: {wrong}'": "which ends with what `base_mismatch` says to do",
    "OFF": "the voting page's own words, checked below",
    "in_one_line(fields)": "each field with its rule and remedy",
    "f'{name}: {remedy}'": "from a table whose texts are checked below",
}
"""Details that are no text of their own, by their source."""
FIELD_REFUSAL = 4
"""Arguments of `field_refusal`: the error's class, field, rule and remedy."""


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def refusals() -> dict[str, ast.ClassDef]:
    """Classes of errors that a caller gets, each with a status of 400 or more."""
    classes = {
        node.name: node
        for path in MODULES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ClassDef)
    }

    def status(name: str) -> int | None:
        """Of a class or of the first base that has one; None for what is no RatchetError."""
        if name == RatchetError.__name__:
            return RatchetError.status
        node = classes.get(name)
        bases = (
            [status(base.id) for base in node.bases if isinstance(base, ast.Name)] if node else []
        )
        known = [one for one in bases if one is not None]
        if node is None or not known:
            return None
        own = [
            line.value.value
            for line in node.body
            if isinstance(line, ast.Assign)
            and getattr(line.targets[0], "id", "") == "status"
            and isinstance(line.value, ast.Constant)
        ]
        return int(str(own[0])) if own else known[0]

    return {name: classes[name] for name in classes if status(name) is not None}


REFUSALS = refusals()


def made(node: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Calls that make a refusal, and what a refusal's own `__init__` hands to its base."""
    chosen = choices(node)
    for one in ast.walk(node):
        if isinstance(one, ast.Call) and isinstance(one.func, ast.Name):
            name = chosen.get(one.func.id, one.func.id)
            if name in REFUSALS and not own_text(REFUSALS[name]):
                yield name, one
        elif isinstance(one, ast.ClassDef) and one.name in REFUSALS:
            yield from ((one.name, call) for call in own_text(one))


def choices(node: ast.AST) -> dict[str, str]:
    """Variables that hold one class of refusals or another, with the first of them."""
    return {
        line.targets[0].id: line.value.body.id
        for line in ast.walk(node)
        if isinstance(line, ast.Assign)
        and isinstance(line.targets[0], ast.Name)
        and isinstance(line.value, ast.IfExp)
        and isinstance(line.value.body, ast.Name)
        and line.value.body.id in REFUSALS
    }


def own_text(node: ast.ClassDef) -> list[ast.Call]:
    """`super().__init__(…)` of a class that words its error itself, so hands on no argument."""
    return [
        call
        for call in ast.walk(node)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == "__init__"
        and not isinstance(call.args[0], ast.Name)
    ]


def test_there_are_refusals() -> None:
    assert {"Invalid", "BadStrategy", "InvalidRequest", "Unauthenticated", "UnknownAdapter"} <= {
        *REFUSALS
    }
    assert {"EngineUnreachable", "EngineRefused", "ScorerUnavailable", "Busy"} <= {*REFUSALS}
    assert "EvidenceUnavailable" not in REFUSALS, "no caller gets it"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_refused_field_has_its_rule_and_remedy(path: Path) -> None:
    for call in ast.walk(tree(path)):
        if not isinstance(call, ast.Call) or getattr(call.func, "id", "") != "field_refusal":
            continue
        empty = [one for one in call.args if isinstance(one, ast.Constant) and not one.value]
        assert len(call.args) == FIELD_REFUSAL, f"{path.name}:{call.lineno}"
        assert not empty, f"{path.name}:{call.lineno}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_refusal_says_what_to_do(path: Path) -> None:
    for name, call in made(tree(path)):
        detail = call.args[0]
        said = "".join(
            str(part.value) for part in ast.walk(detail) if isinstance(part, ast.Constant)
        )
        known = "; " in said or ast.unparse(detail) in PASSED_ON
        assert known, f"{path.name}:{call.lineno} {name}: no remedy behind a semicolon: {said}"


def test_what_the_responses_api_does_not_keep_has_a_remedy() -> None:
    from services.router.responses_api import NOT_KEPT

    assert all("; " in text for text in NOT_KEPT.values())


def test_the_voting_page_that_is_off_says_how_it_is_turned_on() -> None:
    from services.feedback.voting.pages import OFF

    assert "; name a file" in OFF
