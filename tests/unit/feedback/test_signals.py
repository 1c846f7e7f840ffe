"""Signals over HTTP and the intake: one validation, no next turn stored."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from services.feedback.dissatisfaction import is_dissatisfied
from services.feedback.errors import Invalid
from services.feedback.submissions import SubmissionRules, read_submission, submitted
from shared.contracts.events.signals import SignalObserved, SignalType
from shared.contracts.feedback_id import default_feedback_id
from shared.contracts.topics import FEEDBACK
from shared.redaction.redactor import Redactor
from shared.testing.log import MemoryLog
from tests.support.feedback import event_of, feedback_service

AT = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)


def observed(body: dict[str, Any], *, classify: bool = False) -> SignalObserved:
    event = submitted(
        read_submission({"trace_id": "t", "user_id": "u", **body}),
        tenant="acme",
        at=AT,
        redact=Redactor().text,
        rules=SubmissionRules(classify_follow_ups=classify),
    )
    assert isinstance(event, SignalObserved)
    return event


@pytest.mark.parametrize(
    ("body", "score"),
    [
        ({"type": "regenerate"}, 0.0),
        ({"type": "copy"}, 1.0),
        ({"type": "edit_kept", "value": 1}, 1.0),
        ({"type": "edit_kept", "value": 0.4}, 0.4),
        ({"type": "abandon"}, 0.0),
        ({"type": "follow_up"}, None),
    ],
)
def test_a_signal_implies_satisfaction_by_its_type(body: Any, score: float | None) -> None:
    event = observed(body)
    assert event.score == score
    kind = SignalType(body["type"])
    assert event.feedback_id == default_feedback_id("acme", "t", "u", kind)
    assert SignalObserved.model_validate_json(event.to_json()) == event


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"type": "edit_kept"}, "from 0 to 1"),
        ({"type": "edit_kept", "value": 1.01}, "from 0 to 1"),
        ({"type": "edit_kept", "value": True}, "from 0 to 1"),
        ({"type": "edit_kept", "value": float("nan")}, "from 0 to 1"),
        ({"type": "copy", "value": "text"}, "must be absent for copy"),
        ({"type": "follow_up", "value": 3}, "next turn's text"),
        ({"type": "follow_up", "value": "x" * 100_001}, "next turn's text"),
        ({"type": "copy", "completion": "x"}, "completion: is not a known field"),
        ({"type": "copied"}, "regenerate, copy, edit_kept, abandon, follow_up"),
    ],
)
def test_what_is_no_signal_is_refused_with_rule_and_remedy(body: Any, named: str) -> None:
    with pytest.raises(Invalid, match=named):
        observed(body)


def test_a_next_turn_is_read_by_setting_and_never_stored() -> None:
    body = {"type": "follow_up", "value": "No, that is wrong. My card is 4111 1111 1111 1111."}
    assert observed(body).dissatisfied is None
    event = observed(body, classify=True)
    assert (event.dissatisfied, event.score) == (True, 0.0)
    assert b"wrong" not in event.to_json()
    assert observed({"type": "follow_up"}, classify=True).dissatisfied is None


@pytest.mark.parametrize(
    ("turn", "objects"),
    [
        ("That's not what I asked.", True),
        ("that’s still wrong", True),
        ("No, I meant the other one.", True),
        ("You ignored the second file", True),
        ("But it doesn't compile", True),
        ("Nein, das stimmt nicht.", True),
        ("Wrong.", True),
        ("Thanks! And how do I do it on a Mac?", False),
        ("No problem, and what about France?", False),
        ("Is that wrong in British English?", False),
        ("It is great. Next: tests.", False),
        ("", False),
    ],
)
def test_the_rule_finds_objections_at_the_beginning(turn: str, objects: bool) -> None:
    assert is_dissatisfied(turn) is objects


async def test_signals_come_singly_and_in_batches_and_are_counted_by_type() -> None:
    log = MemoryLog()
    async with feedback_service(log) as service:
        one = await service.post("/v1/feedback", {"trace_id": "t", "type": "copy", "user_id": "u"})
        items = [
            {"trace_id": "t", "type": "edit_kept", "value": 0.5},
            {"trace_id": "t", "type": "thumbs_up"},
            {"trace_id": "t", "type": "edit_kept", "value": 5},
        ]
        batch = await service.post("/v1/feedback/batch", {"items": items})
        assert one.status_code == 202
        assert [result["status"] for result in batch.json()["results"]] == [202, 202, 422]
        assert service.value("ratchet_ingestion_accepted_total", type="copy", way="single") == 1
        assert service.value("ratchet_ingestion_anonymous_total", way="batch") == 2
    kinds = [str(event_of(record).type) for record in log.all(FEEDBACK)]
    assert kinds == ["copy", "edit_kept", "thumbs_up"]
