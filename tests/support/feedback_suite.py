"""What the feedback API promises, whatever log is beneath: run in memory and against Kafka."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from shared.contracts.events.feedback import (
    RATINGS,
    FeedbackSubmitted,
    FeedbackType,
    FeedbackWithdrawn,
)
from shared.contracts.events.votes import Choice
from shared.contracts.feedback_id import FEEDBACK_NAMESPACE
from shared.kafka.envelope import header
from tests.support.feedback import FeedbackHarness, StrawRouter
from tests.support.rollouts import set_routing

VALUES: dict[FeedbackType, Any] = {
    FeedbackType.thumbs_up: None,
    FeedbackType.thumbs_down: None,
    FeedbackType.rating: 4,
    FeedbackType.text_correction: {"original": "teh", "corrected": "the"},
    FeedbackType.preference: {"chosen": "yes, gladly", "rejected": "no"},
    FeedbackType.demonstration: "Open Orders and press Refund.",
    FeedbackType.comment: "it was rude",
}
"""One right value of each type."""


class FeedbackSuite:
    """Needs the fixtures `service`, `router` and `unique`."""

    @pytest.mark.parametrize("kind", list(FeedbackType))
    async def test_accepted_means_stored(
        self, service: FeedbackHarness, unique: str, kind: FeedbackType
    ) -> None:
        body = {"trace_id": unique, "type": kind.value, "user_id": "u1", "value": VALUES[kind]}
        answer = await service.post("/v1/feedback", body)
        assert answer.status_code == 202, answer.text
        (event,) = await service.stored(unique)
        assert isinstance(event, FeedbackSubmitted)
        assert event.type is kind
        assert event.feedback_id == answer.json()["feedback_id"]
        assert event.tenant == "default"
        opinion = FeedbackType.thumbs_up if kind in RATINGS else kind
        name = f"default\0{unique}\0u1\0{opinion.value}"
        assert event.feedback_id == str(uuid.uuid5(FEEDBACK_NAMESPACE, name))

    async def test_the_record_is_a_cloud_event_keyed_by_its_trace(
        self, service: FeedbackHarness, unique: str
    ) -> None:
        parent = f"00-{'ab' * 16}-{'cd' * 8}-01"
        body = {"trace_id": unique, "type": "thumbs_up", "feedback_id": "f1", "revision": 3}
        answer = await service.post("/v1/feedback", body, headers={"traceparent": parent})
        assert answer.status_code == 202
        (record,) = await service.records(unique)
        assert record.key == unique
        assert header(record.headers, "ce_id") == "f1:3"
        assert header(record.headers, "ce_type") == FeedbackSubmitted.ce_type
        assert header(record.headers, "traceparent") == parent

    async def test_sending_twice_gives_one_identity(
        self, service: FeedbackHarness, unique: str
    ) -> None:
        body = {"trace_id": unique, "type": "rating", "value": 2, "user_id": "u1"}
        ids = {(await service.post("/v1/feedback", body)).json()["feedback_id"] for _ in range(2)}
        assert len(ids) == 1
        ce_ids = {header(record.headers, "ce_id") for record in await service.records(unique)}
        assert ce_ids == {f"{ids.pop()}:0"}

    async def test_idempotency_key_is_the_id(self, service: FeedbackHarness, unique: str) -> None:
        body = {"trace_id": unique, "type": "thumbs_down"}
        headers = {"idempotency-key": f"{unique}-key"}
        answer = await service.post("/v1/feedback", body, headers=headers)
        assert answer.json()["feedback_id"] == f"{unique}-key"
        answer = await service.post("/v1/feedback", {**body, "feedback_id": "own"}, headers=headers)
        assert answer.json()["feedback_id"] == "own"

    async def test_batch_answers_item_by_item(self, service: FeedbackHarness, unique: str) -> None:
        items = [
            {"trace_id": unique, "type": "rating", "value": 5, "user_id": "a"},
            {"trace_id": unique, "type": "rating", "value": 6, "user_id": "b"},
            "nonsense",
            {"trace_id": unique, "type": "thumbs_up", "user_id": "c"},
        ]
        answer = await service.post("/v1/feedback/batch", {"items": items})
        assert answer.status_code == 207
        results = answer.json()["results"]
        assert [result["status"] for result in results] == [202, 422, 400, 202]
        assert results[1]["error"]["errors"][0]["field"] == "value"
        stored = {event.feedback_id for event in await service.stored(unique)}
        assert stored == {results[0]["feedback_id"], results[3]["feedback_id"]}

    async def test_a_whole_good_batch_is_202_and_in_the_log(
        self, service: FeedbackHarness, unique: str
    ) -> None:
        items = [
            {"trace_id": f"{unique}-{n % 5}", "type": "thumbs_up", "user_id": f"u{n}"}
            for n in range(1000)
        ]
        answer = await service.post("/v1/feedback/batch", {"items": items})
        assert answer.status_code == 202
        ids = [result["feedback_id"] for result in answer.json()["results"]]
        for n in range(5):
            stored = await service.stored(f"{unique}-{n}")
            assert [event.feedback_id for event in stored] == ids[n::5]

    async def test_withdrawal_is_a_revision_above_every_edit(
        self, service: FeedbackHarness, unique: str
    ) -> None:
        body = {"trace_id": unique, "type": "thumbs_up", "user_id": "u1"}
        feedback_id = (await service.post("/v1/feedback", body)).json()["feedback_id"]
        answer = await service.client.delete(
            f"/v1/feedback/{feedback_id}", params={"trace_id": unique, "user_id": "u1"}
        )
        assert answer.status_code == 202, answer.text
        _, withdrawn = await service.stored(unique)
        assert isinstance(withdrawn, FeedbackWithdrawn)
        assert withdrawn.feedback_id == feedback_id
        assert withdrawn.type is FeedbackType.thumbs_up
        assert withdrawn.revision == answer.json()["revision"] > 1_000_000

    async def test_withdrawal_with_an_own_id_says_its_type_and_revision(
        self, service: FeedbackHarness, unique: str
    ) -> None:
        path, query = f"/v1/feedback/{unique}-mine", {"trace_id": unique}
        answer = await service.client.delete(path, params=query)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == "type"
        query |= {"type": "rating", "revision": "7"}
        answer = await service.client.delete(path, params=query)
        assert answer.status_code == 202
        (event,) = await service.stored(unique)
        assert (event.type, event.revision) == (FeedbackType.rating, 7)

    async def test_texts_are_redacted_before_they_are_stored(
        self, service: FeedbackHarness, unique: str
    ) -> None:
        body = {
            "trace_id": unique,
            "type": "text_correction",
            "value": {"original": "ask joe@example.com", "corrected": "call +49 151 2345 6789"},
            "source": "old",
            "model": "assistant",
            "prompt": "my mail is joe@example.com",
            "completion": "I wrote to joe@example.com",
            "metadata": {"note": "joe@example.com", "locale": "de"},
        }
        assert (await service.post("/v1/feedback", body)).status_code == 202
        (record,) = await service.records(f"old:{unique}")
        assert b"joe@" not in (record.value or b"")
        assert b"2345" not in (record.value or b"")
        (event,) = await service.stored(f"old:{unique}")
        assert event.prompt == "my mail is [EMAIL]"
        assert event.context.locale == "de"
        assert event.context.labels == {"note": "[EMAIL]"}

    async def test_a_vote_is_stored_before_the_versions_are_named(
        self, service: FeedbackHarness, router: StrawRouter, unique: str
    ) -> None:
        set_routing(service.routing, stable="assistant-v1.0", candidate="assistant-v1.1")
        opened = await service.post(
            "/v1/comparisons",
            {
                "model": "assistant",
                "messages": [{"role": "user", "content": "mail me at joe@example.com"}],
                "user_id": unique,
                "panel": "judge",
                "metadata": {"category": "billing"},
            },
        )
        assert opened.status_code == 201, opened.text
        assert set(opened.json()) == {"comparison_id", "left", "right"}
        comparison_id = opened.json()["comparison_id"]
        path = f"/v1/comparisons/{comparison_id}/vote"
        voted = await service.post(path, {"choice": "left"})
        assert voted.status_code == 200, voted.text
        versions = voted.json()["versions"]
        assert set(versions.values()) == {"assistant-v1.0", "assistant-v1.1"}
        (vote,) = await service.stored(comparison_id)
        assert vote.choice is Choice.left
        assert (vote.left.version, vote.right.version) == (versions["left"], versions["right"])
        assert vote.left.completion == opened.json()["left"]["text"]
        assert vote.messages[0].content == "mail me at [EMAIL]"
        assert (vote.user_id, vote.panel, vote.anonymous) == (unique, "judge", False)
        assert vote.context.category == "billing"
        assert {vote.left.trace_id, vote.right.trace_id} == {"trace-1", "trace-2"}

    async def test_a_comparison_has_one_vote(
        self, service: FeedbackHarness, router: StrawRouter
    ) -> None:
        set_routing(service.routing, stable="assistant-v1.0")
        body = {"model": "assistant", "messages": [{"role": "user", "content": "hello"}]}
        opened = (await service.post("/v1/comparisons", body)).json()
        path = f"/v1/comparisons/{opened['comparison_id']}/vote"
        first = await service.post(path, {"choice": "tie", "user_id": "u1"})
        again = await service.post(path, {"choice": "tie", "user_id": "u1"})
        assert (first.status_code, again.status_code) == (200, 200)
        assert first.json() == again.json()
        other_mind = await service.post(path, {"choice": "left", "user_id": "u1"})
        other_user = await service.post(path, {"choice": "tie", "user_id": "u2"})
        assert (other_mind.status_code, other_user.status_code) == (409, 409)
        assert len(await service.stored(opened["comparison_id"])) == 1
