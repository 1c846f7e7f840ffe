"""`ratchet annotations` against a service of straw."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from services.cli import annotations
from services.cli.errors import Exit
from tests.support.command import Ran, ratchet_here

STATUS = {
    "labelled": 4,
    "needed": 9,
    "disputed": 1,
    "seconds_left": 7200.0,
    "categories": [
        {"category": "medical", "high_stakes": True, "open": 1, "disputed": 1, "settled": 2}
    ],
    "agreement": {
        "items": 3, "raters": 2, "alpha": 0.61, "low": 0.2, "high": 0.9, "raw": 0.83,
        "kappa": 0.6, "kappa_of": "cohen",
    },
}  # fmt: skip
ITEM = {
    "item_id": "i1",
    "state": "open",
    "category": "medical",
    "raters": 3,
    "missing": 2,
    "outcome": "",
    "question": "May I take both?",
}
COVERED = {
    "category": "medical", "prompts": 9, "share": 0.9, "failing": 2, "items": 1,
    "share_of_items": 0.5,
}  # fmt: skip

Run = Callable[..., Ran]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, Any]]:
    """What the service was asked."""
    found: list[tuple[str, str, Any]] = []

    def ask(_: Any, __: str, method: str, path: str, **given: Any) -> Any:
        found.append((method, path, given.get("body") or given.get("query")))
        match method, path:
            case "GET", "/v1/annotations":
                return {"items": [ITEM]}
            case "GET", "/v1/annotations/status":
                return STATUS
            case "GET", _:
                return {"categories": [COVERED]}
            case "POST", "/v1/annotations/sample":
                before = sum(one[1] == path for one in found)
                return {"added": ["i"] * (20 if before == 1 else 3 if before == 2 else 0)}
            case _:
                return {"added": [str(n) for n, _ in enumerate(given["body"]["items"])]}

    monkeypatch.setattr(annotations, "ask", ask)
    return found


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return lambda *given: ratchet_here(
        "annotations", *given, monkeypatch=monkeypatch, capsys=capsys
    )


def test_items_of_a_file_are_added_twenty_at_once(
    asked: list[tuple[str, str, Any]], run: Run, tmp_path: Any
) -> None:
    file = tmp_path / "items.jsonl"
    lines = ["Plain text?", json.dumps("A text"), json.dumps({"prompt": "x", "raters": 5})] * 8
    file.write_text("\n".join(lines))
    ran = run("add", str(file), "--raters", "2")
    assert ran.status == 0, ran.err
    assert "24 items added" in ran.out
    assert [len(body["items"]) for _, _, body in asked] == [20, 4]
    assert asked[0][2]["items"][:3] == [
        {"raters": 2, "prompt": "Plain text?"},
        {"raters": 2, "prompt": "A text"},
        {"raters": 5, "prompt": "x"},
    ]


def test_a_line_that_is_no_item_is_named(run: Run, tmp_path: Any) -> None:
    file = tmp_path / "items.jsonl"
    file.write_text("[1]\n")
    ran = run("add", str(file))
    assert ran.status == Exit.usage
    assert "line 1" in ran.err


def test_sampling_ends_where_traffic_has_no_more(
    asked: list[tuple[str, str, Any]], run: Run
) -> None:
    ran = run("sample", "--count", "50")
    assert "23 items added" in ran.out
    assert [body["count"] for _, _, body in asked] == [20, 20, 20]


def test_status_list_and_coverage_are_printed(asked: list[tuple[str, str, Any]], run: Run) -> None:
    shown = run("status").out
    for word in ("4 of 9", "2.0 h", "0.61 (0.20 to 0.90)", "83.0%", "Cohen's kappa", "medical"):
        assert word in shown
    assert "1/3" in run("list", "--state", "open").out
    assert asked[-1][2]["state"] == "open"
    assert "90.0%" in run("coverage").out
