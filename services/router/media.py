"""Media of requests on their way to the media store, once the answer is there."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter

from services.router.call import Call
from services.router.responses_api import request_turns
from shared.contracts.conversation import media_bytes, media_parts
from shared.contracts.subject import subject_of
from shared.media_store import MediaStore

log = structlog.get_logger(__name__)

MAX_QUEUED = 1_000
"""Requests whose media wait."""
MAX_QUEUED_BYTES = 64 * 1024 * 1024
WRITERS = 4
WRITE_TIMEOUT_S = 30.0
STORED, KNOWN, DROPPED, FAILED = OUTCOMES = ("stored", "known", "dropped", "failed")
"""Written; there already, or of a person erased since; the queue was full; the store did not take it."""


@dataclass(frozen=True, slots=True)
class RequestMedia:
    """The content parts of one request that hold media, and whose they are."""

    tenant: str
    subject: str
    sent_at: datetime
    parts: list[dict[str, Any]]
    size: int
    """Bytes of the request's body, which the parts keep in memory."""


class MediaUploads:
    """A bounded queue of media, decoded and written in threads: no request waits for it.

    What points elsewhere (an address, a file id) is left: its bytes were never here.
    """

    def __init__(self, store: MediaStore, registry: CollectorRegistry) -> None:
        self._store = store
        self._queue: asyncio.Queue[RequestMedia] = asyncio.Queue(MAX_QUEUED)
        self._bytes = 0
        self._threads = ThreadPoolExecutor(WRITERS, "media")
        self._failing = False
        self._media = Counter(
            "ratchet_router_media",
            "Pictures, audio and files of requests, by what became of them at the media store",
            ("outcome",),
            registry=registry,
        )
        for outcome in OUTCOMES:
            self._media.labels(outcome)

    def offer(self, call: Call, user_id: str) -> None:
        """Queue what a request holds; `user_id` is as it is stored."""
        request = call.request
        if request.endpoint == "chat":
            turns = request.payload["messages"]
        elif request.endpoint == "responses":
            turns = request_turns(request.payload)
        else:
            return
        parts = list(media_parts(turns))
        if not parts:
            return
        size = len(request.fields)
        if self._queue.full() or self._bytes + size > MAX_QUEUED_BYTES:
            self._media.labels(DROPPED).inc(len(parts))
            return
        self._bytes += size
        subject = subject_of(call.tenant, user_id)
        self._queue.put_nowait(RequestMedia(call.tenant, subject, call.started_at, parts, size))

    async def run(self) -> None:
        """Write until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(WRITERS):
                group.create_task(self._write_queued())

    async def drain(self, timeout_s: float) -> None:
        """Wait until all is written, for a bounded time; says what is lost."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._queue.join()
        except TimeoutError:
            log.warning("media.left", requests=self._queue.qsize(), bytes=self._bytes)

    async def _write_queued(self) -> None:
        while True:
            media = await self._queue.get()
            try:
                await self._write_in_thread(media)
                self._failing = False
            except Exception as error:  # noqa: BLE001 clients choose the bytes: none may end the router
                self._media.labels(FAILED).inc(len(media.parts))
                self._fails(str(error) or type(error).__name__)
            finally:
                self._bytes -= media.size
                self._queue.task_done()

    async def _write_in_thread(self, media: RequestMedia) -> None:
        """Write, and say when it takes too long.

        A thread cannot be ended. So one that hangs in the store keeps its writer and its bytes, and
        the queue fills; given up, it would be joined by another, and both would hold their media.
        """
        loop = asyncio.get_running_loop()
        writing = loop.run_in_executor(self._threads, self._write, media)
        done, _ = await asyncio.wait((writing,), timeout=WRITE_TIMEOUT_S)
        if not done:
            self._fails(f"a write takes more than {WRITE_TIMEOUT_S:g} s")
        await writing

    def _fails(self, why: str) -> None:
        """Log that the store fails, once until it takes something again."""
        if not self._failing:
            log.warning("media.not_stored", error=why)
        self._failing = True

    def _write(self, media: RequestMedia) -> None:
        for part in media.parts:
            found = media_bytes(part)
            if found is not None:
                sha256, data = found
                new = self._store.put(
                    media.tenant, media.subject, sha256, data, sent_at=media.sent_at
                )
                self._media.labels(STORED if new else KNOWN).inc()
