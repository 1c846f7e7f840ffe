"""The local profile serves this machine only, and no page of another site."""

from __future__ import annotations

import httpx
import pytest

from shared.http.asgi import Receive, Scope, Send, respond
from shared.http.local_guard import LocalGuard, with_local_guard
from shared.settings import ServiceSettings


async def answered(_: Scope, __: Receive, send: Send) -> None:
    await respond(send, 200, b"{}", b"application/json")


async def status(headers: dict[str, str], *origins: str) -> int:
    transport = httpx.ASGITransport(LocalGuard(answered, origins))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as client:
        return (await client.post("/v1/feedback", headers=headers)).status_code


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 200),
        ({"host": "localhost:8080"}, 200),
        ({"host": "[::1]:8080"}, 200),
        ({"host": "ratchet.localhost"}, 200),
        ({"host": "rebound.example.com:8080"}, 403),
        ({"host": "127.0.0.1.example.com"}, 403),
        ({"host": "[broken"}, 403),
        ({"origin": "http://localhost:3000"}, 200),
        ({"origin": "https://evil.example.com"}, 403),
        ({"origin": "null"}, 403),
    ],
)
async def test_only_this_machine_is_answered(headers: dict[str, str], expected: int) -> None:
    assert await status(headers) == expected


async def test_origins_that_cors_allows_are_answered() -> None:
    assert await status({"origin": "https://shop.example.com"}, "https://shop.example.com") == 200
    assert await status({"origin": "https://shop.example.com"}, "*") == 200


def test_the_local_profile_does_not_listen_beyond_loopback_unasked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RATCHET_HOST", "0.0.0.0")
    with pytest.raises(SystemExit):
        ServiceSettings.load()
    assert "RATCHET_LOCAL_OPEN" in capsys.readouterr().err
    monkeypatch.setenv("RATCHET_LOCAL_OPEN", "true")
    settings = ServiceSettings.load()
    assert with_local_guard(answered, settings) is answered
    monkeypatch.delenv("RATCHET_LOCAL_OPEN")
    monkeypatch.setenv("RATCHET_PROFILE", "production")
    monkeypatch.setenv("RATCHET_KAFKA_SECURITY_PROTOCOL", "PLAINTEXT")
    assert ServiceSettings.load().host == "0.0.0.0"
    monkeypatch.setenv("RATCHET_PROFILE", "local")
    monkeypatch.setenv("RATCHET_HOST", "::1")
    assert isinstance(with_local_guard(answered, ServiceSettings.load()), LocalGuard)
