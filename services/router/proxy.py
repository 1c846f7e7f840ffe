"""Reverse proxy of one request: attempts, the retry (fallback) on stable, metrics and the event.

Whatever happens, each attempt is counted once and the request leaves one event, before the last
byte of its answer leaves; a good answer is counted right after it, as its client waits for nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import structlog

from services.router.answer_headers import answer_headers
from services.router.attempt_counts import AttemptCounts
from services.router.attempt_result import WholeResponse, failure_response, judged, note_error
from services.router.call import FAILED, Call, EngineAttempt
from services.router.candidate_breaker import CandidateBreaker
from services.router.client_send import ClientSend, SlowClient
from services.router.engine_connection import AttemptDeadlines, HttpResponse
from services.router.engines import EngineRequest, Engines
from services.router.filter_rules import FILTERED, FilterFindings, RuleSet
from services.router.interactions import Interactions
from services.router.metrics import RouterMetrics
from services.router.output_filter import REFUSAL, UNFILTERED, OutputFilter
from services.router.relay import HTTP_OK, StreamRelay
from services.router.response import AnswerGivenUp, UnreadableResponse
from services.router.votes import VoteLimits
from services.router.watchdog import Watchdog
from shared.contracts.events.interactions import Outcome
from shared.contracts.events.versions import SettingsRecord
from shared.http.asgi import Receive, Send

log = structlog.get_logger(__name__)

MAX_LOGGED = 300
LOG_EVERY_S = 1.0
END_OF_STREAM_S = 1.0
"""How long the end of an engine's stream may take after its last event."""

JSON = b"application/json"


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds for one attempt: its answer (in streams each part of it), and a whole stream.

    Every attempt has the same deadline, whatever its arm: a shorter one for the candidate would
    make an identical model fail where stable does not. The retry on stable has all of it anew.
    """

    answer_s: float
    stream_s: float
    heartbeat_s: float = 0.0
    """An engine's silence in a stream after which the client gets a comment; 0: none."""

    def total_s(self, *, stream: bool) -> float:
        """Seconds after which an attempt must be over."""
        return self.stream_s if stream else self.answer_s


@dataclass(slots=True)
class RelayedStream:
    """What came of one engine's stream; `reply` where it answered something else than a stream."""

    relay: StreamRelay
    response: HttpResponse | None = None
    reply: WholeResponse | None = None


class Proxy:
    """Answers requests from the engines."""

    def __init__(
        self,
        engines: Engines,
        interactions: Interactions,
        metrics: RouterMetrics,
        deadlines: Deadlines,
        breaker: CandidateBreaker,
        votes: VoteLimits,
        settings: Callable[[str], SettingsRecord | None],
        output_filter: OutputFilter,
    ) -> None:
        """`settings` looks up what a version serves beside or without an adapter."""
        self._engines = engines
        self._interactions = interactions
        self._deadlines = deadlines
        self._of_answer = AttemptDeadlines(deadlines.answer_s)
        self._of_stream = AttemptDeadlines(deadlines.stream_s, deadlines.answer_s)
        self._counts = AttemptCounts(metrics, votes, breaker)
        self._settings = settings
        self._filter = output_filter
        self._said: dict[tuple[str, Outcome], tuple[float, int]] = {}

    async def serve(self, call: Call, receive: Receive, send: Send, watchdog: Watchdog) -> None:
        """Answer a request, or tell the client why not.

        A client that leaves ends it quietly; one that does not read has it ended at its deadline,
        and the server closes the connection, as its answer is not complete.
        """
        watchdog.watch(receive)
        # In the loop's next turn the engine has the request, and this process nothing to do for it.
        asyncio.get_running_loop().call_soon(self._interactions.prepare, call)
        client = ClientSend(send, watchdog)
        try:
            if call.request.stream:
                await self._stream(call, client, watchdog)
            else:
                reply = await self._whole(call, client)
                watchdog.unwatch()
                await self._reply(call, reply, client)
        except SlowClient:
            self._cancelled(call, "the client did not read its answer")
        except asyncio.CancelledError:
            self._cancelled(call, "the client left" if watchdog.gone else "the router stopped")
            if not watchdog.gone:
                raise
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
        finally:
            watchdog.unwatch()
            self._counts.answer(call)

    def _start(self, call: Call, send: ClientSend, version: str, arm: str) -> EngineAttempt:
        """Start an attempt; its deadline is the client's for reading it, too."""
        attempt = EngineAttempt(version, arm, perf_counter())
        call.attempts.append(attempt)
        send.until = attempt.started + self._deadlines.total_s(stream=call.request.stream)
        return attempt

    async def _whole(self, call: Call, send: ClientSend) -> WholeResponse:
        reply: WholeResponse | None = None
        for version, arm in call.plan():
            attempt = self._start(call, send, version, arm)
            try:
                reply = await self._answer(call, attempt)
            except (OSError, AnswerGivenUp) as error:
                note_error(attempt, error)
            self._close(call, attempt)
            if attempt.outcome not in FAILED and reply is not None:
                return await self._filtered(call, reply)
        return failure_response(call)

    async def _answer(self, call: Call, attempt: EngineAttempt) -> WholeResponse | None:
        """One attempt at a whole answer; where an engine gives it up, others are asked."""
        request = self._request(call, attempt)
        while True:
            async with request as response:
                body = await response.read()
            attempt.status = response.status
            try:
                return judged(call, attempt, body)
            except AnswerGivenUp:
                if not request.given_up():
                    raise

    async def _filtered(self, call: Call, reply: WholeResponse) -> WholeResponse:
        """A whole answer as the client may see it; an error as it is."""
        if reply.status != HTTP_OK:
            return reply
        endpoint, rules = call.request.endpoint, self._rules(call)
        if rules is None and not self._filter.moderates:
            return reply
        body, status, findings = await self._filter.whole(rules, reply.body, endpoint)
        self._note(call, findings)
        return WholeResponse(status, body)

    def _relay(
        self, call: Call, attempt: EngineAttempt, send: ClientSend, heartbeat_s: float
    ) -> StreamRelay:
        endpoint, rules = call.request.endpoint, self._rules(call)
        filtered = self._filter.stream(rules, endpoint) if rules else None
        findings = filtered.findings if filtered else FilterFindings()
        windows = self._filter.windows(findings, endpoint)
        return StreamRelay(call, attempt, send, heartbeat_s, findings, filtered, windows)

    def _rules(self, call: Call) -> RuleSet | None:
        if call.request.endpoint in UNFILTERED:
            return None
        return self._filter.rules(call.tenant, call.choice.model)

    def _note(self, call: Call, findings: FilterFindings) -> None:
        if findings.action is None:
            return
        call.filtered = findings
        self._filter.note(call.choice.model, findings)
        if findings.blocked:
            call.answer.finish_reason = FILTERED

    async def _stream(self, call: Call, send: ClientSend, watchdog: Watchdog) -> None:
        for version, arm in call.plan():
            attempt = self._start(call, send, version, arm)
            tried = await self._relayed(call, attempt, send)
            self._close(call, attempt)
            if tried.relay.started:
                watchdog.unwatch()
                await self._end_stream(call, tried.relay, send)
                if tried.response is not None and tried.relay.reader.done:
                    await _to_end(tried.response)
                return
            if attempt.outcome not in FAILED:
                watchdog.unwatch()
                await self._reply(call, tried.reply or failure_response(call), send)
                return
        watchdog.unwatch()
        await self._reply(call, failure_response(call), send)

    async def _relayed(self, call: Call, attempt: EngineAttempt, send: ClientSend) -> RelayedStream:
        """One attempt at a stream; where an engine gives it up before it began, others are asked."""
        request = self._request(call, attempt)
        while True:
            attempt.clear()
            relay = self._relay(call, attempt, send, self._deadlines.heartbeat_s)
            tried = RelayedStream(relay)
            try:
                async with request as tried.response:
                    attempt.status = tried.response.status
                    if attempt.status == HTTP_OK:
                        await relay.run(tried.response)
                    else:
                        tried.reply = judged(call, attempt, await tried.response.read())
                return tried
            except AnswerGivenUp as error:
                note_error(attempt, error)
                if relay.started or not request.given_up():
                    return tried
            except (OSError, UnreadableResponse) as error:
                note_error(attempt, error)
                taken_s = perf_counter() - attempt.started
                if attempt.outcome is Outcome.timeout and send.waited_s > taken_s / 2:
                    # The client took more of the time than the engine.
                    raise SlowClient from None
                return tried
            finally:
                call.answer = relay.reader.finish()
                if relay.filter is not None:
                    relay.filter.close()
                if relay.started or attempt.outcome not in FAILED:
                    self._note(call, relay.findings)

    async def _end_stream(self, call: Call, relay: StreamRelay, send: ClientSend) -> None:
        """Leave the event, then let the last bytes go."""
        self._record(call)
        last = relay.reader.last
        if call.last.outcome is not Outcome.ok:
            last = relay.reader.failed(failure_response(call).body)
        elif relay.blocked and not relay.held:
            last = relay.reader.failed(REFUSAL)
        try:
            await send({"type": "http.response.body", "body": relay.held + last})
        finally:
            self._counts.answer(call)

    def _request(self, call: Call, attempt: EngineAttempt) -> EngineRequest:
        """The attempt's request, with its deadlines; its time begins here."""
        settings = self._settings(attempt.version)
        if settings is None:
            body = call.request.upstream_body(attempt.version)
        else:
            body, attempt.applied = call.request.settled_body(settings)
        headers = {"traceparent": call.attempt_traceparent(len(call.attempts) - 1)}
        deadlines = self._of_stream if call.request.stream else self._of_answer
        attempt.started = perf_counter()
        model, prefix = attempt.engine_model, b""
        if self._engines.affinity:
            prefix = model.encode() + call.request.opening()
        return self._engines.request(
            call.request.endpoint, body, headers, deadlines, model=model, prefix=prefix
        )

    async def _reply(self, call: Call, reply: WholeResponse, send: ClientSend) -> None:
        call.overhead_s = perf_counter() - call.started - call.engine_s
        self._record(call)
        headers = answer_headers(call, JSON)
        headers.append((b"content-length", str(len(reply.body)).encode()))
        if reply.retry_after_s:
            headers.append((b"retry-after", str(reply.retry_after_s).encode()))
        await send.all(
            {"type": "http.response.start", "status": reply.status, "headers": headers},
            {"type": "http.response.body", "body": reply.body},
        )

    def _close(self, call: Call, attempt: EngineAttempt) -> None:
        """End an attempt; one that failed is counted, any other once its answer has left."""
        now = perf_counter()
        attempt.duration_s = now - attempt.started
        if attempt.last_token_at and attempt.outcome is not Outcome.ok:
            # What a stream hung in before it was given up is a gap, too.
            call.note_gap(now - attempt.last_token_at)
        call.engine_s += attempt.waited_s if call.request.stream else attempt.duration_s
        if attempt.outcome in FAILED:
            # Another attempt may follow and take long: the judge hears of this one first.
            self._counts.attempt(call, attempt)
            self._say(call, attempt, now)

    def _say(self, call: Call, attempt: EngineAttempt, now: float) -> None:
        """Log a failure; of many alike, the first of each second and how many went unsaid."""
        kind = (attempt.version, attempt.outcome)
        said_at, unsaid = self._said.get(kind, (-LOG_EVERY_S, 0))
        if now - said_at < LOG_EVERY_S:
            self._said[kind] = (said_at, unsaid + 1)
            return
        self._said[kind] = (now, 0)
        log.warning(
            "attempt.failed",
            trace_id=call.request.trace_id,
            version=attempt.version,
            arm=attempt.arm,
            outcome=attempt.outcome.value,
            status=attempt.status,
            error=attempt.error[:MAX_LOGGED],
            unsaid=unsaid,
        )

    def _record(self, call: Call) -> None:
        call.recorded = True
        self._interactions.record(call, perf_counter() - call.started)

    def _cancelled(self, call: Call, why: str) -> None:
        """Count and record a request that was ended from outside."""
        if not call.attempts or call.recorded:
            return
        attempt = call.last
        if not attempt.duration_s:
            attempt.outcome = Outcome.cancelled
            attempt.error = why
            self._close(call, attempt)
        self._record(call)


async def _to_end(response: HttpResponse) -> None:
    """Read a finished stream's end, so that its connection can be used again."""
    try:
        with contextlib.suppress(OSError):
            async with asyncio.timeout(END_OF_STREAM_S):
                while await response.readany():
                    pass
    finally:
        response.close()
