"""Bodies, problems and the operations routes that every service shares."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from shared.errors import FieldError, RatchetError
from shared.http.asgi import Message
from shared.http.body import BodyTooLarge, BodyTooSlow, ClientDisconnected, read_body
from shared.http.operations import OperationsApp
from shared.http.problems import handle_errors
from shared.observability.health import Health

LIMIT = 100


class Unlucky(RatchetError):
    """A failure with fields."""

    status = 409
    code = "unlucky"
    title = "Unlucky"
    retry_after_s = 7


def receiver(*messages: Message) -> Any:
    left = list(messages)

    async def receive() -> Message:
        return left.pop(0)

    return receive


def part(body: bytes, *, more: bool) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def scope(length: int | None = None) -> dict[str, Any]:
    headers = [] if length is None else [(b"content-length", str(length).encode())]
    return {"type": "http", "headers": headers}


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=8), st.booleans())
async def test_a_body_is_whole_or_refused(parts: list[bytes], announced: bool) -> None:
    whole = b"".join(parts)
    messages = [part(one, more=index < len(parts) - 1) for index, one in enumerate(parts)]
    given_scope = scope(len(whole) if announced else None)
    reading = read_body(given_scope, receiver(*messages), limit=LIMIT, timeout_s=5)
    if len(whole) <= LIMIT:
        assert await reading == whole
    else:
        with pytest.raises(BodyTooLarge):
            await reading


async def test_an_announced_length_over_the_limit_is_refused_unread() -> None:
    with pytest.raises(BodyTooLarge):
        await read_body(scope(LIMIT + 1), receiver(), limit=LIMIT, timeout_s=5)


async def test_a_body_over_the_limit_is_drained_up_to_a_bound() -> None:
    messages = [part(b"x" * LIMIT, more=True) for _ in range(10)]
    left = list(messages)

    async def receive() -> Message:
        return left.pop(0)

    with pytest.raises(BodyTooLarge):
        await read_body(scope(), receive, limit=LIMIT, timeout_s=5, discard=3 * LIMIT)
    assert len(messages) - len(left) == 4


async def test_a_slow_body_and_a_lost_client_are_told_apart() -> None:
    async def never() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(BodyTooSlow, match=r"0\.01 s"):
        await read_body(scope(), never, limit=LIMIT, timeout_s=0.01)
    gone = receiver(part(b"{", more=True), {"type": "http.disconnect"})
    with pytest.raises(ClientDisconnected):
        await read_body(scope(), gone, limit=LIMIT, timeout_s=5)


async def test_readings_share_a_timer_and_each_has_its_own_deadline() -> None:
    async def never() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    loop = asyncio.get_running_loop()
    ended: list[float] = []

    async def read() -> None:
        with pytest.raises(BodyTooSlow):
            await read_body(scope(), never, limit=LIMIT, timeout_s=0.05)
        ended.append(loop.time())

    started = loop.time()
    first = asyncio.create_task(read())
    await read_body(scope(), receiver(part(b"{}", more=False)), limit=LIMIT, timeout_s=0.05)
    await first
    later = loop.time()
    await read()
    assert ended[0] - started >= 0.05
    assert ended[1] - later >= 0.05


async def test_who_is_cancelled_while_reading_is_not_too_slow() -> None:
    async def never() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    reading = asyncio.create_task(read_body(scope(), never, limit=LIMIT, timeout_s=60))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    handle_errors(app)

    @app.get("/unlucky")
    async def unlucky() -> None:
        raise Unlucky("no luck; try again", [FieldError("dice", "is loaded", "take another")])

    @app.get("/broken")
    async def broken(number: int) -> None:
        raise ValueError("secret detail")

    whole = OperationsApp(Health(), CollectorRegistry(), app)
    transport = httpx.ASGITransport(whole, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        yield client


async def test_every_error_is_a_problem(http: httpx.AsyncClient) -> None:
    told = await http.get("/unlucky")
    assert told.headers["content-type"] == "application/problem+json"
    assert told.headers["retry-after"] == "7"
    assert told.json() == {
        "type": "about:blank",
        "title": "Unlucky",
        "status": 409,
        "code": "unlucky",
        "detail": "no luck; try again",
        "errors": [{"field": "dice", "rule": "is loaded", "remedy": "take another"}],
    }
    for path, status, code in (
        ("/nothing", 404, "not_found"),
        ("/broken?number=x", 422, "invalid"),
        ("/broken?number=1", 500, "internal"),
    ):
        answer = await http.get(path)
        problem = answer.json()
        assert (answer.status_code, problem["status"], problem["code"]) == (status, status, code)
        assert answer.headers["content-type"] == "application/problem+json"
        assert problem["detail"]
        assert "secret" not in answer.text


async def test_operations_routes_come_before_the_application(http: httpx.AsyncClient) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        assert (await http.get(path)).status_code == 200
