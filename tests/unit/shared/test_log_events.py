"""One log event name for each dependency that is unavailable, wherever it is noticed."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from shared.observability.events import Unavailable

ROOT = Path(__file__).parents[3]
MODULES = [path for folder in ("services", "shared") for path in (ROOT / folder).rglob("*.py")]
NAMES = ROOT / "shared" / "observability" / "events.py"
LEVELS = {"debug", "info", "warning", "error", "exception"}
EVENTS = {
    "LogUnavailable": Unavailable.kafka,
    "KafkaError": Unavailable.kafka,
    "RedisError": Unavailable.redis,
    "EvidenceUnavailable": Unavailable.prometheus,
    "EngineUnavailable": Unavailable.engine,
    "StoreUnavailable": Unavailable.storage,
    "AdapterUnavailable": Unavailable.storage,
    "JudgeUnavailable": Unavailable.judge,
    "NotScored": Unavailable.scorer,
}
"""The errors that mean an outage, and the event that tells of each."""


def _caught(handler: ast.ExceptHandler) -> set[Unavailable]:
    nodes = ast.walk(handler.type) if handler.type is not None else ()
    return {EVENTS[node.id] for node in nodes if isinstance(node, ast.Name) and node.id in EVENTS}


def _logged(handler: ast.ExceptHandler) -> Iterator[ast.Call]:
    for node in ast.walk(ast.Module(handler.body, [])):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in LEVELS
            and ast.unparse(node.func.value) == "log"
        ):
            yield node


def test_an_outage_is_logged_under_its_one_name() -> None:
    checked, wrong = 0, list[str]()
    for path in MODULES:
        for handler in ast.walk(ast.parse(path.read_text())):
            if not isinstance(handler, ast.ExceptHandler):
                continue
            allowed = {f"Unavailable.{event.name}" for event in _caught(handler)}
            for call in _logged(handler) if allowed else ():
                checked += 1
                fields = {keyword.arg for keyword in call.keywords}
                if ast.unparse(call.args[0]) not in allowed or not fields >= {"during", "error"}:
                    wrong.append(f"{path.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call)}")
    assert not wrong
    assert checked >= 15, "the scan found too few log calls to mean anything"


def test_nobody_spells_such_a_name_out() -> None:
    spelled = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.value}"
        for path in MODULES
        if path != NAMES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.endswith(".unavailable")
    ]
    assert not spelled


@pytest.mark.parametrize("event", Unavailable)
def test_a_log_line_carries_the_plain_name(event: Unavailable) -> None:
    line = structlog.processors.JSONRenderer()(None, "warning", {"event": event})
    assert json.loads(line) == {"event": f"{event.name}.unavailable"}
