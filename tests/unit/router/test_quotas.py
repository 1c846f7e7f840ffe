"""Quotas and bounds of the router, as a client of the OpenAI API meets them."""

from __future__ import annotations

import asyncio

import openai
import orjson
import pytest

from services.router.bounds import AnswerBounds
from services.router.errors import InvalidRequest
from services.router.fields import Endpoint
from shared.contracts.events.api_keys import KeyLimits
from shared.quotas import RateLimits
from tests.unit.router.conftest import GatewayHarness


async def test_a_key_over_its_rate_gets_429_in_openais_shape(bench: GatewayHarness) -> None:
    await bench.start(key_limits=RateLimits(requests=2))
    bench.route()
    assert [(await bench.ask()).status_code for _ in range(2)] == [200, 200]
    client = openai.AsyncOpenAI(base_url=f"{bench.url}/v1", api_key="x", max_retries=0)
    with pytest.raises(openai.RateLimitError) as refused:
        await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hi"}]
        )
    await client.close()
    assert (refused.value.code, refused.value.type) == ("rate_limit_exceeded", "requests")
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 60
    assert len(bench.events()) == 2, "what was refused reached no engine"


async def test_tokens_of_answers_are_counted(bench: GatewayHarness) -> None:
    await bench.start(key_limits=RateLimits(tokens=1))
    bench.route()
    assert (await bench.ask()).status_code == 200
    refused = await bench.ask()
    assert refused.status_code == 429
    assert refused.json()["error"]["type"] == "tokens"


async def test_a_refused_request_gives_its_slot_back(bench: GatewayHarness) -> None:
    await bench.start(key_limits=RateLimits(running=1))
    bench.route()
    for _ in range(3):
        assert (await bench.ask(model="no-such-model")).status_code == 404
        assert (await bench.client.post("/v1/chat/completions", content=b"{")).status_code == 400
    assert (await bench.ask()).status_code == 200


async def test_requests_at_a_time_are_bounded_for_each_key(bench: GatewayHarness) -> None:
    await bench.start(key_limits=RateLimits(running=2), delay_s=0.5)
    bench.route()
    answers = await asyncio.gather(*(bench.ask() for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429]


async def test_the_bound_reaches_the_engine(bench: GatewayHarness) -> None:
    await bench.start(bounds=AnswerBounds(max_choices=2, max_tokens=7))
    bench.route()
    assert (await bench.ask()).status_code == 200
    assert orjson.loads(bench.seen.bodies[-1])["max_tokens"] == 7
    refused = await bench.ask(n=3)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "n")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 5}, "n"),
        ({"n": "5"}, "n"),
        ({"n": 5.0}, "n"),
        ({"best_of": 5}, "best_of"),
        ({"prompt": ["a"] * 5}, "prompt"),
        ({"prompt": [[1, 2]] * 3, "n": 2}, "prompt"),
        ({"max_tokens": 101}, "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 101}, "max_completion_tokens"),
        ({"max_tokens": "101"}, "max_tokens"),
    ],
)
def test_what_is_over_a_bound_is_refused(fields: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        AnswerBounds(max_choices=4, max_tokens=100).apply("chat", fields)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("endpoint", "name"),
    [("chat", "max_tokens"), ("completions", "max_tokens"), ("responses", "max_output_tokens")],
)
def test_each_endpoint_has_its_own_name_for_the_bound(endpoint: Endpoint, name: str) -> None:
    unbounded: dict[str, object] = {}
    AnswerBounds(max_tokens=100).apply(endpoint, unbounded)
    assert unbounded == {name: 100}
    with pytest.raises(InvalidRequest) as refused:
        AnswerBounds(max_tokens=100).apply(endpoint, {name: 101})
    assert refused.value.param == name


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 4, "max_tokens": 100},
        {"n": None, "max_completion_tokens": 100},
        {"prompt": [1, 2, 3, 4, 5, 6], "max_tokens": 1},
        {"prompt": ["a", "b"], "n": 2, "max_tokens": 1},
    ],
)
def test_what_is_within_the_bounds_stays_as_it_is(fields: dict[str, object]) -> None:
    given = dict(fields)
    AnswerBounds(max_choices=4, max_tokens=100).apply("chat", fields)
    assert fields == given


def test_a_key_may_have_bounds_of_its_own() -> None:
    default = AnswerBounds(max_choices=4, max_tokens=100)
    assert default.of(KeyLimits(max_choices=0)) == AnswerBounds(0, 100)
    assert default.of(KeyLimits(max_tokens=9)) == AnswerBounds(4, 9)
