"""The API on a log in memory: the common suite, and what needs no brokers to be true."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import ClassVar

import jsonschema
import orjson
import pytest
from pydantic import ValidationError

from services.feedback import api as api_module
from services.feedback.api import MAX_BATCH
from services.feedback.settings import FeedbackSettings
from services.feedback.submissions import SignalSubmission, Submission, read_submission
from shared.contracts.events.api_keys import ApiKeyIssued, Permission
from shared.contracts.events.versions import Lifecycle
from shared.kafka.envelope import header
from shared.kafka.log import APPEND_TIMEOUT_S, PER_TURN, LogUnavailable, NewRecord, Position
from shared.keys import hash_key
from shared.quotas import RateLimits
from shared.testing.clock import START, ManualClock
from shared.testing.log import MemoryLog
from tests.support.feedback import FeedbackHarness, StrawRouter, feedback_service, straw_router
from tests.support.feedback_suite import FeedbackSuite
from tests.support.rollouts import add_version, set_routing


@pytest.fixture
async def router() -> AsyncIterator[StrawRouter]:
    async with straw_router() as straw:
        yield straw


@pytest.fixture
async def service(router: StrawRouter) -> AsyncIterator[FeedbackHarness]:
    async with feedback_service(MemoryLog(), router_url=router.url) as started:
        yield started


class TestOnMemoryLog(FeedbackSuite):
    """The common suite."""


QUESTION = {"model": "assistant", "messages": [{"role": "user", "content": "hello"}]}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"type": "thumbs_up"}, "trace_id"),
        ({"trace_id": "t", "type": "applause"}, "type"),
        ({"trace_id": "t", "type": "thumbs_up", "value": True}, "value"),
        ({"trace_id": "t", "type": "rating"}, "value"),
        ({"trace_id": "t", "type": "rating", "value": 4.5}, "value"),
        ({"trace_id": "t", "type": "rating", "value": True}, "value"),
        ({"trace_id": "t", "type": "rating", "value": "5"}, "value"),
        ({"trace_id": "t", "type": "text_correction", "value": "better"}, "value"),
        ({"trace_id": "t", "type": "text_correction", "value": {"corrected": ""}}, "value.corrected"),
        ({"trace_id": "t", "type": "preference", "value": {"chosen": "a"}}, "value.rejected"),
        ({"trace_id": "t", "type": "preference", "value": {"chosen": "a", "rejected": "b", "x": 1}}, "value.x"),
        ({"trace_id": "t", "type": "comment", "value": "  "}, "value"),
        ({"trace_id": "t", "type": "demonstration", "value": 3}, "value"),
        ({"trace_id": "t", "type": "thumbs_up", "revision": -1}, "revision"),
        ({"trace_id": "t", "type": "thumbs_up", "revision": "1"}, "revision"),
        ({"trace_id": "t\n", "type": "thumbs_up"}, "trace_id"),
        ({"trace_id": "t" * 201, "type": "thumbs_up"}, "trace_id"),
        ({"trace_id": "t", "type": "thumbs_up", "stars": 5}, "stars"),
        ({"trace_id": "t", "type": "thumbs_up", "prompt": "x" * 100_001}, "prompt"),
        ({"trace_id": "t", "type": "thumbs_up", "metadata": {"n": 1}}, "metadata.n"),
        ({"trace_id": "t", "type": "thumbs_up", "metadata": {"tenant": "other"}}, "metadata.tenant"),
        ({"trace_id": "t", "type": "thumbs_up", "metadata": {"locale": "x" * 201}}, "metadata.locale"),
    ],
)  # fmt: skip
async def test_a_bad_field_is_named_with_rule_and_remedy(
    service: FeedbackHarness, body: object, field: str
) -> None:
    answer = await service.post("/v1/feedback/batch", {"items": [body]})
    (result,) = answer.json()["results"]
    assert result["status"] == 422
    (error,) = result["error"]["errors"]
    assert error["field"] == field
    assert error["rule"]
    assert error["remedy"]
    assert service.value("ratchet_ingestion_rejected_total", reason="invalid", way="batch") == 1


@pytest.mark.parametrize(("sent", "kept"), [(0, 1), (-7, 1), (9, 5), (3, 3), (10**30, 5), (2.0, 2)])
async def test_rating_is_clamped_only_on_request(
    service: FeedbackHarness, sent: float, kept: int
) -> None:
    body = (
        orjson.dumps({"trace_id": "t", "type": "rating", "value": sent})
        if abs(sent) < 2**60
        else (b'{"trace_id":"t","type":"rating","value":%d}' % sent)
    )
    answer = await service.client.post("/v1/feedback?clamp=true", content=body)
    assert answer.status_code == 202, answer.text
    assert [event.value for event in await service.stored("t")] == [kept]
    answer = await service.client.post("/v1/feedback", content=body)
    assert (answer.status_code == 202) == (1 <= sent <= 5)
    if answer.status_code != 202:
        assert "?clamp=true" in answer.json()["detail"]


async def test_null_is_absent(service: FeedbackHarness) -> None:
    body = {"trace_id": "t", "type": "thumbs_up", "value": None, "user_id": None, "metadata": None}
    assert (await service.post("/v1/feedback", body)).status_code == 202


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"trace_id": NaN}'])
async def test_what_is_no_json_object_is_a_400(service: FeedbackHarness, body: bytes) -> None:
    answer = await service.client.post("/v1/feedback", content=body)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "malformed"


async def test_deeply_nested_json_is_a_400(service: FeedbackHarness) -> None:
    answer = await service.client.post("/v1/feedback", content=b"[" * 90_000)
    assert answer.status_code == 400


async def test_too_large_bodies_are_a_413_whether_announced_or_not(
    service: FeedbackHarness,
) -> None:
    async def drip() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield b" " * 1_000

    for content in (b" " * 200_000, drip()):
        answer = await service.client.post("/v1/feedback", content=content)
        assert answer.status_code == 413
        assert answer.json()["code"] == "too_large"


async def test_a_body_that_never_ends_is_a_408(service: FeedbackHarness) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    answer = await service.client.post("/v1/feedback", content=endless())
    assert answer.status_code == 408
    assert answer.json()["code"] == "too_slow"


async def test_a_fault_of_our_own_is_a_500_in_the_same_shape_and_the_next_one_goes_well(
    service: FeedbackHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(_: object) -> None:
        raise RuntimeError("secret detail")

    body = {"trace_id": "t", "type": "thumbs_up"}
    with monkeypatch.context() as patched:
        patched.setattr(service.publisher, "store", broken)
        answer = await service.post("/v1/feedback", body)
    assert answer.status_code == 500
    assert answer.json()["code"] == "internal"
    assert "secret" not in answer.text
    assert service.value("ratchet_ingestion_rejected_total", reason="internal", way="single") == 1
    assert (await service.post("/v1/feedback", body)).status_code == 202


class TestRefusedForGood:
    """Case oversized-traceparent: what the brokers never take is no outage."""

    @pytest.fixture
    async def small(self) -> AsyncIterator[FeedbackHarness]:
        log = MemoryLog()
        log.max_record_bytes = 5_000
        async with feedback_service(log) as started:
            yield started

    LARGE: ClassVar = {"trace_id": "t", "type": "comment", "value": "x" * 6_000}
    GOOD: ClassVar = {"trace_id": "t", "type": "thumbs_up"}

    async def test_it_is_a_413_and_the_next_one_is_stored(self, small: FeedbackHarness) -> None:
        for _ in range(3):
            answer = await small.post("/v1/feedback", self.LARGE)
            assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
            assert "more than the brokers take" in answer.json()["detail"]
            assert not small.publisher.refuses()
            assert (await small.post("/v1/feedback", self.GOOD)).status_code == 202
        assert small.publisher.waiting == 0
        assert (
            small.value("ratchet_ingestion_rejected_total", reason="too_large", way="single") == 3
        )
        assert (
            small.value("ratchet_ingestion_publish_duration_seconds_count", outcome="failed") == 0
        )

    async def test_of_a_batch_it_is_one_items_result(self, small: FeedbackHarness) -> None:
        items = [self.GOOD | {"user_id": "a"}, "odd", self.LARGE, self.GOOD | {"user_id": "b"}]
        answer = await small.post("/v1/feedback/batch", {"items": items})
        assert answer.status_code == 207
        results = answer.json()["results"]
        assert [result["status"] for result in results] == [202, 400, 413, 202]
        assert [event.user_id for event in await small.stored("t")] == ["a", "b"]
        assert small.value("ratchet_ingestion_rejected_total", reason="too_large", way="batch") == 1

    async def test_a_probe_that_is_refused_leaves_the_breaker_to_the_next(
        self, small: FeedbackHarness
    ) -> None:
        assert isinstance(small.log, MemoryLog)
        assert isinstance(small.clock, ManualClock)
        small.log.available = False
        assert (await small.post("/v1/feedback", self.GOOD)).status_code == 503
        small.log.available = True
        small.clock.advance(10)
        assert (await small.post("/v1/feedback", self.LARGE)).status_code == 413
        assert (await small.post("/v1/feedback", self.GOOD)).status_code == 202

    async def test_oversized_traceparent_is_left_out(self, service: FeedbackHarness) -> None:
        parent = f"00-{'ab' * 16}-{'cd' * 8}-01"
        for given, kept in ((f"{parent}-{'x' * 1_100_000}", parent), ("x" * 1_100_000, "")):
            answer = await service.post("/v1/feedback", self.GOOD, headers={"traceparent": given})
            assert answer.status_code == 202
            assert header((await service.records("t"))[-1].headers, "traceparent") == kept


async def test_own_timestamp_of_a_batch_from_an_app_that_was_offline(
    service: FeedbackHarness,
) -> None:
    """Case own-timestamp."""
    given = [START - timedelta(hours=hours) for hours in range(500)]
    items = [
        {"trace_id": f"t{number % 5}", "type": "comment", "value": "late",
         "feedback_id": str(number), "timestamp": time.isoformat()}
        for number, time in enumerate(given)
    ]  # fmt: skip
    assert (await service.post("/v1/feedback/batch", {"items": items})).status_code == 202
    for number in range(5):
        events = await service.stored(f"t{number}")
        assert [event.given_at for event in events] == given[number::5]
        assert {event.submitted_at.date() for event in events} == {START.date()}


async def test_a_batch_has_1_to_1000_items(service: FeedbackHarness) -> None:
    item = {"trace_id": "t", "type": "thumbs_up"}
    for count in (0, MAX_BATCH + 1):
        answer = await service.post("/v1/feedback/batch", {"items": [item] * count})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == "items"
    assert (await service.post("/v1/feedback/batch", {"things": []})).status_code == 400


async def test_a_batchs_idempotency_key_names_each_item(service: FeedbackHarness) -> None:
    items = [{"trace_id": "t", "type": "thumbs_up"}] * 2
    answer = await service.post(
        "/v1/feedback/batch", {"items": items}, headers={"idempotency-key": "k"}
    )
    assert [result["feedback_id"] for result in answer.json()["results"]] == ["k:0", "k:1"]


async def test_a_large_batch_gives_other_requests_their_turns(
    service: FeedbackHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = 0
    seen: set[int] = set()

    def reading(value: object, *, clamp: bool) -> Submission | SignalSubmission:
        nonlocal read
        read += 1
        return read_submission(value, clamp=clamp)

    async def another() -> None:
        while True:
            seen.add(read)
            await asyncio.sleep(0)

    monkeypatch.setattr(api_module, "read_submission", reading)
    waiting = asyncio.create_task(another())
    items = [{"trace_id": f"t{number}", "type": "thumbs_up"} for number in range(MAX_BATCH)]
    assert (await service.post("/v1/feedback/batch", {"items": items})).status_code == 202
    waiting.cancel()
    assert read == MAX_BATCH
    assert len(seen - {0, MAX_BATCH}) >= MAX_BATCH // PER_TURN - 1


@pytest.mark.parametrize("path", ["/v1/feedback?clamp=maybe", "/v1/feedback/batch?clamp=2"])
async def test_a_flag_is_true_or_false(service: FeedbackHarness, path: str) -> None:
    body = {"trace_id": "t", "type": "thumbs_up"}
    answer = await service.post(path, {"items": [body]} if "batch" in path else body)
    assert answer.status_code == 422


class TestCorsPreflight:
    """Case cors-preflight."""

    SHOP = "https://shop.example.com"
    PREFLIGHT: ClassVar = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }

    async def test_cors_preflight(self) -> None:
        async with feedback_service(MemoryLog(), cors_origins=[self.SHOP]) as service:
            asked = self.PREFLIGHT | {"origin": self.SHOP}
            answer = await service.client.options("/v1/feedback", headers=asked)
            assert answer.status_code == 200
            assert answer.headers["access-control-allow-origin"] == self.SHOP
            assert "POST" in answer.headers["access-control-allow-methods"]
            allowed = answer.headers["access-control-allow-headers"]
            assert {"authorization", "content-type"} <= {
                name.strip() for name in allowed.split(",")
            }
            body = {"trace_id": "t", "type": "thumbs_up"}
            for sent, status in ((body, 202), ({}, 422)):
                answer = await service.post("/v1/feedback", sent, headers={"origin": self.SHOP})
                assert answer.status_code == status
                assert answer.headers["access-control-allow-origin"] == self.SHOP
                assert "x-ratchet-trace-id" in answer.headers["access-control-expose-headers"]

    @pytest.mark.parametrize("origins", [(), (SHOP,)])
    async def test_other_origins_are_refused(self, origins: Sequence[str]) -> None:
        async with feedback_service(MemoryLog(), cors_origins=origins) as service:
            asked = self.PREFLIGHT | {"origin": "https://elsewhere.example.com"}
            answer = await service.client.options("/v1/feedback", headers=asked)
            assert answer.status_code >= 400
            assert "access-control-allow-origin" not in answer.headers

    def test_origins_are_read_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RATCHET_FEEDBACK_CORS_ORIGINS", f"{self.SHOP}, http://localhost:3000")
        assert FeedbackSettings().cors_origins == (self.SHOP, "http://localhost:3000")
        for wrong in ("shop.example.com", f"{self.SHOP}/", f"{self.SHOP} x"):
            monkeypatch.setenv("RATCHET_FEEDBACK_CORS_ORIGINS", wrong)
            with pytest.raises(ValidationError, match="is no origin"):
                FeedbackSettings()


async def test_unknown_paths_and_methods_answer_in_the_same_shape(service: FeedbackHarness) -> None:
    for answer in (await service.client.get("/v2"), await service.client.get("/v1/feedback")):
        assert answer.status_code in (404, 405)
        assert answer.headers["content-type"] == "application/problem+json"
        assert {"title", "status", "code", "detail"} <= set(answer.json())


async def test_the_api_describes_itself_and_answers_as_described(service: FeedbackHarness) -> None:
    described = (await service.client.get("/openapi.json")).json()
    good, bad = {"trace_id": "t", "type": "thumbs_up"}, {"trace_id": "t"}
    for path, body in (
        ("/v1/feedback", good),
        ("/v1/feedback", bad),
        ("/v1/feedback/batch", {"items": [good]}),
        ("/v1/feedback/batch", {"items": [good, bad]}),
    ):
        answer = await service.post(path, body)
        promised = described["paths"][path]["post"]["responses"][str(answer.status_code)]
        schema = promised["content"][answer.headers["content-type"]]["schema"]
        with_components = {**schema, "components": described["components"]}
        validator = jsonschema.Draft202012Validator(with_components)
        assert list(validator.iter_errors(answer.json())) == []


class TestWithTheLogAway:
    async def test_503_says_when_to_come_back_and_recovers(self, router: StrawRouter) -> None:
        log, clock = MemoryLog(), ManualClock()
        async with feedback_service(log, clock=clock) as service:
            log.available = False
            body = {"trace_id": "t", "type": "thumbs_up"}
            first = await service.post("/v1/feedback", body)
            second = await service.post("/v1/feedback", body)
            for answer in (first, second):
                assert answer.status_code == 503
                assert int(answer.headers["retry-after"]) >= 1
                assert answer.json()["code"] == "log_unavailable"
            assert service.publisher.refuses()
            log.available = True
            clock.advance(5)
            assert (await service.post("/v1/feedback", body)).status_code == 202
            assert not service.publisher.refuses()
            assert len(await service.stored("t")) == 1

    async def test_only_so_many_may_wait(self) -> None:
        class SlowLog(MemoryLog):
            async def append_many(
                self, records: Sequence[NewRecord], *, timeout_s: float = APPEND_TIMEOUT_S
            ) -> list[Position]:
                await release.wait()
                raise LogUnavailable("never came")

        release = asyncio.Event()
        async with feedback_service(SlowLog(), max_waiting=3) as service:
            body = {"trace_id": "t", "type": "thumbs_up"}
            sending = [asyncio.create_task(service.post("/v1/feedback", body)) for _ in range(5)]
            done, waiting = await asyncio.wait(sending, return_when=asyncio.FIRST_COMPLETED)
            while len(done) < 2:
                more, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                done |= more
            assert {task.result().json()["code"] for task in done} == {"busy"}
            assert len(waiting) == service.publisher.waiting == 3
            release.set()
            answers = await asyncio.gather(*waiting)
            assert {answer.json()["code"] for answer in answers} == {"log_unavailable"}
            assert service.publisher.waiting == 0


class TestKeys:
    async def test_scope_and_tenant_come_from_the_key(self) -> None:
        async with feedback_service(MemoryLog(), keys_required=True) as service:
            for name, scopes in (("f", (Permission.feedback,)), ("v", (Permission.vote,))):
                issued = ApiKeyIssued(
                    key_id=name,
                    sha256=hash_key(name),
                    tenant="acme",
                    scopes=scopes,
                    issued_at=START,
                )
                service.keys.apply(name, issued.to_json())
            body = {"trace_id": "t", "type": "thumbs_up"}
            assert (await service.post("/v1/feedback", body)).status_code == 401
            bearer = {"authorization": "Bearer nobody"}
            answer = await service.post("/v1/feedback", body, headers=bearer)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            bearer = {"authorization": "Bearer v"}
            answer = await service.post("/v1/feedback", body, headers=bearer)
            assert answer.status_code == 403
            assert "feedback" in answer.json()["detail"]
            bearer = {"authorization": "Bearer f"}
            assert (await service.post("/v1/feedback", body, headers=bearer)).status_code == 202
            assert [event.tenant for event in await service.stored("t")] == ["acme"]


class TestComparisons:
    async def test_both_sides_are_asked_as_comparisons_with_seeds_of_their_own(
        self, service: FeedbackHarness, router: StrawRouter
    ) -> None:
        set_routing(service.routing, stable="a-1")
        body = {**QUESTION, "max_tokens": 7, "metadata": {"locale": "en"}, "user_id": "u"}
        answer = await service.post(
            "/v1/comparisons", body, headers={"authorization": "Bearer theirs"}
        )
        assert answer.status_code == 201
        assert [asked["model"] for asked in router.asked] == ["a-1", "a-1"]
        assert len({asked["seed"] for asked in router.asked}) == 2
        assert all(asked["temperature"] == 1.0 for asked in router.asked)
        assert all(asked["max_tokens"] == 7 for asked in router.asked)
        assert all(asked["metadata"] == {"locale": "en"} for asked in router.asked)
        assert all(asked["user"] == "u" for asked in router.asked)
        for headers in router.headers:
            assert headers["x-ratchet-purpose"] == "comparison"
            assert headers["authorization"] == "Bearer theirs"

    async def test_nothing_names_the_versions_before_the_vote(
        self, service: FeedbackHarness, router: StrawRouter
    ) -> None:
        router.text = "hi"
        set_routing(service.routing, stable="first-one", candidate="next-one")
        answer = await service.post("/v1/comparisons", QUESTION)
        everything = answer.text + str(answer.headers)
        assert not re.search(r"first-one|next-one|trace-", everything)

    async def test_sides_are_random(self, service: FeedbackHarness, router: StrawRouter) -> None:
        set_routing(service.routing, stable="a-1", candidate="a-2")
        lefts = [
            (await service.post("/v1/comparisons", QUESTION)).json()["left"]["text"]
            for _ in range(40)
        ]
        assert 8 <= lefts.count("the answer of a-1") <= 32

    @pytest.mark.parametrize("status", [404, 502])
    async def test_a_retired_version_that_is_not_loaded_is_stood_in_for(
        self, service: FeedbackHarness, router: StrawRouter, status: int
    ) -> None:
        router.missing_status = status
        add_version(service.registry, "a-1", Lifecycle.retired)
        set_routing(service.routing, stable="a-2")
        router.missing = {"a-1"}
        answer = await service.post("/v1/comparisons", QUESTION)
        assert answer.status_code == 201
        texts = {answer.json()[side]["text"] for side in ("left", "right")}
        assert texts == {"the answer of a-2"}

    async def test_a_named_version_that_is_not_loaded_is_a_404(
        self, service: FeedbackHarness, router: StrawRouter
    ) -> None:
        router.missing = {"a-1"}
        answer = await service.post("/v1/comparisons", {**QUESTION, "versions": ["a-1", "a-2"]})
        assert answer.status_code == 404
        assert "a-1" in answer.json()["detail"]

    async def test_unknown_model(self, service: FeedbackHarness) -> None:
        answer = await service.post("/v1/comparisons", QUESTION)
        assert answer.status_code == 404
        assert "assistant" in answer.json()["detail"]

    @pytest.mark.parametrize(
        ("status", "seen"), [(500, 502), (503, 503), (401, 502), (429, 503), (400, 422)]
    )
    async def test_the_routers_errors_are_told(
        self, service: FeedbackHarness, router: StrawRouter, status: int, seen: int
    ) -> None:
        set_routing(service.routing, stable="a-1")
        router.status = status
        answer = await service.post("/v1/comparisons", QUESTION)
        assert answer.status_code == seen
        assert "the straw burns" in answer.json()["detail"]

    async def test_no_router_is_a_503(self) -> None:
        async with feedback_service(MemoryLog()) as service:
            set_routing(service.routing, stable="a-1")
            answer = await service.post("/v1/comparisons", QUESTION)
        assert answer.status_code == 503
        assert answer.json()["code"] == "router_failed"
        assert answer.headers["retry-after"]

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"messages": []}, "messages"),
            ({"messages": [{"role": "user"}]}, "messages.0.content"),
            ({"versions": ["a"]}, "versions.1"),
            ({"panel": "jury"}, "panel"),
            ({"temperature": 3}, "temperature"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"model": None}, "model"),
            ({"stream": True}, "stream"),
        ],
    )
    async def test_a_bad_question_is_named(
        self, service: FeedbackHarness, change: dict[str, object], field: str
    ) -> None:
        answer = await service.post("/v1/comparisons", {**QUESTION, **change})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == field

    async def test_unknown_comparison_and_unknown_choice(
        self, service: FeedbackHarness, router: StrawRouter
    ) -> None:
        answer = await service.post("/v1/comparisons/nope/vote", {"choice": "left"})
        assert answer.status_code == 404
        set_routing(service.routing, stable="a-1")
        opened = (await service.post("/v1/comparisons", QUESTION)).json()
        path = f"/v1/comparisons/{opened['comparison_id']}/vote"
        answer = await service.post(path, {"choice": "up"})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == "choice"

    @pytest.mark.parametrize(("voter", "asker"), [("ben", "ada"), ("ada", ""), ("", "")])
    async def test_a_vote_names_who_asked_where_another_person_votes(
        self, service: FeedbackHarness, router: StrawRouter, voter: str, asker: str
    ) -> None:
        set_routing(service.routing, stable="a-1")
        opened = (await service.post("/v1/comparisons", QUESTION | {"user_id": "ada"})).json()
        path = f"/v1/comparisons/{opened['comparison_id']}/vote"
        await service.post(path, {"choice": "right", "user_id": voter})
        (vote,) = await service.stored(opened["comparison_id"])
        assert (vote.user_id, vote.asker) == (voter or "ada", asker)

    async def test_anonymous_votes_are_flagged_where_they_are_on(
        self, service: FeedbackHarness, router: StrawRouter
    ) -> None:
        set_routing(service.routing, stable="a-1")
        opened = (await service.post("/v1/comparisons", QUESTION)).json()
        path = f"/v1/comparisons/{opened['comparison_id']}/vote"
        assert (await service.post(path, {"choice": "right"})).status_code == 200
        (vote,) = await service.stored(opened["comparison_id"])
        assert vote.anonymous

    async def test_anonymous_votes_are_refused_where_they_are_off(
        self, router: StrawRouter
    ) -> None:
        log = MemoryLog()
        async with feedback_service(log, router_url=router.url, anonymous_votes=False) as service:
            set_routing(service.routing, stable="a-1")
            opened = (await service.post("/v1/comparisons", QUESTION)).json()
            path = f"/v1/comparisons/{opened['comparison_id']}/vote"
            answer = await service.post(path, {"choice": "right"})
            assert answer.status_code == 403
            assert answer.json()["errors"][0]["field"] == "user_id"

    async def test_a_vote_that_could_not_be_stored_can_be_sent_again(
        self, router: StrawRouter
    ) -> None:
        log, clock = MemoryLog(), ManualClock()
        async with feedback_service(log, router_url=router.url, clock=clock) as service:
            set_routing(service.routing, stable="first-one")
            opened = (await service.post("/v1/comparisons", QUESTION)).json()
            path = f"/v1/comparisons/{opened['comparison_id']}/vote"
            log.available = False
            answer = await service.post(path, {"choice": "left", "user_id": "u"})
            assert answer.status_code == 503
            assert "first-one" not in answer.text
            log.available = True
            clock.advance(10)
            answer = await service.post(path, {"choice": "left", "user_id": "u"})
            assert answer.status_code == 200
            (vote,) = await service.stored(opened["comparison_id"])
            assert vote.submitted_at == START

    async def test_a_vote_for_the_judges_panel_needs_a_key_for_it(self) -> None:
        async with feedback_service(MemoryLog(), keys_required=True) as service:
            for name, judge_panel in (("voter", False), ("judge", True)):
                issued = ApiKeyIssued(
                    key_id=name,
                    sha256=hash_key(name),
                    tenant="acme",
                    scopes=(Permission.vote,),
                    judge_panel=judge_panel,
                    issued_at=START,
                )
                service.keys.apply(name, issued.to_json())
            body = {"messages": [{"role": "user", "content": "hi"}], "panel": "judge"}
            bearer = {"authorization": "Bearer voter"}
            refused = await service.post("/v1/comparisons", body, headers=bearer)
            assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
            bearer = {"authorization": "Bearer judge"}
            passed = await service.post("/v1/comparisons", body, headers=bearer)
            assert passed.status_code != 403


class TestQuotas:
    async def test_a_key_over_its_limit_is_told_when_to_come_back(self) -> None:
        limits = RateLimits(requests=5)
        async with feedback_service(MemoryLog(), key_limits=limits) as service:
            thumb = {"trace_id": "t", "type": "thumbs_up"}
            batch = {"items": [thumb] * 4}
            assert (await service.post("/v1/feedback/batch", batch)).status_code == 202
            assert (await service.post("/v1/feedback", thumb)).status_code == 202
            for path, body in (("/v1/feedback", thumb), ("/v1/feedback/batch", batch)):
                refused = await service.post(path, body)
                assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
                assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert len(await service.stored("t")) == 5
            for way in ("single", "batch"):
                count = service.value(
                    "ratchet_ingestion_rejected_total", reason="rate_limited", way=way
                )
                assert count == 1
