"""What the feedback service asks the router, over real sockets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web
from pydantic import ValidationError

from services.feedback.comparisons import ComparisonRequest
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


async def test_tools_are_asked_for_as_chat_does_and_their_calls_come_back() -> None:
    asked: list[dict[str, Any]] = []
    function = {"name": "weather", "arguments": '{"city": "Rome"}'}
    call = {"id": "c2", "type": "function", "function": function}

    async def chat(request: web.Request) -> web.Response:
        asked.append(await request.json())
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        answer = {"model": "v", "choices": [{"message": message, "finish_reason": "tool_calls"}]}
        return web.json_response(answer, headers={"x-ratchet-trace-id": "t"})

    turns = [
        {"role": "user", "content": "How warm is Rome?"},
        {"role": "assistant", "content": None, "tool_calls": [{**call, "id": "c1"}]},
        {"role": "tool", "tool_call_id": "c1", "content": "21 C"},
    ]
    tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    request = ComparisonRequest.model_validate({"model": "m", "messages": turns, "tools": [tool]})
    question = Question(request.messages, None, None, "", {}, request.tools)
    async with answering(chat) as url, router_session(1) as session:
        answer = await RouterClient(session, url, timeout_s=20).answer(question, "v", 1)
    (body,) = asked
    assert body["tools"] == [tool]
    assert body["messages"][1]["tool_calls"][0]["function"]["name"] == "weather"
    assert body["messages"][2] == turns[2]
    assert answer.text == '[{"name":"weather","arguments":{"city":"Rome"}}]'
    assert answer.turn is not None
    assert [one.name for one in answer.turn.tool_calls] == ["weather"]


@pytest.mark.parametrize(
    "change",
    [
        {"tools": [{"x": 1}]},
        {"tools": "weather"},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"content": "Hm?"}]},
    ],
)
def test_what_cannot_be_compared_is_refused(change: dict[str, Any]) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hm?"}], **change}
    with pytest.raises(ValidationError) as refused:
        ComparisonRequest.model_validate(body)
    assert str(refused.value.errors()[0]["loc"][0]) == next(iter(change))
