"""The annotation queue over HTTP: leases, labels that become feedback, and who may do what."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from services.feedback.annotation.board import AnnotationBoard, AnnotationItem
from services.feedback.annotation.queue import NAMESPACE, _feedback_id
from services.feedback.annotation.service import KEPT
from services.feedback.voting.invites import Rater
from services.feedback.voting.plan import VotingPlan
from shared.contracts.events.annotations import AnnotationGiven, AnnotationItemAdded, AnnotationKind
from shared.contracts.events.base import Context
from shared.contracts.events.feedback import FeedbackSubmitted, FeedbackType
from shared.contracts.events.votes import Choice, VoteCast
from shared.contracts.topics import ANNOTATIONS, ERASURES, INTERACTIONS, load_topics
from shared.kafka.envelope import decode, models_by_type
from tests.support.aggregator import interaction
from tests.support.annotations import erasure, item
from tests.support.voting import PLAN
from tests.support.waiting import eventually
from tests.unit.feedback.voting.test_page import Visitor, voting_service

ANSWERS = [
    {"version": "assistant-v1.0", "trace_id": "t0", "text": "Ask your doctor."},
    {"version": "assistant-v1.1", "trace_id": "t1", "text": "Yes."},
]
ITEM = {"item_id": "i1", "prompt": "May I take both?", "category": "medical", "answers": ANSWERS}
ANNOTATED = VotingPlan.model_validate(
    {
        **PLAN.model_dump(),
        "categories": [{"name": "medical"}, {"name": "creative"}],
        "prompts": [],
        "annotation": {
            "raters": 2,
            "high_stakes": ["medical"],
            "adjudicators": ["ann"],
            "lease_minutes": 10,
        },
    }
)


class Office:
    """A queue and the people who label."""

    def __init__(self, app: Any, harness: Any) -> None:
        self.app = app
        self.harness = harness
        harness.url = "http://feedback"

    async def rater(self, name: str) -> Visitor:
        visitor = Visitor(self.app, self.harness)
        await visitor.sign_in(Rater("default", name))
        return visitor

    async def add(self, *items: dict[str, Any]) -> Any:
        operator = Visitor(self.app, self.harness)
        return await operator.client.post("/v1/annotations", json={"items": list(items)})

    async def get(self, path: str) -> Any:
        return (await Visitor(self.app, self.harness).client.get(f"/v1/annotations{path}")).json()

    def stored(self) -> list[Any]:
        """All events on the queue's topic."""
        models = models_by_type(AnnotationItemAdded, AnnotationGiven)
        records = self.harness.log.records.get(ANNOTATIONS, [])
        return [decode(one.headers, one.value, models) for part in records for one in part]


@asynccontextmanager
async def office(plan: VotingPlan = ANNOTATED, **settings: Any) -> AsyncIterator[Office]:
    async with voting_service(plan, **settings) as (app, harness):
        yield Office(app, harness)


async def take(rater: Visitor) -> dict[str, Any]:
    answer = await rater.post("/annotations/next")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def label(rater: Visitor, item_id: str, said: str, **more: Any) -> Any:
    return await rater.post(f"/annotations/{item_id}/label", {"label": said, **more})


def side_of(shown: dict[str, Any], text: str) -> str:
    """Where an answer stands for this rater."""
    return "left" if shown["answers"][0]["text"] == text else "right"


async def test_two_raters_fill_two_slots_and_a_third_gets_none() -> None:
    async with office() as queue:
        assert (await queue.add(ITEM)).json() == {"added": ["i1"]}
        rosa, otto, dora = [await queue.rater(name) for name in ("rosa", "otto", "dora")]
        assert (await take(rosa))["item_id"] == "i1"
        assert (await take(otto))["item_id"] == "i1"
        refused = await dora.post("/annotations/next")
        assert refused.status_code == 404
        assert "others are labelling" in refused.json()["detail"]


async def test_the_slot_of_a_rater_who_went_away_is_free_after_the_lease() -> None:
    async with office() as queue:
        await queue.add(ITEM | {"raters": 1})
        rosa, otto = await queue.rater("rosa"), await queue.rater("otto")
        await take(rosa)
        assert (await otto.post("/annotations/next")).status_code == 404
        queue.harness.clock.advance(601)
        assert (await take(otto))["item_id"] == "i1"
        late = await label(rosa, "i1", "left")
        assert late.status_code == 409
        assert "your time for this item is over" in late.json()["detail"]


async def test_a_label_is_a_vote_whose_sides_are_as_shown() -> None:
    async with office() as queue:
        await queue.add(ITEM)
        for name in ("rosa", "otto"):
            rater = await queue.rater(name)
            shown = await take(rater)
            assert "assistant-v1" not in str(shown)
            answer = await label(rater, "i1", side_of(shown, "Ask your doctor."))
            assert answer.status_code == 200, answer.text
        votes = [event for event in queue.harness.events() if isinstance(event, VoteCast)]
        assert {vote.user_id for vote in votes} == {"rosa", "otto"}
        for vote in votes:
            chosen = vote.left if vote.choice is Choice.left else vote.right
            assert chosen.version == "assistant-v1.0"
            assert vote.context.category == "medical"
            assert vote.context.labels["annotation_item"] == "i1"
        (listed,) = (await queue.get("?state=settled"))["items"]
        assert listed["outcome"] == "left"
        assert [one["label"] for one in listed["labels"]] == ["left", "left"]


async def test_the_same_label_again_counts_once_and_another_is_refused() -> None:
    async with office() as queue:
        await queue.add(ITEM)
        rosa = await queue.rater("rosa")
        await take(rosa)
        for _ in range(2):
            assert (await label(rosa, "i1", "left")).status_code == 200
        assert (await label(rosa, "i1", "tie")).status_code == 409
        assert sum(isinstance(event, AnnotationGiven) for event in queue.stored()) == 1
        assert sum(isinstance(event, VoteCast) for event in queue.harness.events()) == 1


async def test_disagreement_about_a_high_stakes_item_goes_to_an_adjudicator() -> None:
    async with office() as queue:
        await queue.add(ITEM)
        for name, text in (("rosa", "Yes."), ("otto", "Ask your doctor.")):
            rater = await queue.rater(name)
            await label(rater, "i1", side_of(await take(rater), text))
        dora, ann = await queue.rater("dora"), await queue.rater("ann")
        assert (await dora.post("/annotations/next")).status_code == 404
        assert (await label(dora, "i1", "tie")).status_code == 409, "no adjudicator"
        shown = await take(ann)
        assert shown["role"] == "adjudicator"
        assert shown["given"] == {"left": 1, "right": 1}
        await label(ann, "i1", side_of(shown, "Ask your doctor."))
        (listed,) = (await queue.get(""))["items"]
        assert (listed["state"], listed["outcome"]) == ("settled", "left")


async def test_a_rating_is_of_a_generated_answer_and_brings_a_correction() -> None:
    async with office() as queue:
        added = await queue.add({"item_id": "r1", "prompt": "Write a slogan.", "kind": "rating"})
        assert added.status_code == 201, added.text
        rosa = await queue.rater("rosa")
        shown = await take(rosa)
        assert len(shown["answers"]) == 1
        answer = await label(rosa, "r1", "2", corrections=["A better slogan."])
        assert answer.status_code == 200, answer.text
        rating, correction = sorted(
            (one for one in queue.harness.events() if isinstance(one, FeedbackSubmitted)),
            key=lambda event: event.type,
        )
        assert (rating.type, rating.value) == (FeedbackType.rating, 2)
        assert correction.type is FeedbackType.text_correction
        assert {rating.trace_id, correction.trace_id} == {"trace-1"}
        assert rating.trace_id == correction.trace_id


async def test_a_model_s_label_is_no_feedback_and_leaves_a_high_stakes_item_open() -> None:
    async with office() as queue:
        await queue.add(ITEM)
        operator = Visitor(queue.app, queue.harness)
        body = {"annotator": "judge-v3", "label": "left"}
        given = await operator.client.post("/v1/annotations/i1/labels", json=body)
        assert given.status_code == 201, given.text
        (listed,) = (await queue.get("?state=open"))["items"]
        assert listed["missing"] == 2
        assert queue.harness.events() == []


async def test_an_item_is_shown_whole_to_another_tool_without_versions() -> None:
    async with office() as queue:
        await queue.add(ITEM)
        shown = await queue.get("/i1")
        assert shown["answers"] == ["Ask your doctor.", "Yes."]
        assert shown["messages"] == [{"role": "user", "content": "May I take both?"}]
        assert (shown["kind"], shown["missing"], shown["state"]) == ("preference", 2, "open")
        assert "assistant-v1" not in str(shown)
        assert (await queue.get("/i9"))["detail"].startswith("no item i9; ratchet annotations list")


@pytest.mark.parametrize("turned", [False, True])
async def test_a_label_of_another_tool_is_a_vote_whose_sides_are_as_shown_there(
    turned: bool,
) -> None:
    async with office() as queue:
        await queue.add(ITEM)
        operator = Visitor(queue.app, queue.harness)
        said = "right" if turned else "left"
        for who in ("label-studio-1", "label-studio-2", "label-studio-2"):
            body = {"annotator": who, "label": said, "by": "person", "turned": turned}
            given = await operator.client.post("/v1/annotations/i1/labels", json=body)
            assert given.status_code == 201, given.text
            assert given.json()["label"] == "left"
        votes = [event for event in queue.harness.events() if isinstance(event, VoteCast)]
        assert {vote.user_id for vote in votes} == {"label-studio-1", "label-studio-2"}
        for vote in votes:
            chosen = vote.left if vote.choice is Choice.left else vote.right
            assert chosen.version == "assistant-v1.0"
            assert (vote.left.version == "assistant-v1.1") is turned
        (listed,) = (await queue.get("?state=settled"))["items"]
        assert listed["outcome"] == "left"
        late = {"annotator": "label-studio-3", "label": "left", "by": "person"}
        refused = await operator.client.post("/v1/annotations/i1/labels", json=late)
        assert refused.status_code == 409


async def test_status_has_progress_time_left_and_agreement() -> None:
    async with office() as queue:
        await queue.add(ITEM, ITEM | {"item_id": "i2", "category": "creative"})
        for name in ("rosa", "otto"):
            rater = await queue.rater(name)
            for _ in range(2):
                shown = await take(rater)
                side = side_of(shown, "Yes.")
                if shown["item_id"] == "i2" and name == "otto":
                    side = "tie"
                await label(rater, shown["item_id"], side)
        await queue.harness.annotations.consistency.update()
        status = await queue.get("/status")
        assert status["disputed"] == 1
        assert status["seconds_left"] == pytest.approx(900)
        assert status["agreement"]["raw"] == pytest.approx(0.5)
        assert status["agreement"]["kappa_of"] == "cohen"
        states = {one["category"]: one for one in status["categories"]}
        assert states["medical"]["settled"] == 1
        assert states["creative"]["disputed"] == 1


async def test_a_skipped_item_is_left_to_others() -> None:
    async with office() as queue:
        await queue.add(ITEM | {"raters": 1})
        rosa, otto = await queue.rater("rosa"), await queue.rater("otto")
        await take(rosa)
        assert (await rosa.post("/annotations/i1/skip")).status_code == 200
        assert (await rosa.post("/annotations/next")).status_code == 404
        assert (await take(otto))["item_id"] == "i1"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"messages": [{"role": "user", "content": "x"}]}, "either prompt or messages"),
        ({"kind": "rating"}, "leave answers out"),
        ({"raters": 99}, "less than or equal to 20"),
    ],
)
async def test_a_wrong_item_is_refused_with_its_rule(change: dict[str, Any], said: str) -> None:
    async with office() as queue:
        refused = await queue.add(ITEM | change)
        assert refused.status_code == 422
        assert said in refused.text
        assert queue.stored() == []


async def test_signed_out_or_without_the_token_nothing_is_given() -> None:
    async with office() as queue:
        await queue.add(ITEM)
        stranger = Visitor(queue.app, queue.harness)
        assert (await stranger.post("/annotations/next")).status_code == 401
        assert "Sign in to label" in (await stranger.client.get("/vote/annotations")).text
        rosa = await queue.rater("rosa")
        rosa.token = "stolen"
        assert (await label(rosa, "i1", "left")).status_code == 401
        assert queue.harness.events() == []


async def test_the_key_is_checked_before_a_body_is_read_and_the_body_is_bounded() -> None:
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        while read < 100:
            read += 1
            yield b" " * 1_000_000

    async with voting_service(ANNOTATED, keys_required=True) as (app, harness):
        client = Visitor(app, harness).client
        for path in ("", "/sample", "/i1/labels"):
            refused = await client.post(f"/v1/annotations{path}", content=body())
            assert (refused.status_code, read) == (401, 0)
    async with office() as queue:
        client = Visitor(queue.app, queue.harness).client
        refused = await client.post("/v1/annotations", content=body())
        assert refused.status_code == 413
        assert read < 10


async def test_a_second_replica_learns_the_queue_from_the_log() -> None:
    async with office() as queue:
        await queue.add(ITEM)
        rosa = await queue.rater("rosa")
        await take(rosa)
        await label(rosa, "i1", "tie")
        other = AnnotationBoard(ANNOTATED.annotation)
        for event in queue.stored():
            other.apply(event)
        found = other.get("default", "i1")
        assert found
        assert found.missing == 1
        assert other.wanted_of("default", "rosa") == []


async def test_traffic_is_sampled_once_and_coverage_says_of_what() -> None:
    async with office() as queue:
        for number, question in enumerate(("Which pill?", "Which poem?", "Which pill?")):
            event = interaction(
                f"t{number}",
                tenant="default",
                user="ada",
                prompt=question,
                context=Context(category="medical" if "pill" in question else "creative"),
            )
            await queue.harness.log.publish(
                INTERACTIONS, key=event.trace_id, event=event, event_id=event.trace_id
            )
        operator = Visitor(queue.app, queue.harness)
        for expected in (2, 0):
            sampled = await operator.client.post("/v1/annotations/sample", json={"count": 5})
            assert sampled.status_code == 201, sampled.text
            assert len(sampled.json()["added"]) == expected
        listed = (await queue.get(""))["items"]
        assert {one["question"] for one in listed} == {"Which pill?", "Which poem?"}
        assert {(event.source, event.asker) for event in queue.stored()} == {("traffic", "ada")}
        rosa = await queue.rater("rosa")
        assert (await label(rosa, (await take(rosa))["item_id"], "tie")).status_code == 200
        (vote,) = [event for event in queue.harness.events() if isinstance(event, VoteCast)]
        assert (vote.user_id, vote.asker) == ("rosa", "ada")
        coverage = {one["category"]: one for one in (await queue.get("/coverage"))["categories"]}
        assert coverage["medical"]["prompts"] == 1
        assert coverage["creative"]["share_of_items"] == pytest.approx(0.5)


async def test_an_erased_person_is_dropped_by_the_log_and_sampled_no_more() -> None:
    async with office() as queue:
        asked = interaction("t0", tenant="default", user="ada", prompt="Which pill?")
        sampled = item().model_copy(update={"asker": "ada"})
        erased = erasure("ada")
        for topic, key, event in (
            (INTERACTIONS, asked.trace_id, asked),
            (ANNOTATIONS, sampled.item_id, sampled),
            (ERASURES, erased.subjects[0], erased),
        ):
            await queue.harness.log.publish(topic, key=key, event=event, event_id=key)
        follower = queue.harness.annotations.follower
        following = asyncio.create_task(follower.run())
        await follower.caught_up(60)
        following.cancel()
        answer = await Visitor(queue.app, queue.harness).client.post(
            "/v1/annotations/sample", json={"count": 5}
        )
        assert answer.json() == {"added": []}
        assert (await queue.get(""))["items"] == []


async def test_feedback_on_a_sampled_prompt_says_who_asked_it() -> None:
    async with office() as queue:
        sampled = item("s1", kind=AnnotationKind.rating, raters=1)
        for event in (sampled.model_copy(update={"asker": "ada"}), item("m1", raters=1)):
            queue.harness.annotations.queue.board.apply(event)
        rosa = await queue.rater("rosa")
        for _ in range(2):
            shown = await take(rosa)
            said = "2" if shown["item_id"] == "s1" else "left"
            texts = ["Paris, of course."] + [None] * (len(shown["answers"]) - 1)
            assert (await label(rosa, shown["item_id"], said, corrections=texts)).status_code == 200
        said_of = [one for one in queue.harness.events() if isinstance(one, FeedbackSubmitted)]
        askers = {(one.trace_id.split("-")[0], one.type.value, one.asker) for one in said_of}
        assert askers == {
            ("s1", "rating", "ada"), ("s1", "text_correction", "ada"),
            ("m1", "text_correction", ""),
        }  # fmt: skip


async def test_items_go_from_memory_when_the_topic_has_them_no_more() -> None:
    (topic,) = [one for one in load_topics() if one.name == ANNOTATIONS]
    assert KEPT.total_seconds() * 1000 == int(topic.config["retention.ms"])
    async with office() as queue:
        await queue.add(ITEM)
        board = queue.harness.annotations.queue.board
        board.apply(item("young", at=queue.harness.clock.now() + timedelta(days=1)))
        queue.harness.clock.advance(KEPT.total_seconds())
        assert board.get("default", "i1")
        running = asyncio.create_task(queue.harness.annotations.run())
        await eventually(lambda: not board.get("default", "i1"), "the item is forgotten")
        assert board.get("default", "young")
        running.cancel()


def test_labels_of_others_never_share_an_id_and_stored_ones_keep_theirs() -> None:
    def id_of(tenant: str, item_id: str, user: str) -> str:
        added = item(item_id).model_copy(update={"tenant": tenant})
        return _feedback_id(AnnotationItem(added, high_stakes=False, bytes=0), Rater(tenant, user))

    assert id_of("acme", "i1", "ada") == str(uuid.uuid5(NAMESPACE, "acme/i1/ada"))
    assert id_of("acme", "i1/ada", "b") != id_of("acme", "i1", "ada/b")
    assert id_of("acme", "i1/ada", "b") == id_of("acme", "i1/ada", "b")
