"""What the feedback service asks the router, over real sockets."""

from __future__ import annotations

import asyncio

from aiohttp import web

from services.feedback.router_client import CHAT_PATH, Question, RouterClient, router_session
from services.feedback.settings import FeedbackSettings
from shared.contracts.events import Message

QUESTION = Question([Message(role="user", content="Hm?")], None, None, "", {})


async def test_all_comparisons_that_are_let_in_reach_the_router_at_one_time() -> None:
    comparisons = FeedbackSettings.model_fields["max_comparisons"].default
    everyone = asyncio.Barrier(2 * comparisons)

    async def chat(request: web.Request) -> web.Response:
        await everyone.wait()
        answer = {"model": "v", "choices": [{"message": {"content": "hm"}}]}
        return web.json_response(answer, headers={"x-ratchet-trace-id": "t"})

    app = web.Application()
    app.router.add_post(CHAT_PATH, chat)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with router_session(comparisons) as session:
            client = RouterClient(session, url, timeout_s=20)
            asking = (client.answer(QUESTION, "v", seed) for seed in range(2 * comparisons))
            answers = await asyncio.gather(*asking)
    finally:
        await runner.cleanup()
    assert len(answers) == 2 * comparisons
