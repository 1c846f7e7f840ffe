"""The voting page over HTTP: who gets in, what is refused, what is stored."""

from __future__ import annotations

import asyncio
import html
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import orjson
import pytest

from services.feedback.voting.ballots import MAX_PENDING
from services.feedback.voting.invites import InviteRefused, Invites, Rater
from services.feedback.voting.plan import VotingPlan
from shared.contracts.events.api_keys import ApiKeyIssued, Permission
from shared.contracts.events.feedback import (
    Correction,
    FeedbackSubmitted,
    FeedbackType,
    FeedbackWithdrawn,
)
from shared.contracts.events.votes import Choice, VoteCast
from shared.keys import hash_key
from tests.support.openapi_answers import hooks
from tests.support.voting import PLAN, RATER, SECRET, VotingHarness, voting_service
from tests.support.waiting import eventually


class Visitor:
    """A browser without a screen: cookies, and the page's CSRF token."""

    def __init__(self, app: Any, harness: VotingHarness) -> None:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(
            transport=transport, base_url="http://feedback", event_hooks=hooks("feedback")
        )
        self.harness = harness
        self.token = ""

    async def sign_in(self, rater: Rater = RATER) -> httpx.Response:
        answer = await self.client.get(self.harness.invite(rater), follow_redirects=True)
        if found := re.search(r'csrf-token" content="([^"]+)"', answer.text):
            self.token = html.unescape(found[1])
        return answer

    async def post(self, path: str, body: Any = None, **headers: str) -> httpx.Response:
        given = {"x-csrf-token": self.token, **headers}
        return await self.client.post(
            f"/vote/api{path}", content=orjson.dumps(body or {}), headers=given
        )

    async def next(self, **body: str) -> dict[str, Any]:
        answer = await self.post("/next", body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def vote(self, comparison: dict[str, Any], choice: str = "left") -> httpx.Response:
        path = f"/comparisons/{comparison['comparison_id']}/vote"
        return await self.post(path, {"choice": choice})


@asynccontextmanager
async def visiting(plan: VotingPlan = PLAN, **settings: Any) -> AsyncIterator[Visitor]:
    async with voting_service(plan, **settings) as (app, harness):
        harness.url = "http://feedback"
        visitor = Visitor(app, harness)
        async with visitor.client:
            yield visitor


def issue(visitor: Visitor, key: str, *, tenant: str) -> None:
    """Make a key valid for comparisons of a tenant."""
    issued = ApiKeyIssued(
        key_id="page",
        sha256=hash_key(key),
        tenant=tenant,
        scopes=(Permission.vote, Permission.infer),
        explicit_versions=True,
        issued_at=visitor.harness.clock.now(),
    )
    visitor.harness.keys.apply("page", issued.to_json())


@pytest.fixture
async def visitor() -> AsyncIterator[Visitor]:
    async with visiting() as one:
        await one.sign_in()
        yield one


def votes(visitor: Visitor) -> list[VoteCast]:
    return [event for event in visitor.harness.events() if isinstance(event, VoteCast)]


class TestSignIn:
    async def test_without_a_secret_the_page_is_off_and_says_why(self) -> None:
        async with visiting(secret="") as visitor:
            page = await visitor.client.get("/vote/")
            invite = await visitor.client.post("/v1/invites", json={"user_id": "rosa"})
        assert page.status_code == invite.status_code == 503
        assert "RATCHET_FEEDBACK_VOTING_SECRET_FILE is not set" in page.text
        assert "RATCHET_FEEDBACK_VOTING_SECRET_FILE is not set" in invite.json()["detail"]

    async def test_an_invite_signs_in_and_leaves_the_address(self) -> None:
        async with visiting() as visitor:
            answer = await visitor.client.get(visitor.harness.invite())
            assert answer.status_code == 303
            assert answer.headers["location"] == "/vote/"
            cookie = answer.headers["set-cookie"].lower()
            assert "httponly" in cookie
            assert "samesite=lax" in cookie
            page = await visitor.client.get("/vote/")
        assert page.status_code == 200
        assert "rosa" in page.text

    async def test_the_service_issues_invites(self) -> None:
        async with visiting() as visitor:
            asked = {"user_id": "ben", "hours": 2}
            issued = await visitor.client.post("/v1/invites", json=asked)
            assert issued.status_code == 201
            assert issued.json()["tenant"] == "default"
            page = await visitor.client.get(issued.json()["path"], follow_redirects=True)
        assert "ben" in page.text

    @pytest.mark.parametrize("body", [{}, {"user_id": "a", "hours": 0}, {"user_id": "a\n"}])
    async def test_a_wrong_request_for_an_invite_is_refused(self, body: dict[str, Any]) -> None:
        async with visiting() as visitor:
            answer = await visitor.client.post("/v1/invites", json=body)
        assert answer.status_code == 422

    async def test_invites_need_a_key_where_keys_are_required(self) -> None:
        async with visiting(keys_required=True) as visitor:
            answer = await visitor.client.post("/v1/invites", json={"user_id": "rosa"})
        assert answer.status_code == 401

    @pytest.mark.parametrize("token", ["", "nonsense", "a.b.c", "x" * 5_000])
    async def test_what_is_no_invite_is_refused_in_plain_words(self, token: str) -> None:
        async with visiting() as visitor:
            answer = await visitor.client.get("/vote/sign-in", params={"invite": token})
        assert answer.status_code == 403
        assert "was not issued here" in answer.text

    async def test_an_invite_ends(self) -> None:
        async with visiting() as visitor:
            link = visitor.harness.invite(hours=-1)
            answer = await visitor.client.get(link)
        assert answer.status_code == 403
        assert "ended on" in answer.text

    async def test_another_tenant_s_invite_is_refused(self) -> None:
        async with visiting() as visitor:
            answer = await visitor.sign_in(Rater("globex", "rosa"))
        assert answer.status_code == 403
        assert "for tenant globex" in answer.text

    async def test_nobody_signs_in_with_another_secret(self) -> None:
        async with visiting() as visitor:
            expires_at = visitor.harness.clock.now().replace(year=2100)
            token = Invites("another secret, long enough too ....").issue(
                RATER, expires_at=expires_at
            )
            with pytest.raises(InviteRefused):
                Invites(SECRET).read(token, now=visitor.harness.clock.now())

    async def test_a_trusted_header_signs_in_where_it_is_set(self) -> None:
        async with visiting(proxy_header="x-forwarded-user") as visitor:
            page = await visitor.client.get("/vote/", headers={"x-forwarded-user": "mia"})
            assert "mia" in page.text
            found = re.search(r'csrf-token" content="([^"]+)"', page.text)
            assert found is not None
            visitor.token = found[1]
            assert (await visitor.post("/next", **{"x-forwarded-user": "mia"})).status_code == 200
            other = await visitor.post("/next", **{"x-forwarded-user": "eve"})
        assert other.status_code == 401

    async def test_the_header_means_nothing_where_it_is_not_set(self) -> None:
        async with visiting() as visitor:
            page = await visitor.client.get("/vote/", headers={"x-forwarded-user": "mia"})
        assert page.status_code == 401

    @pytest.mark.parametrize("token", ["", "another"])
    async def test_a_call_without_the_page_s_token_is_refused(
        self, visitor: Visitor, token: str
    ) -> None:
        answer = await visitor.post("/next", **{"x-csrf-token": token})
        assert answer.status_code == 401
        assert answer.json()["remedy"]

    async def test_an_empty_invite_does_not_stand_for_the_token(self, visitor: Visitor) -> None:
        answer = await visitor.post("/next", **{"x-csrf-token": "", "x-ratchet-invite": ""})
        assert answer.status_code == 401

    async def test_a_changed_cookie_is_no_session(self, visitor: Visitor) -> None:
        cookie = visitor.client.cookies["ratchet_vote"]
        visitor.client.cookies.clear()
        visitor.client.cookies.set("ratchet_vote", cookie[:-3] + "abc", path="/vote")
        assert (await visitor.post("/next")).status_code == 401

    async def test_a_session_ends_where_the_page_s_key_is_another_tenant_s(self) -> None:
        async with visiting(keys_required=True, authorization="Bearer rk_one") as visitor:
            issue(visitor, "rk_one", tenant="default")
            await visitor.sign_in()
            assert (await visitor.post("/next")).status_code == 200
            assert set(visitor.harness.router.authorizations) == {"Bearer rk_one"}
            issue(visitor, "rk_one", tenant="globex")
            answer = await visitor.post("/next")
        assert answer.status_code == 401
        assert answer.json()["what"] == "The page serves another tenant now."

    async def test_a_page_without_its_key_says_whom_to_tell(self) -> None:
        async with visiting(keys_required=True) as visitor:
            answer = await visitor.sign_in()
        assert answer.status_code == 401
        assert "RATCHET_FEEDBACK_ROUTER_API_KEY_FILE" in answer.text

    async def test_the_page_is_found_without_its_last_slash(self, visitor: Visitor) -> None:
        answer = await visitor.client.get("/vote", follow_redirects=True)
        assert answer.status_code == 200

    async def test_signing_out_ends_the_session(self, visitor: Visitor) -> None:
        assert (await visitor.post("/sign-out")).status_code == 200
        assert (await visitor.client.get("/vote/")).status_code == 401

    @pytest.mark.parametrize(
        "path",
        ["/vote/", "/vote/sign-in", "/vote/static/voting.js", "/vote/static/look.css"],
    )
    async def test_every_answer_has_the_policy(self, visitor: Visitor, path: str) -> None:
        headers = (await visitor.client.get(path)).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


class TestVotes:
    async def test_nothing_names_the_versions_before_the_vote(self, visitor: Visitor) -> None:
        comparison = await visitor.next()
        assert "assistant-v1" not in orjson.dumps(comparison).decode()
        assert "trace" not in orjson.dumps(comparison).decode()
        answer = (await visitor.vote(comparison)).json()
        assert sorted(answer["versions"].values()) == ["assistant-v1.0", "assistant-v1.1"]

    async def test_a_vote_says_how_it_came_about(self, visitor: Visitor) -> None:
        comparison = await visitor.next()
        visitor.harness.clock.advance(30)
        answer = (await visitor.vote(comparison, "right")).json()
        (vote,) = votes(visitor)
        assert vote.choice is Choice.right
        assert vote.user_id == "rosa"
        assert vote.context.category == comparison["category"]
        labels = vote.context.labels
        assert labels["vote_source"] == "page"
        assert labels["vote_side"] == "right"
        assert 30_000 <= int(labels["vote_ms"]) < 60_000
        assert "vote_faster_than_reading" not in labels
        assert answer["faster_than_reading"] is False
        assert answer["progress"]["today"] == 1
        assert answer["progress"]["coverage"][comparison["category"]] == 1

    async def test_a_vote_faster_than_reading_is_marked_and_counts(self, visitor: Visitor) -> None:
        answer = (await visitor.vote(await visitor.next())).json()
        assert answer["faster_than_reading"] is True
        (vote,) = votes(visitor)
        assert vote.context.labels["vote_faster_than_reading"] == "true"

    async def test_the_same_vote_again_counts_once(self, visitor: Visitor) -> None:
        comparison = await visitor.next()
        answers = await asyncio.gather(*(visitor.vote(comparison) for _ in range(5)))
        assert {answer.status_code for answer in answers} == {200}
        assert answers[-1].json()["progress"]["today"] == 1
        # Votes at the same moment may be stored twice: as the same event, which counts once.
        assert len({vote.to_json() for vote in votes(visitor)}) == 1
        stored = len(votes(visitor))
        await visitor.vote(comparison)
        assert len(votes(visitor)) == stored

    async def test_another_vote_is_refused_in_plain_words(self, visitor: Visitor) -> None:
        comparison = await visitor.next()
        await visitor.vote(comparison, "left")
        answer = await visitor.vote(comparison, "right")
        assert answer.status_code == 409
        assert answer.json()["what"].startswith("This comparison already has your vote")
        assert [vote.choice for vote in votes(visitor)] == [Choice.left]

    async def test_nobody_votes_on_another_s_comparison(self, visitor: Visitor) -> None:
        comparison = await visitor.next()
        await visitor.sign_in(Rater("default", "ben"))
        assert (await visitor.vote(comparison)).status_code == 404
        path = f"/comparisons/{comparison['comparison_id']}"
        assert (await visitor.post(f"{path}/undo")).status_code == 404
        correction = {"side": "left", "text": "mine"}
        assert (await visitor.post(f"{path}/correction", correction)).status_code == 404

    @pytest.mark.parametrize("body", [{}, {"choice": "middle"}, {"choice": "left", "user_id": "x"}])
    async def test_a_wrong_vote_is_refused(self, visitor: Visitor, body: dict[str, str]) -> None:
        comparison = await visitor.next()
        answer = await visitor.post(f"/comparisons/{comparison['comparison_id']}/vote", body)
        assert answer.status_code == 422
        assert votes(visitor) == []

    async def test_the_page_again_shows_the_same_comparison(self, visitor: Visitor) -> None:
        first = await visitor.next()
        assert await visitor.next() == first

    async def test_one_comparison_more_is_ready_before_the_vote(self, visitor: Visitor) -> None:
        first = await visitor.next()
        await eventually(lambda: len(visitor.harness.router.asked) == 4, "the reserve")
        visitor.harness.router.gate.clear()
        await visitor.vote(first)
        second = await asyncio.wait_for(visitor.next(), 60)
        assert second["comparison_id"] != first["comparison_id"]
        assert second["question"] != first["question"]

    async def test_reloads_while_waiting_ask_once(self, visitor: Visitor) -> None:
        router = visitor.harness.router
        router.gate.clear()
        loads = [asyncio.create_task(visitor.next()) for _ in range(3)]
        await eventually(lambda: len(router.asked) == 2, "one pair is asked for")
        router.gate.set()
        shown = await asyncio.gather(*loads)
        assert len({comparison["comparison_id"] for comparison in shown}) == 1

    async def test_a_comparison_that_is_gone_is_replaced(self, visitor: Visitor) -> None:
        first = await visitor.next()
        visitor.harness.comparisons.open.clear()
        second = await visitor.next()
        assert second["comparison_id"] != first["comparison_id"]
        assert (await visitor.vote(first)).status_code == 404


class TestOwnQuestions:
    async def test_a_rater_s_question_is_asked_and_classified(self, visitor: Visitor) -> None:
        shown = await visitor.next(question="Explain tides.")
        assert shown["question"] == "Explain tides."
        assert shown["category"] == "explanation"
        shown = await visitor.next(question="Explain tides.", category="creative")
        assert shown["category"] == "creative"

    async def test_open_questions_are_bounded(self, visitor: Visitor) -> None:
        for number in range(MAX_PENDING + 3):
            await visitor.next(question=f"Question {number}?")
        pending = await visitor.harness.raters.pending(RATER)
        assert len(pending) == MAX_PENDING
        assert (await visitor.next())["question"] == f"Question {MAX_PENDING + 2}?"

    async def test_a_second_question_waits_for_the_first(self, visitor: Visitor) -> None:
        visitor.harness.router.gate.clear()
        first = asyncio.create_task(visitor.next(question="One?"))
        await eventually(lambda: visitor.harness.router.asked, "the first is asked")
        second = await visitor.post("/next", {"question": "Two?"})
        assert second.status_code == 503
        assert second.json()["remedy"]
        visitor.harness.router.gate.set()
        assert (await first)["question"] == "One?"

    async def test_a_question_may_not_be_endless(self, visitor: Visitor) -> None:
        assert (await visitor.post("/next", {"question": "x" * 4_001})).status_code == 422


class TestUndo:
    async def test_a_vote_is_withdrawn_within_a_minute(self, visitor: Visitor) -> None:
        comparison = await visitor.next()
        voted = (await visitor.vote(comparison)).json()["progress"]
        assert 0 < voted["history"][0]["undo_s"] <= 60
        path = f"/comparisons/{comparison['comparison_id']}/undo"
        for _ in range(2):
            undone = (await visitor.post(path)).json()["progress"]
        assert undone["today"] == 0
        assert undone["history"][0]["withdrawn"] is True
        assert undone["coverage"][comparison["category"]] == 0
        (event,) = [
            event for event in visitor.harness.events() if isinstance(event, FeedbackWithdrawn)
        ]
        assert event.feedback_id == event.trace_id == comparison["comparison_id"]
        assert event.type is FeedbackType.preference
        assert event.revision == 1

    async def test_after_a_minute_it_stands(self, visitor: Visitor) -> None:
        comparison = await visitor.next()
        await visitor.vote(comparison)
        visitor.harness.clock.advance(61)
        answer = await visitor.post(f"/comparisons/{comparison['comparison_id']}/undo")
        assert answer.status_code == 409
        assert answer.json()["what"].startswith("A vote can be taken back for a minute")


class TestCorrections:
    async def test_a_correction_is_feedback_on_that_answer(self, visitor: Visitor) -> None:
        comparison = await visitor.next()
        path = f"/comparisons/{comparison['comparison_id']}/correction"
        body = {"side": "right", "text": "Say it so."}
        assert (await visitor.post(path, body)).status_code == 404
        await visitor.vote(comparison)
        assert (await visitor.post(path, body)).status_code == 200
        (vote,) = votes(visitor)
        (event,) = [
            event for event in visitor.harness.events() if isinstance(event, FeedbackSubmitted)
        ]
        assert event.type is FeedbackType.text_correction
        assert event.trace_id == vote.right.trace_id
        assert event.user_id == "rosa"
        assert event.value.original == vote.right.completion  # type: ignore[union-attr]
        assert event.value.corrected == "Say it so."  # type: ignore[union-attr]


class TestEmptyStates:
    async def test_no_queue_asks_for_a_question(self) -> None:
        async with visiting(VotingPlan()) as visitor:
            await visitor.sign_in()
            answer = await visitor.post("/next")
        assert answer.status_code == 404
        assert answer.json()["what"] == "The queue has no prompts."
        assert answer.json()["remedy"] == "Ask a question of your own."

    async def test_no_version_says_so(self) -> None:
        async with visiting(VotingPlan(model="nobody")) as visitor:
            await visitor.sign_in()
            answer = await visitor.post("/next", {"question": "Hello?"})
        assert answer.status_code == 404
        assert answer.json()["what"] == "No version of nobody is served yet."

    @pytest.mark.parametrize(
        ("status", "said"),
        [
            (500, "The model could not answer."),
            (503, "The model did not answer in time."),
        ],
    )
    async def test_a_failing_model_is_said_in_plain_words(
        self, visitor: Visitor, status: int, said: str
    ) -> None:
        visitor.harness.router.status = status
        answer = await visitor.post("/next")
        assert answer.json()["what"] == said
        assert "Try again" in answer.json()["remedy"]
        visitor.harness.router.status = 200
        assert (await visitor.post("/next")).status_code == 200

    async def test_a_vote_that_cannot_be_stored_may_be_sent_again(self, visitor: Visitor) -> None:
        comparison = await visitor.next()
        visitor.harness.log.available = False
        refused = await visitor.vote(comparison)
        assert refused.status_code == 503
        assert "counts once" in refused.json()["remedy"]
        visitor.harness.log.available = True
        visitor.harness.clock.advance(30)
        answer = await eventually_voted(visitor, comparison)
        assert answer["progress"]["today"] == 1
        assert len(votes(visitor)) == 1


async def eventually_voted(visitor: Visitor, comparison: dict[str, Any]) -> dict[str, Any]:
    """The answer to a vote once the circuit breaker lets one through."""

    async def voted() -> dict[str, Any] | None:
        answer = await visitor.vote(comparison)
        return answer.json() if answer.status_code == 200 else None

    answer = await eventually(voted, "the vote is stored")
    assert answer is not None
    return answer


async def test_disliked_parts_make_a_correction_and_liked_ones_a_comment() -> None:
    async with visiting() as visitor:
        visitor.harness.router.text = "Good words. Bad words. More."
        await visitor.sign_in()
        shown = await visitor.next()
        path = f"/comparisons/{shown['comparison_id']}/spans"
        spans = [{"start": 0, "end": 4, "liked": True}, {"start": 12, "end": 15, "liked": False}]
        body = {"side": "left", "spans": spans}
        assert (await visitor.post(path, body)).status_code == 404, "vote first"
        await visitor.vote(shown)
        for _ in range(2):
            answer = await visitor.post(path, body)
            assert answer.status_code == 200, answer.text
        events = [one for one in visitor.harness.events() if isinstance(one, FeedbackSubmitted)]
        by_type = {event.type: event for event in events}
        corrected = by_type[FeedbackType.text_correction]
        assert corrected.value == Correction(
            original="Good words. Bad words. More.", corrected="Good words. More."
        )
        assert corrected.context.labels["spans_disliked"] == "12-15"
        assert by_type[FeedbackType.comment].value == "> Good"
        assert len({event.feedback_id for event in events}) == 2


@pytest.mark.parametrize(
    ("spans", "said"),
    [
        ([], "at least 1"),
        ([{"start": 0, "end": 99, "liked": True}], "ends behind the answer"),
        ([{"start": 0, "end": 5, "liked": False}], "nothing is left"),
    ],
)
async def test_marks_that_say_nothing_are_refused(spans: list[dict[str, Any]], said: str) -> None:
    async with visiting() as visitor:
        visitor.harness.router.text = "Words."
        await visitor.sign_in()
        shown = await visitor.next()
        await visitor.vote(shown)
        path = f"/comparisons/{shown['comparison_id']}/spans"
        answer = await visitor.post(path, {"side": "left", "spans": spans})
        assert answer.status_code == 422
        assert said in answer.text


SHOP = "https://shop.example.com"


async def test_a_named_origin_may_embed_the_page_and_votes_by_invite_without_a_cookie() -> None:
    async with visiting(embed_origins=(SHOP,)) as visitor:
        invite = visitor.harness.invite().partition("invite=")[2]
        page = await visitor.client.get(f"/vote/embed?origin={SHOP}&invite={invite}")
        assert page.status_code == 200
        assert f"frame-ancestors {SHOP}" in page.headers["content-security-policy"]
        assert "set-cookie" not in page.headers
        assert f'name="parent" content="{SHOP}"' in page.text
        called = await visitor.post("/next", **{"x-ratchet-invite": invite})
        assert called.status_code == 200, called.text
        path = f"/comparisons/{called.json()['comparison_id']}/vote"
        voted = await visitor.post(path, {"choice": "tie"}, **{"x-ratchet-invite": invite})
        assert voted.status_code == 200
        (vote,) = [one for one in visitor.harness.events() if isinstance(one, VoteCast)]
        assert vote.user_id == RATER.user_id


@pytest.mark.parametrize(
    "origin", ["https://evil.example.com", "", "https://shop.example.com.evil.io"]
)
async def test_no_other_origin_may_embed_the_page(origin: str) -> None:
    async with visiting(embed_origins=(SHOP,)) as visitor:
        invite = visitor.harness.invite().partition("invite=")[2]
        page = await visitor.client.get(f"/vote/embed?origin={origin}&invite={invite}")
        assert page.status_code == 403
        assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
        assert "RATCHET_FEEDBACK_EMBED_ORIGINS" in page.text


async def test_an_embedded_page_needs_an_invite_that_holds() -> None:
    async with visiting(embed_origins=(SHOP,)) as visitor:
        page = await visitor.client.get(f"/vote/embed?origin={SHOP}&invite=made-up")
        assert page.status_code == 403
        assert "Ask for a new one" in page.text
        # Else the browser shows the frame empty, and nobody learns why.
        assert f"frame-ancestors {SHOP}" in page.headers["content-security-policy"]
        refused = await visitor.post("/next", **{"x-ratchet-invite": "made-up"})
        assert refused.status_code == 403


async def test_of_three_versions_every_pair_is_shown_over_time() -> None:
    versions = ["assistant-v1.0", "assistant-v1.1", "assistant-v1.2"]
    plan = VotingPlan.model_validate({**PLAN.model_dump(), "versions": versions})
    async with visiting(plan) as visitor:
        await visitor.sign_in()
        shown: set[frozenset[str]] = set()
        for _ in range(12):
            answer = await visitor.vote(await visitor.next())
            shown.add(frozenset(answer.json()["versions"].values()))
        assert len(shown) == 3
        assert all(len(pair) == 2 for pair in shown)


async def test_a_conversation_of_the_queue_is_shown_and_asked_whole() -> None:
    before = [
        {"role": "user", "content": "I bake **bread**."},
        {"role": "assistant", "content": "<b>Nice.</b>"},
    ]
    prompts = [{"text": "Write a slogan for it.", "before": before}]
    plan = VotingPlan.model_validate({**PLAN.model_dump(), "prompts": prompts})
    async with visiting(plan) as visitor:
        await visitor.sign_in()
        shown = await visitor.next()
        assert shown["question"] == "Write a slogan for it."
        assert [turn["role"] for turn in shown["earlier"]] == ["user", "assistant"]
        assert "<strong>bread</strong>" in shown["earlier"][0]["html"]
        assert "<b>" not in shown["earlier"][1]["html"]
        asked = visitor.harness.router.asked[0]["messages"]
        assert [turn["content"] for turn in asked] == [
            *(turn["content"] for turn in before),
            "Write a slogan for it.",
        ]
        await visitor.vote(shown)
        (vote,) = [one for one in visitor.harness.events() if isinstance(one, VoteCast)]
        assert len(vote.messages) == 3


def test_a_plan_compares_two_or_more_different_versions() -> None:
    for versions in (["a"], ["a", "b", "a"]):
        with pytest.raises(ValueError, match="two or more different versions"):
            VotingPlan.model_validate({"versions": versions})
