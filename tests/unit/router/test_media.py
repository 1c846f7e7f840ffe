"""Media of requests go to the store behind the answer, and never hold one up."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import threading
from datetime import datetime
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from services.router import media as media_module
from services.router.interactions import Interactions
from services.router.media import OUTCOMES, WRITERS, MediaUploads
from shared.contracts.subject import subject_of
from shared.media_store import MediaUnavailable
from shared.redaction import Redactor
from tests.support.waiting import eventually
from tests.unit.router.conftest import GatewayHarness

PNG, WAV, PDF = b"\x89PNG one", b"RIFF two", b"%PDF three"


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


CHAT_PARTS: list[dict[str, Any]] = [
    {"type": "text", "text": "What is this?"},
    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{in_base64(PNG)}"}},
    {"type": "input_audio", "input_audio": {"data": in_base64(WAV), "format": "wav"}},
    {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{in_base64(PDF)}"}},
    {"type": "image_url", "image_url": {"url": "https://example.com/elsewhere.png"}},
]
RESPONSES_PARTS: list[dict[str, Any]] = [
    {"type": "input_text", "text": "What is this?"},
    {"type": "input_image", "image_url": f"data:image/png;base64,{in_base64(PNG)}"},
]


class WatchedStore:
    """Keeps what it is given; refuses while `away`, waits for `answers`."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str, str], bytes] = {}
        self.away = False
        self.answers = threading.Event()
        self.answers.set()
        self.threads: set[int] = set()

    def put(
        self, tenant: str, subject: str, sha256: str, data: bytes, *, sent_at: datetime
    ) -> bool:
        assert sent_at.tzinfo is not None
        self.threads.add(threading.get_ident())
        assert self.answers.wait(60)
        if self.away:
            raise MediaUnavailable("away")
        new = (tenant, subject, sha256) not in self.kept
        self.kept[tenant, subject, sha256] = data
        return new


class MediaHarness:
    def __init__(self, bench: GatewayHarness) -> None:
        self.bench = bench
        self.store = WatchedStore()
        self.registry = CollectorRegistry()
        self.uploads = MediaUploads(self.store, self.registry)  # type: ignore[arg-type]
        bench.interactions = Interactions(bench.spool, Redactor(), media=self.uploads)

    async def ask(self, parts: list[dict[str, Any]], **more: Any) -> None:
        turns = [{"role": "user", "content": parts}]
        body = {"model": "m", "user": "ann", "messages": turns, **more}
        response = await self.bench.client.post("/v1/chat/completions", json=body)
        assert response.status_code == 200

    def counts(self) -> list[float]:
        name = "ratchet_router_media_total"
        found = (self.registry.get_sample_value(name, {"outcome": one}) for one in OUTCOMES)
        return [count or 0.0 for count in found]


@pytest.fixture
async def harness(bench: GatewayHarness) -> MediaHarness:
    harness = MediaHarness(bench)
    await bench.start()
    bench.route()
    running = asyncio.create_task(harness.uploads.run())

    async def end() -> None:
        harness.store.answers.set()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    bench.stack.push_async_callback(end)
    return harness


@pytest.mark.parametrize("stream", [False, True])
async def test_the_store_has_the_bytes_whose_digests_the_event_has(
    harness: MediaHarness, stream: bool
) -> None:
    await harness.ask(CHAT_PARTS, stream=stream)
    await harness.ask(CHAT_PARTS, stream=stream)
    await harness.uploads.drain(60)
    event = harness.bench.events()[0]
    subject = subject_of(event.tenant, "ann")
    parts = [part for part in event.messages[0].parts if part.sha256 and not part.reference]
    assert [
        harness.store.kept[event.tenant, subject, part.sha256] for part in parts
    ] == [PNG, WAV, PDF]  # fmt: skip
    assert harness.counts() == [3, 3, 0, 0]
    assert threading.get_ident() not in harness.store.threads


async def test_pictures_of_the_responses_api_are_kept_too_and_of_nobody_apart(
    harness: MediaHarness,
) -> None:
    sent = [{"role": "user", "content": RESPONSES_PARTS}]
    body = {"model": "m", "input": sent}
    response = await harness.bench.client.post("/v1/responses", json=body)
    assert response.status_code == 200
    await harness.uploads.drain(60)
    assert harness.store.kept == {("default", "", hashlib.sha256(PNG).hexdigest()): PNG}


async def test_a_store_that_does_not_answer_holds_up_no_answer_and_what_is_too_much_is_counted(
    harness: MediaHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.store.answers.clear()
    monkeypatch.setattr(media_module, "MAX_QUEUED_BYTES", 2_500)
    for _ in range(8):
        await harness.ask(CHAT_PARTS)
    dropped = harness.counts()[OUTCOMES.index("dropped")]
    assert 0 < dropped < 8 * 4
    harness.store.answers.set()
    await harness.uploads.drain(60)
    assert sum(harness.counts()) == dropped + (8 - dropped / 4) * 3
    await harness.ask(CHAT_PARTS)
    await harness.uploads.drain(60)
    assert harness.counts()[OUTCOMES.index("dropped")] == dropped


async def test_a_store_that_fails_is_counted_and_asked_again(harness: MediaHarness) -> None:
    harness.store.away = True
    await harness.ask(CHAT_PARTS)

    def failed() -> bool:
        return harness.counts()[OUTCOMES.index("failed")] == 4

    await eventually(failed, "the failure is counted")
    harness.store.away = False
    await harness.ask(CHAT_PARTS)
    await harness.uploads.drain(60)
    assert len(harness.store.kept) == 3


async def test_a_store_that_hangs_takes_no_more_threads_and_bytes(
    harness: MediaHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media_module, "WRITE_TIMEOUT_S", 0.01)
    monkeypatch.setattr(media_module, "MAX_QUEUED_BYTES", 1_500)
    harness.store.answers.clear()
    with capture_logs() as logs:
        for _ in range(4):
            await harness.ask(CHAT_PARTS)
        dropped = harness.counts()[OUTCOMES.index("dropped")]
        assert dropped > 0
        await eventually(lambda: bool(logs), "a write takes too long")
        for _ in range(4):
            await harness.ask(CHAT_PARTS)
    assert [row["event"] for row in logs].count("media.not_stored") == 1
    assert harness.counts()[OUTCOMES.index("dropped")] == dropped + 4 * 4
    assert len(harness.store.threads) <= WRITERS
    harness.store.answers.set()
    await harness.uploads.drain(60)
    await harness.ask(CHAT_PARTS)
    await harness.uploads.drain(60)
    assert len(harness.store.kept) == 3


async def test_media_that_break_a_writer_do_not_end_it(
    harness: MediaHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(_: object) -> None:
        raise RecursionError

    with monkeypatch.context() as broken:
        broken.setattr(media_module, "media_bytes", breaks)
        for _ in range(WRITERS):
            await harness.ask(CHAT_PARTS)
        await harness.uploads.drain(60)
    assert harness.counts() == [0, 0, 0, 4 * WRITERS]
    await harness.ask(CHAT_PARTS)
    await harness.uploads.drain(60)
    assert len(harness.store.kept) == 3


async def test_a_request_without_media_asks_the_store_nothing(harness: MediaHarness) -> None:
    await harness.ask([{"type": "text", "text": "hi"}])
    await harness.uploads.drain(60)
    assert harness.counts() == [0, 0, 0, 0]
