"""Why nothing answered is said in plain words, whatever client found out."""

from __future__ import annotations

import asyncio
import socket
import urllib.request

import pytest
from redis.asyncio import Redis

from services.cli.errors import reason_of

REFUSED = "nothing listens there (connection refused)"


@pytest.fixture
def dead_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def test_a_refused_connection_of_urllib(dead_port: int) -> None:
    with pytest.raises(OSError) as raised:
        urllib.request.urlopen(f"http://127.0.0.1:{dead_port}")
    assert reason_of(raised.value) == REFUSED


def test_a_refused_connection_of_redis(dead_port: int) -> None:
    async def ping() -> None:
        async with Redis(port=dead_port) as redis:
            await redis.get("name")

    with pytest.raises(Exception, match="connecting") as raised:
        asyncio.run(ping())
    assert reason_of(raised.value) == REFUSED


def test_an_unknown_host() -> None:
    with pytest.raises(OSError) as raised:
        urllib.request.urlopen("http://nowhere.invalid")
    assert reason_of(raised.value) == "no such host"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TimeoutError(), "timed out"),
        (OSError("the answer was cut: IncompleteRead"), "the answer was cut: IncompleteRead"),
        (ValueError(), "ValueError"),
        ("ended after 3 bytes", "ended after 3 bytes"),
    ],
)
def test_other_reasons_stay_as_they_are(error: object, said: str) -> None:
    assert reason_of(error) == said
