"""Feedback with a detector on: whatever way a text comes, it is stored without what was found."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.feedback.circuit_breaker import CircuitBreaker
from services.feedback.intake.handler import INTAKE_MODELS, Intake
from services.feedback.metrics import FeedbackMetrics
from services.feedback.publisher import FeedbackPublisher
from shared.contracts.events.annotations import AnnotationItemAdded
from shared.contracts.events.feedback import FeedbackSubmitted, FeedbackType
from shared.contracts.events.signals import SignalType
from shared.contracts.events.votes import VoteCast
from shared.contracts.topics import FEEDBACK
from shared.kafka.envelope import decode
from shared.redaction import Redaction
from shared.testing.clock import ManualClock
from shared.testing.log import MemoryLog
from tests.support.analyzer import AnalyzerTwin, analyzer_twin, detector_at
from tests.support.feedback import (
    UNLIMITED,
    FeedbackHarness,
    event_of,
    feedback_service,
    straw_router,
)
from tests.support.rollouts import set_routing
from tests.unit.feedback.annotation.test_page import label, office, take
from tests.unit.feedback.test_intake import record_of

NAME, CITY = "Anna Miller", "Lisbon"
VALUES: dict[str, tuple[Any, Any]] = {
    "thumbs_up": (None, None),
    "thumbs_down": (None, None),
    "rating": (4, 4),
    "comment": (f"{NAME} helped", "[NAME] helped"),
    "demonstration": (f"Ask {NAME}.", "Ask [NAME]."),
    "text_correction": (
        {"original": f"Go to {CITY}", "corrected": "Ask Miller"},
        {"original": "Go to [LOCATION]", "corrected": "Ask [NAME]"},
    ),
    "preference": (
        {"chosen": f"It is {NAME}.", "rejected": f"It is {CITY}.", "chosen_version": "v1"},
        {"chosen": "It is [NAME].", "rejected": "It is [LOCATION].", "chosen_version": "v1"},
    ),
}
"""By type a value as it is sent, and as it is stored."""


def body(kind: str, **more: Any) -> dict[str, Any]:
    value = VALUES[kind][0]
    return {
        "trace_id": f"Miller-{kind}",
        "type": kind,
        "user_id": NAME,
        **({} if value is None else {"value": value}),
        "metadata": {"session_id": NAME, "segment": "Lisbon", "who": NAME},
        **more,
    }


def check(event: Any, kind: str) -> None:
    """An event of `body`, redacted: texts and labels, and no identifier."""
    stored = json.loads(event.to_json())
    kept = VALUES[kind][1]
    if isinstance(kept, dict):
        assert {name: stored["value"][name] for name in kept} == kept
    else:
        assert stored.get("value") == kept
    assert stored["trace_id"] == f"Miller-{kind}"
    assert stored["user_id"] == stored["context"]["session_id"] == NAME
    assert stored["context"]["segment"] == CITY
    assert stored["context"]["labels"] == {"who": "[NAME]"}


@asynccontextmanager
async def served(**options: Any) -> AsyncIterator[tuple[FeedbackHarness, AnalyzerTwin]]:
    async with (
        analyzer_twin() as twin,
        detector_at(twin.url) as detector,
        straw_router() as router,
        feedback_service(
            MemoryLog(), router_url=router.url, redact=Redaction(detector), **options
        ) as service,
    ):
        router.text = "I am {version} of " + NAME
        yield service, twin


def test_every_type_is_here() -> None:
    assert set(VALUES) == {kind.value for kind in FeedbackType}


@pytest.mark.parametrize("kind", VALUES)
async def test_feedback_of_each_type_is_stored_redacted(kind: str) -> None:
    async with served() as (service, twin):
        assert (await service.post("/v1/feedback", body(kind))).status_code == 202
        (event,) = await service.stored(f"Miller-{kind}")
        check(event, kind)
        assert len(twin.asked) == 1


async def test_a_brought_answer_and_a_signal_s_metadata_are_stored_redacted() -> None:
    brought = {
        "source": "other-tool",
        "model": "assistant",
        "prompt": f"Who is {NAME}?",
        "completion": f"A person of {CITY}.",
    }
    async with served() as (service, _):
        sent = body("rating", **brought) | {"trace_id": "t1"}
        assert (await service.post("/v1/feedback", sent)).status_code == 202
        for kind in SignalType:
            signal = {"trace_id": "s", "type": kind.value, "metadata": {"who": NAME}}
            more: dict[str, Any] = {"edit_kept": {"value": 0.5}, "follow_up": {"value": NAME}}
            answer = await service.post("/v1/feedback", signal | more.get(kind.value, {}))
            assert answer.status_code == 202, answer.text
        stored = [event_of(one) for parts in service.log.records[FEEDBACK] for one in parts]
        (rating,) = [one for one in stored if isinstance(one, FeedbackSubmitted)]
        assert (rating.prompt, rating.completion) == ("Who is [NAME]?", "A person of [LOCATION].")
        signals = [one for one in stored if one is not rating]
        assert len(signals) == len(SignalType)
        for one in signals:
            assert one.context.labels == {"who": "[NAME]"}
            assert NAME not in one.to_json().decode()


async def test_a_batch_is_stored_as_its_items_one_by_one_and_asked_about_at_once() -> None:
    async with served() as (service, twin):
        items: list[Any] = [body(kind) for kind in VALUES]
        bad = {"trace_id": "t", "type": "applause", "value": NAME}
        answer = await service.post("/v1/feedback/batch", {"items": [items[0], bad, *items[1:]]})
        statuses = [one["status"] for one in answer.json()["results"]]
        assert statuses == [202, 422] + [202] * (len(items) - 1)
        assert len(twin.asked) == 1
        for kind in VALUES:
            (event,) = await service.stored(f"Miller-{kind}")
            check(event, kind)


@pytest.mark.parametrize("way", ["single", "batch"])
async def test_while_the_analyzer_is_away_feedback_counts_and_its_texts_are_withheld(
    way: str,
) -> None:
    async with served() as (service, twin):
        twin.status = 503
        sent = body("preference")
        if way == "single":
            answer = await service.post("/v1/feedback", sent)
        else:
            answer = await service.post("/v1/feedback/batch", {"items": [sent, body("thumbs_up")]})
        assert answer.status_code == 202
        (event,) = await service.stored("Miller-preference")
        assert (event.value.chosen, event.value.rejected) == ("[UNCHECKED]", "[UNCHECKED]")
        assert event.value.chosen_version == "v1"
        assert event.context.labels == {"who": "[UNCHECKED]"}


@pytest.mark.parametrize("kind", VALUES)
async def test_what_products_write_to_kafka_is_stored_as_what_they_post(kind: str) -> None:
    log, clock = MemoryLog(), ManualClock()
    metrics = FeedbackMetrics(CollectorRegistry())
    publisher = FeedbackPublisher(log, CircuitBreaker(max_waiting=10), metrics, clock, timeout_s=1)
    record = record_of(body(kind), timestamp_ms=int(clock.now().timestamp() * 1000))
    async with analyzer_twin() as twin, detector_at(twin.url) as detector:
        intake = Intake(
            publisher, metrics, redact=Redaction(detector), clock=clock, quotas=UNLIMITED
        )
        await intake.handle(decode(record.headers, record.value, INTAKE_MODELS), record)
    (stored,) = log.all(FEEDBACK)
    check(event_of(stored), kind)


@pytest.mark.parametrize("away", [False, True])
async def test_a_comparison_is_shown_as_it_is_and_stored_redacted(away: bool) -> None:
    async with served() as (service, twin):
        twin.status = 503 if away else 200
        set_routing(service.routing, stable="assistant-v1.0", candidate="assistant-v1.1")
        asked = {
            "model": "assistant",
            "messages": [{"role": "user", "content": f"Who is {NAME}?"}],
            "user_id": "ada",
            "metadata": {"who": NAME},
        }
        opened = (await service.post("/v1/comparisons", asked)).json()
        for side in ("left", "right"):
            assert opened[side]["text"].endswith(f"of {NAME}")
        place = f"/v1/comparisons/{opened['comparison_id']}/vote"
        assert (await service.post(place, {"choice": "left", "user_id": "ada"})).status_code == 200
        (vote,) = await service.stored(opened["comparison_id"])
    assert isinstance(vote, VoteCast)
    assert NAME not in vote.to_json().decode()
    answers = {vote.left.completion, vote.right.completion}
    if away:
        assert answers == {"[UNCHECKED]"} == {vote.messages[0].content}
    else:
        assert answers == {"I am assistant-v1.0 of [NAME]", "I am assistant-v1.1 of [NAME]"}
        assert vote.messages[0].content == "Who is [NAME]?"
        assert vote.context.labels == {"who": "[NAME]"}


async def test_items_labels_and_corrections_of_annotation_are_stored_redacted() -> None:
    async with (
        analyzer_twin() as twin,
        detector_at(twin.url) as detector,
        office(redact=Redaction(detector)) as queue,
    ):
        answers = [
            {"version": "assistant-v1.0", "trace_id": "t0", "text": f"Ask {NAME}."},
            {"version": "assistant-v1.1", "trace_id": "t1", "text": f"Go to {CITY}."},
        ]
        new = {"item_id": "i1", "prompt": f"Where is {NAME}?", "answers": answers, "raters": 1}
        assert (await queue.add(new)).status_code in (200, 201, 202)
        (added,) = [one for one in queue.stored() if isinstance(one, AnnotationItemAdded)]
        assert added.messages[0].content == "Where is [NAME]?"
        assert {one.completion for one in added.answers} == {"Ask [NAME].", "Go to [LOCATION]."}
        rosa = await queue.rater("rosa")
        shown = await take(rosa)
        given = await label(rosa, "i1", "left", corrections=[f"It is {NAME}.", None])
        assert given.status_code == 200, given.text
        events = queue.harness.events()
        (corrected,) = [one for one in events if isinstance(one, FeedbackSubmitted)]
        assert corrected.value.corrected == "It is [NAME]."
        assert corrected.value.original == shown["answers"][0]["text"]
        for event in events:
            assert NAME not in event.to_json().decode()
