"""The queue ranks itself: over real sockets, with a router and a scorer of straw."""

from __future__ import annotations

import random
from typing import Any

import pytest
from aiohttp import web

from services.feedback.errors import NotFound
from services.feedback.router_client import RouterClient, router_session
from services.feedback.voting.plan import VotingPlan
from services.feedback.voting.prompt_ranking import RETRY_S, PromptRanking, RankingSchedule
from services.feedback.voting.prompts import PromptQueue
from shared.http.reward_scores import SCORED_AT_ONCE, NotScored, RewardScores
from shared.testing.clock import ManualClock
from tests.support.feedback import answering

SCORES = {"sure?": (5.0, -5.0), "unsure?": (0.1, 0.0), "other?": (1.0, 0.0)}
PLAN = VotingPlan.model_validate({"prompts": [*SCORES, "broken?"]})
HOUR = RankingSchedule(3600.0, 100)


class StrawVersions:
    """A router and a scorer: scores by question and version, and what the router was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []
        self.down = False
        self.doubts: dict[str, float] = {}
        """Of the reward model's heads, by question."""

    async def chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        question = body["messages"][-1]["content"]
        self.asked.append((request.headers["x-ratchet-purpose"], body["model"], question))
        if question == "broken?" and body["model"] == "v2":
            return web.json_response({"error": {"message": "no engine"}}, status=503)
        choice = {"message": {"content": f"{body['model']} speaks"}}
        return web.json_response(
            {"model": body["model"], "choices": [choice]}, headers={"x-ratchet-trace-id": "t"}
        )

    async def score(self, request: web.Request) -> web.Response:
        if self.down:
            return web.json_response({"title": "no reward model"}, status=404)
        assert request.headers["authorization"] == "Bearer key"
        items: list[dict[str, Any]] = (await request.json())["items"]
        found = [
            SCORES.get(item["messages"][-1]["content"], (0.0, 0.0))[
                item["completion"] == "v2 speaks"
            ]
            for item in items
        ]
        doubts = [self.doubts.get(item["messages"][-1]["content"], 0.0) for item in items]
        return web.json_response(
            {"reward_model": "m-reward-v1", "scores": found, "uncertainties": doubts}
        )


def ranking(url: str, session: Any, queue: PromptQueue, **changes: Any) -> PromptRanking:
    given: dict[str, Any] = {
        "router": RouterClient(session, url, timeout_s=20, purpose="evaluation"),
        "scores": RewardScores(session, (url,), lambda: "Bearer key"),
        "queue": queue,
        "plan": PLAN,
        "compared": lambda: ("m", ("v1", "v2")),
        "schedule": HOUR,
        "clock": ManualClock(),
        "authorization": "Bearer key",
        "rng": random.Random(1),
    }
    return PromptRanking(**given | changes)


def first_of(queue: PromptQueue) -> str:
    chosen = queue.choose({}, set(), random.Random(2))
    assert chosen is not None
    return chosen[0].text


async def test_what_the_heads_of_the_reward_model_dispute_is_asked_first() -> None:
    straw, queue = StrawVersions(), PromptQueue(PLAN)
    straw.doubts = {"sure?": 1000.0}
    async with answering(straw.chat, straw.score) as url, router_session(4) as session:
        await ranking(url, session, queue).rank()
    assert first_of(queue) == "sure?"


async def test_what_the_reward_model_is_unsure_of_is_asked_first_until_others_are_compared() -> (
    None
):
    straw, queue = StrawVersions(), PromptQueue(PLAN)
    async with answering(straw.chat, straw.score) as url, router_session(4) as session:
        assert await ranking(url, session, queue).rank() == 3, "one was not answered by both"
    assert first_of(queue) == "unsure?"
    assert {purpose for purpose, _, _ in straw.asked} == {"evaluation"}
    queue.inform(("v2", "v3"), {"sure?": 0.1})
    assert first_of(queue) == "sure?", "what v1 and v2 told is forgotten"


async def test_no_more_prompts_are_answered_than_the_setting_says() -> None:
    straw = StrawVersions()
    async with answering(straw.chat, straw.score) as url, router_session(4) as session:
        few = ranking(url, session, PromptQueue(PLAN), schedule=RankingSchedule(3600.0, 2))
        await few.rank()
    assert len(straw.asked) == 4


async def test_without_scores_or_versions_the_order_stays_and_it_is_tried_again_soon() -> None:
    straw, queue = StrawVersions(), PromptQueue(PLAN)
    straw.down = True

    class Ended(Exception):
        """Ends the endless run."""

    class EndedByFourthSleep(ManualClock):
        waited: tuple[float, ...] = ()

        async def sleep(self, seconds: float) -> None:
            self.waited += (seconds,)
            if len(self.waited) == 4:
                raise Ended
            straw.down = len(self.waited) == 1

    def unserved() -> tuple[str, tuple[str, str]]:
        raise NotFound("no version is served yet")

    async with answering(straw.chat, straw.score) as url, router_session(4) as session:
        clock = EndedByFourthSleep()
        with pytest.raises(NotScored, match="404"):
            await ranking(url, session, queue).rank()
        assert not straw.asked, "answers were generated that nothing scores"
        with pytest.raises(NotFound):
            await ranking(url, session, queue, compared=unserved).rank()
        with pytest.raises(Ended):
            await ranking(url, session, queue, clock=clock).run()
    assert clock.waited == (RETRY_S, 2 * RETRY_S, HOUR.every_s, HOUR.every_s)
    assert first_of(queue) == "unsure?"


async def test_a_queue_that_no_version_answers_is_ranked_soon_again() -> None:
    straw = StrawVersions()
    plan = VotingPlan.model_validate({"prompts": ["broken?"]})
    async with answering(straw.chat, straw.score) as url, router_session(4) as session:
        with pytest.raises(NotScored, match="no prompt was answered"):
            await ranking(url, session, PromptQueue(plan), plan=plan).rank()


async def test_scores_of_two_reward_models_are_not_compared() -> None:
    answers = 0

    async def score(request: web.Request) -> web.Response:
        nonlocal answers
        answers += 1
        items: list[dict[str, Any]] = (await request.json())["items"]
        return web.json_response({"reward_model": f"r{answers}", "scores": [1.0] * len(items)})

    asked = [([], "an answer")] * (SCORED_AT_ONCE + 1)
    async with answering(StrawVersions().chat, score) as url, router_session(4) as session:
        scores = RewardScores(session, (url,))
        assert (await scores.given("m", asked[:2])).reward_model == "r1"
        with pytest.raises(NotScored, match="several reward models, r2, r3"):
            await scores.given("m", asked)
