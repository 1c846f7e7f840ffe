"""Every refusal of every service says what to do: `field: rule; remedy`."""

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
    "in_one_line(fields)": "each field with its rule and remedy",
    "f'{name}: {remedy}'": "from a table whose texts are checked below",
}
"""Details that are no text of their own, by their source."""


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def refusals() -> dict[str, ast.ClassDef]:
    """Classes of errors that a caller gets with a status of 400 to 499."""
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

    return {name: classes[name] for name in classes if 400 <= (status(name) or 0) < 500}


REFUSALS = refusals()


def made(node: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Calls that make a refusal, and what a refusal's own `__init__` hands to its base."""
    for one in ast.walk(node):
        if isinstance(one, ast.Call) and isinstance(one.func, ast.Name) and one.func.id in REFUSALS:
            if not own_text(REFUSALS[one.func.id]):
                yield one.func.id, one
        elif isinstance(one, ast.ClassDef) and one.name in REFUSALS:
            yield from ((one.name, call) for call in own_text(one))


def own_text(node: ast.ClassDef) -> list[ast.Call]:
    """`super().__init__(…)` of a class that words its error itself."""
    return [
        call
        for call in ast.walk(node)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == "__init__"
    ]


def test_there_are_refusals() -> None:
    assert {"Invalid", "BadStrategy", "InvalidRequest", "Unauthenticated", "UnknownAdapter"} <= {
        *REFUSALS
    }
    assert "EngineUnreachable" not in REFUSALS


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
