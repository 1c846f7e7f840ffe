"""Scores of answers from several inference services, of which not all have the reward model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from shared.credentials import CredentialsUnreadable
from shared.http.reward_scores import SCORED_AT_ONCE, NotScored, RewardScores

ANSWERS = [([], f"answer {number}") for number in range(SCORED_AT_ONCE + 1)]
AWAY = "http://127.0.0.1:9"


@dataclass
class StubScorer:
    """An inference service: it scores by one reward model, or refuses."""

    reward_model: str
    status: int = 200
    asked: int = 0
    keys: list[str | None] = field(default_factory=list)
    url: str = ""

    async def score(self, request: web.Request) -> web.Response:
        self.asked += 1
        self.keys.append(request.headers.get("authorization"))
        if self.status != 200:
            return web.json_response({"code": "reward_model_elsewhere"}, status=self.status)
        scores = [1.0 for _ in (await request.json())["items"]]
        return web.json_response({"reward_model": self.reward_model, "scores": scores})


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as found:
        yield found


@pytest.fixture
async def both() -> AsyncIterator[tuple[StubScorer, StubScorer]]:
    made = StubScorer("r-old"), StubScorer("r-new")
    async with AsyncExitStack() as stack:
        for one in made:
            app = web.Application()
            app.router.add_post("/v1/score", one.score)
            server = await stack.enter_async_context(TestServer(app))
            one.url = str(server.make_url(""))
        yield made


async def test_whichever_has_the_reward_model_scores_and_is_asked_first_from_then_on(
    session: aiohttp.ClientSession, both: tuple[StubScorer, StubScorer]
) -> None:
    old, new = both
    scores = RewardScores(session, (AWAY, old.url, new.url))
    old.status = 404
    for _ in range(3):
        found = await scores.given("m", ANSWERS)
        assert (found.reward_model, len(found.scores)) == ("r-new", len(ANSWERS))
    assert (old.asked, new.asked) == (1, 6)
    old.status, new.status = 200, 503
    assert (await scores.given("m", ANSWERS)).reward_model == "r-old"
    assert (await scores.given("m", ANSWERS[:1])).reward_model == "r-old"
    assert (old.asked, new.asked) == (4, 7)


async def test_none_that_scores_is_told_with_what_each_says(
    session: aiohttp.ClientSession, both: tuple[StubScorer, StubScorer]
) -> None:
    old, _ = both
    old.status = 404
    with pytest.raises(NotScored) as refused:
        await RewardScores(session, (old.url, AWAY)).of("m", ANSWERS)
    first, second = str(refused.value).split("; http")
    assert first.startswith(f"{old.url}/v1/score: 404")
    assert AWAY.removeprefix("http") in second


async def test_the_key_is_read_anew_for_each_request(
    session: aiohttp.ClientSession, both: tuple[StubScorer, StubScorer]
) -> None:
    keys = iter(("Bearer one", "Bearer two", ""))

    def authorization() -> str:
        try:
            return next(keys)
        except StopIteration:
            raise CredentialsUnreadable("SCORE_API_KEY_FILE: is gone") from None

    old, _ = both
    scores = RewardScores(session, (old.url,), authorization)
    for _ in range(3):
        await scores.of("m", ANSWERS[:1])
    assert old.keys == ["Bearer one", "Bearer two", None]
    with pytest.raises(NotScored, match="SCORE_API_KEY_FILE"):
        await scores.of("m", ANSWERS[:1])
