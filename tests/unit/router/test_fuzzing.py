"""Whatever is sent, the router answers, and the next good request succeeds."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.fuzzing import Mutations
from tests.unit.router.conftest import GatewayHarness
from tests.unit.router.test_passed_through import MESSAGE, start

REQUESTS = (1_000, pytest.param(20_000, marks=[pytest.mark.verify, pytest.mark.timeout(3600)]))
CHAT: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function"}]},
        {"role": "tool", "tool_call_id": "c", "content": "42"},
    ],
    "user": "u",
    "metadata": {"segment": "gold", "session_id": "s", "note": "n"},
    "stream": False,
    "n": 1,
    "max_tokens": 5,
}
RESPONSE: dict[str, Any] = {
    "model": "m",
    "input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
    "instructions": "be kind",
    "tools": [{"type": "function", "name": "look", "parameters": {}}],
    "store": False,
    "stream": False,
}
COMPLETION: dict[str, Any] = {"model": "m", "prompt": ["hi", "ho"], "stream": False}
EMBEDDING: dict[str, Any] = {
    "model": "m",
    "input": ["hi", "ho"],
    "encoding_format": "float",
    "dimensions": 8,
    "user": "u",
}
PASSED_THROUGH = (("/v1/embeddings", EMBEDDING), ("/v1/messages", MESSAGE))


@pytest.mark.parametrize("count", REQUESTS)
async def test_no_request_breaks_the_router(bench: GatewayHarness, count: int) -> None:
    await bench.start()
    bench.route()
    mutations = Mutations(seed=11)
    for number in range(count):
        path, valid = mutations.rng.choice(
            (
                ("/v1/chat/completions", CHAT),
                ("/v1/completions", COMPLETION),
                ("/v1/responses", RESPONSE),
            )
        )
        body, headers = mutations.body(valid), mutations.headers()
        answer = await bench.client.post(path, content=body, headers=headers)
        assert answer.status_code < 500, (path, body[:500], headers, answer.text)
        if number % 50 == 0:
            assert (await bench.ask()).status_code == 200
    assert bench.interactions.lost == 0


@pytest.mark.parametrize("count", REQUESTS)
async def test_no_passed_through_request_breaks_the_router(
    bench: GatewayHarness, count: int
) -> None:
    await start(bench)
    mutations, taken = Mutations(seed=12), set[str]()
    for number in range(count):
        path, valid = mutations.rng.choice(PASSED_THROUGH)
        body, headers = mutations.body(valid), mutations.headers()
        answer = await bench.client.post(path, content=body, headers=headers)
        assert answer.status_code < 500, (path, body[:500], headers, answer.text)
        if answer.status_code == 200:
            taken.add(path)
        if number % 50 == 0:
            assert (await bench.client.post(path, json=valid)).status_code == 200
    assert taken == {path for path, _ in PASSED_THROUGH}
    assert bench.interactions.lost == 0
