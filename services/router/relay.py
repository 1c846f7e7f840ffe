"""Relay of one stream, engine to client: its first token, gaps, heartbeats and its end."""

from __future__ import annotations

import asyncio
from time import perf_counter

from services.router.answer_headers import answer_headers
from services.router.answer_readers import STREAM_READERS
from services.router.call import Call, EngineAttempt
from services.router.client_send import ClientSend
from services.router.engine_connection import HttpResponse
from services.router.fields import CHOICES
from services.router.filter_rules import FilterFindings
from services.router.filtered_streams import FilteredStream
from services.router.moderation_windows import ModerationWindows
from services.router.response import MAX_EVENT_BYTES, UnreadableResponse
from shared.contracts.events.interactions import Outcome

HTTP_OK = 200
EVENTS = b"text/event-stream; charset=utf-8"
HEARTBEAT = b": heartbeat\n\n"
"""A comment of server-sent events: clients skip it, and proxies see that the stream lives."""


class StreamRelay:
    """A stream from the engine to the client, held back until its first token or heartbeat."""

    __slots__ = (
        "_attempt",
        "_call",
        "_heartbeat_s",
        "_looked_at",
        "_send",
        "_sent_at",
        "_windows",
        "filter",
        "findings",
        "held",
        "reader",
        "started",
    )

    def __init__(
        self,
        call: Call,
        attempt: EngineAttempt,
        send: ClientSend,
        heartbeat_s: float,
        findings: FilterFindings,
        filtered: FilteredStream | None,
        windows: ModerationWindows | None,
    ) -> None:
        """What the engine sends goes through `filtered`, then `windows`; `findings` are theirs."""
        self.findings = findings
        self.filter = filtered
        self._windows = windows
        self._looked_at = filtered is not None or windows is not None
        self._heartbeat_s = heartbeat_s
        self._call = call
        self._attempt = attempt
        self._send = send
        self._sent_at = perf_counter()
        reader = STREAM_READERS[call.request.endpoint]
        name = call.shown(attempt.version)
        self.reader = reader(name, call.request.trace_id, call.request.include_usage)
        self.held = b""
        self.started = False

    async def run(self, response: HttpResponse) -> None:
        """Pass on what comes, until the stream's own end; sets how the attempt ended.

        What came last stays in `held`: it leaves after the event is kept.

        Raises:
            UnreadableResponse: the stream is none that its API promises.

        """
        call, attempt, reader = self._call, self._attempt, self.reader
        tokens = 0
        while data := await self._next(response):
            events = reader.feed(data)
            if reader.tokens > tokens:
                now = perf_counter()
                if tokens:
                    call.note_gap(now - attempt.last_token_at)
                else:
                    attempt.first_token_at = now
                attempt.last_token_at, tokens = now, reader.tokens
            self.held += await self._filtered(events) if self._looked_at else events
            if reader.done or reader.failure or self.blocked:
                break
            if tokens and self.held:
                waited_s = self._send.waited_s
                await self._forward()
                # A gap is the engine's silence, not the client's.
                attempt.last_token_at += self._send.waited_s - waited_s
            elif len(self.held) > MAX_EVENT_BYTES:
                raise UnreadableResponse(
                    f"the engine sent over {MAX_EVENT_BYTES} bytes before its first token"
                )
            elif self._heartbeat_s and perf_counter() - self._sent_at >= self._heartbeat_s:
                await self._beat()  # the engine writes, and the output filter holds it
        await self._conclude(response)

    async def _conclude(self, response: HttpResponse) -> None:
        """Let the filter look at the rest, and set how the attempt ended."""
        call, attempt, reader = self._call, self._attempt, self.reader
        if reader.done and self._looked_at:
            ends = b""
            if call.request.endpoint not in CHOICES:
                # It repeats the whole answer; some engines send no other event with its text.
                ends, reader.last = reader.last, b""
            self.held += await self._filtered(ends, last=True)
        if self.blocked:
            response.close()
            if not self.started:
                await self._begin()
        elif reader.failure or not reader.done:
            response.close()
            attempt.outcome = Outcome.server_error
            attempt.error = reader.failure or "the engine's stream ended without its last event"
        elif not self.started:
            await self._begin()

    @property
    def blocked(self) -> bool:
        """Whether the output filter refuses the answer."""
        return self.findings.blocked

    async def _filtered(self, events: bytes, *, last: bool = False) -> bytes:
        """Events that may go to the client; the moderation endpoint's time is no gap."""
        if self.filter:
            events = self.filter.feed(events) if events else b""
            events += self.filter.finish() if last else b""
        if self._windows is None or self.blocked:
            return events
        began = perf_counter()
        events = await (self._windows.finish(events) if last else self._windows.feed(events))
        if self._attempt.last_token_at:
            self._attempt.last_token_at += perf_counter() - began
        if self.blocked and not events:
            # The error that ends such a stream is written in place of all that waits.
            self.held = b""
        return events

    async def _next(self, response: HttpResponse) -> bytes:
        """What the engine sends next, empty at its end; heartbeats for the client until then."""
        while self._heartbeat_s:
            silence = asyncio.timeout(self._heartbeat_s)
            try:
                async with silence:
                    return await response.readany()
            except TimeoutError:
                # The engine's own deadlines raise it, too.
                if not silence.expired():
                    raise
            await self._beat()
        return await response.readany()

    async def _beat(self) -> None:
        waited_s = self._send.waited_s
        if not self.started:
            await self._begin()
        await self._pass_on(HEARTBEAT)
        if self._attempt.last_token_at:
            self._attempt.last_token_at += self._send.waited_s - waited_s

    async def _forward(self) -> None:
        if not self.started:
            await self._begin()
        held, self.held = self.held, b""
        await self._pass_on(held)

    async def _pass_on(self, body: bytes) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
        self._sent_at = perf_counter()

    async def _begin(self) -> None:
        self.started = True
        call, attempt = self._call, self._attempt
        now = perf_counter()
        waited_s = call.engine_s + (attempt.first_token_at or now) - attempt.started
        call.overhead_s = now - call.started - waited_s
        headers = answer_headers(call, EVENTS)
        headers.append((b"cache-control", b"no-cache"))
        await self._send({"type": "http.response.start", "status": HTTP_OK, "headers": headers})
