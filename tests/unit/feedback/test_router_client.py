"""What the feedback service asks the router, over real sockets."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from services.feedback.router_client import Question, RouterClient, router_session
from services.feedback.settings import FeedbackSettings
from shared.contracts.events.base import Message
from tests.support.feedback import answering

REASONS = {"stop": False, "length": True, "": False, None: False}
QUESTION = Question([Message(role="user", content="Hm?")], None, None, "", {})


async def test_all_comparisons_that_are_let_in_reach_the_router_at_one_time() -> None:
    comparisons = FeedbackSettings.model_fields["max_comparisons"].default
    everyone = asyncio.Barrier(2 * comparisons)

    async def chat(request: web.Request) -> web.Response:
        await everyone.wait()
        answer = {"model": "v", "choices": [{"message": {"content": "hm"}}]}
        return web.json_response(answer, headers={"x-ratchet-trace-id": "t"})

    async with answering(chat) as url, router_session(comparisons) as session:
        client = RouterClient(session, url, timeout_s=20)
        asking = (client.answer(QUESTION, "v", seed) for seed in range(2 * comparisons))
        answers = await asyncio.gather(*asking)
    assert len(answers) == 2 * comparisons


@pytest.mark.parametrize(("reason", "cut"), REASONS.items())
async def test_an_answer_says_whether_it_was_cut(reason: str | None, cut: bool) -> None:
    async def chat(request: web.Request) -> web.Response:
        choice = {"message": {"content": "hm"}, "finish_reason": reason}
        answer = {"model": "v", "choices": [choice]}
        return web.json_response(answer, headers={"x-ratchet-trace-id": "t"})

    async with answering(chat) as url, router_session(1) as session:
        answer = await RouterClient(session, url, timeout_s=20).answer(QUESTION, "v", 1)
    assert answer.cut is cut
