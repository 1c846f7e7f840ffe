"""ASGI middleware: passes `POST /v1/moderated` on to an inference service, streams included.

The service is chosen as engines are: one that answers 404, as its engine is on another base than the
writer's version, is asked last for that version for a while, and the next is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson

from services.router.bounds import AnswerBounds
from services.router.engine_connection import (
    AttemptDeadlines,
    ConnectFailed,
    ConnectionLost,
    EngineAnswerTooLarge,
    HttpResponse,
)
from services.router.engines import Engines
from services.router.errors import InvalidRequest
from services.router.fields import Endpoint
from services.router.filter_rules import FILTERED, FilterFindings, RuleSet
from services.router.identity import IdentityRules
from services.router.output_filter import OutputFilter
from services.router.request import json_object
from services.router.state import RouteChoice
from services.router.watchdog import Watchdog
from shared.contracts.events.api_keys import Permission
from shared.errors import RatchetError
from shared.http.asgi import AsgiApp, Receive, Scope, Send
from shared.http.body import GuardedApp
from shared.http.problems import problem
from shared.keys import ApiKey, KeyRing
from shared.observability.tracing import rebuilt_traceparent
from shared.quotas import QuotaExceeded, Quotas

PATH = "/v1/moderated"
TIMEOUT_S = 300.0
"""For all stages; each has a shorter deadline of its own there."""
MAX_ANSWER_BYTES = 4 * 1024 * 1024
"""Of an answer that the output filter looks at."""
MAX_RUNNING = 64
BODY_TIMEOUT_S = 10.0
DEFAULT_TOKENS = 256
"""What the service takes as `max_tokens` where a request names none."""
HTTP_OK = 200
EVENTS = b"text/event-stream"
SHAPE: Endpoint = "responses"
"""The endpoint whose answers the filter reads alike: no choices, and a stream that repeats its text."""
ENGINE_REQUESTS = 2
"""What one request asks of an engine, the writer's answer and the critic's: it counts as so many."""


class ModerationUnavailable(RatchetError):
    """No inference service answered, or too many requests wait for them."""

    status = 503
    code = "moderation_unavailable"
    title = "Not available"


class ModeratedFiltered(RatchetError):
    """The output filter refuses the answer."""

    status = 400
    code = FILTERED
    title = "Refused"


class ModeratedProxy:
    """Hands moderated generation to a service that has the writer's version.

    It authenticates first, reads a bounded body, holds it to the bounds of one request, counts
    against the quotas of requests and filters the answer, as the router's own endpoints do;
    everything else goes to the wrapped app.
    """

    def __init__(
        self,
        app: AsgiApp,
        *,
        services: Engines,
        keys: KeyRing,
        quotas: Quotas,
        bounds: AnswerBounds,
        output_filter: OutputFilter,
        writer_of: Callable[[str], RouteChoice],
        identity: IdentityRules,
        limit: int,
    ) -> None:
        """`services` are the inference services; `writer_of` is the version that a name asks for."""
        self._app = app
        self._services = services
        self._keys = keys
        self._quotas = quotas
        self._bounds = bounds
        self._filter = output_filter
        self._writer_of = writer_of
        self._identity = identity
        self._running = 0
        self._guarded = GuardedApp(
            self._admitted, authorize=self._authenticate, limit=limit, timeout_s=BODY_TIMEOUT_S
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        ours = scope["type"] == "http" and (scope["method"], scope["path"]) == ("POST", PATH)
        await (self._guarded if ours else self._app)(scope, receive, send)

    def _authenticate(self, scope: Scope) -> ApiKey:
        given = dict(scope["headers"]).get(b"authorization")
        return self._keys.authenticate(given.decode("latin-1") if given else None, Permission.infer)

    async def _admitted(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = self._authenticate(scope)
        try:
            # The service would read more (UTF-16, NaN), which would pass by the bounds unseen.
            payload = json_object((await receive())["body"])
            user = self._identity.user(payload, dict(scope["headers"]))
            payload |= {"user": user} if user else {}
            body = bounded(payload, self._bounds.of(key.limits))
            slot = self._quotas.admit(key, ENGINE_REQUESTS)
        except (InvalidRequest, QuotaExceeded) as error:
            await problem(error)(scope, receive, send)
            return
        watchdog = Watchdog()
        watchdog.watch(receive)
        try:
            writer = self._writer_of(str(payload.get("model")))
            rules = self._filter.rules(key.tenant, writer.model)
            await self._forward(body, writer, rules, scope, receive, send)
        except asyncio.CancelledError:
            # The request to the service ended with it, and with that one the engine's.
            task = asyncio.current_task()
            if not watchdog.gone or task is None:
                raise
            task.uncancel()
        finally:
            watchdog.close()
            self._quotas.leave(slot)

    async def _forward(
        self,
        body: bytes,
        writer: RouteChoice,
        rules: RuleSet | None,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        if self._running >= MAX_RUNNING:
            error = ModerationUnavailable(f"{self._running} requests are running; try again")
            await problem(error)(scope, receive, send)
            return
        self._running += 1
        begun = False
        try:
            received = dict(scope["headers"])
            given = received.get(b"authorization")
            headers = {"Authorization": given.decode("latin-1")} if given else {}
            trace = rebuilt_traceparent(received.get(b"traceparent", b"").decode("latin-1"))
            if trace:
                headers["traceparent"] = trace
            async with self._services.request(
                "moderated", body, headers, AttemptDeadlines(TIMEOUT_S), model=writer.version
            ) as answer:
                kind = answer.content_type or b"application/json"
                looked_at = rules is not None or self._filter.moderates
                whole = None
                if looked_at and answer.status == HTTP_OK:
                    whole = await self._filtered(answer, kind, writer.model, rules)
                begun = True
                await send(
                    {
                        "type": "http.response.start",
                        "status": answer.status,
                        "headers": [(b"content-type", kind)],
                    }
                )
                while whole is None and (part := await answer.readany()):
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                await send({"type": "http.response.body", "body": whole or b""})
        except ModeratedFiltered as error:
            await problem(error)(scope, receive, send)
        except orjson.JSONDecodeError as error:
            unread = ModerationUnavailable(
                f"the inference service's answer is not JSON: {error}; check that "
                "RATCHET_ROUTER_MODERATION_URL names Ratchet inference services"
            )
            await problem(unread)(scope, receive, send)
        except (ConnectFailed, ConnectionLost, EngineAnswerTooLarge, TimeoutError) as error:
            if begun:
                raise  # The server closes the connection: an answer cut short must not look whole.
            failed = ModerationUnavailable(
                f"the inference service did not answer: {str(error) or 'timed out'}; try again"
            )
            await problem(failed)(scope, receive, send)
        finally:
            self._running -= 1

    async def _filtered(
        self, answer: HttpResponse, kind: bytes, model: str, rules: RuleSet | None
    ) -> bytes:
        """A whole answer as the client may see it; a stream passes as it is or not at all."""
        try:
            held = await answer.read(MAX_ANSWER_BYTES)
        except EngineAnswerTooLarge as error:
            raise ModeratedFiltered(
                f"too long for the content filter: {error}; ask for a shorter answer"
            ) from error
        if kind.startswith(EVENTS):
            body, findings = await self._filtered_stream(held, rules)
        else:
            body, _, findings = await self._filter.whole(rules, held, SHAPE)
        self._filter.note(model, findings)
        if findings.blocked:
            raise ModeratedFiltered(
                "the answer was refused by a content filter; ask in other words"
            )
        return body

    async def _filtered_stream(
        self, body: bytes, rules: RuleSet | None
    ) -> tuple[bytes, FilterFindings]:
        findings = FilterFindings()
        if rules is not None:
            stream = self._filter.stream(rules, SHAPE)
            try:
                stream.feed(body)
                body, findings = stream.finish(), stream.findings
            finally:
                stream.close()
        if windows := self._filter.windows(findings, SHAPE):
            body = await windows.finish(body)
        return body, findings


def bounded(payload: dict[str, Any], bounds: AnswerBounds) -> bytes:
    """The body of a request within its bounds.

    Raises:
        InvalidRequest: a field is over its bound or no whole number, or it is nested too deep.

    """
    if bounds.max_tokens:
        payload.setdefault("max_tokens", min(DEFAULT_TOKENS, bounds.max_tokens))
    bounds.apply("chat", payload)
    try:
        return orjson.dumps(payload)
    except orjson.JSONEncodeError as error:
        raise InvalidRequest(f"the body cannot be passed on: {error}; nest it less deep") from None
