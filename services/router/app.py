"""The ASGI application: paths, keys, bodies and errors. The rest is the proxy's."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from datetime import UTC, datetime
from time import perf_counter

import orjson
import structlog

from services.router.assignment import key_of
from services.router.bounds import AnswerBounds
from services.router.call import Call
from services.router.client_ids import ClientIds
from services.router.errors import (
    InsufficientScope,
    InvalidApiKey,
    InvalidRequest,
    NotReady,
    Overloaded,
    RateLimited,
    RequestTooLarge,
    RouterError,
    SlowBody,
    TokensRateLimited,
    UnknownModel,
    UnknownPath,
    WrongMethod,
)
from services.router.fields import Endpoint, FieldRules
from services.router.identity import IdentityRules
from services.router.latency_limits import LatencyLimits
from services.router.metrics import RouterMetrics
from services.router.proxy import Proxy
from services.router.request import ChatRequest, read_request
from services.router.state import RouteChoice, RouterState
from services.router.traces import RequestSpans, TraceIds
from services.router.watchdog import Watchdog
from shared.contracts.events.api_keys import Permission
from shared.contracts.events.interactions import Outcome, Purpose
from shared.http.asgi import Receive, Scope, Send
from shared.http.operations import OperationsApp
from shared.keys import ApiKey, Forbidden, KeyRing, KeysUnread, Unauthenticated
from shared.observability.spans import Spans
from shared.quotas import QuotaExceeded, Quotas, RequestSlot

log = structlog.get_logger(__name__)

ENDPOINTS: dict[str, Endpoint] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/responses": "responses",
    "/v1/embeddings": "embeddings",
    "/v1/messages": "messages",
}
MODELS = "/v1/models"
LIVE = Purpose.live.value
DISCARD_FACTOR = 8
"""A body over the limit is read and discarded up to this many times the limit, so that the
client gets to read why it was refused; beyond it the connection is closed."""

_NO_MODEL = (
    "no model is served yet: an operator registers a first version (ratchet versions register), "
    "which answers within seconds"
)


class ClientLeft(Exception):
    """The client disconnected before its request was complete."""


class Gateway:
    """The router's HTTP interface."""

    def __init__(
        self,
        *,
        state: RouterState,
        proxy: Proxy,
        keys: KeyRing,
        metrics: RouterMetrics,
        ops: OperationsApp,
        rules: FieldRules,
        identity: IdentityRules,
        max_body_bytes: int,
        body_timeout_s: float,
        max_running: int,
        quotas: Quotas,
        bounds: AnswerBounds,
        spans: Spans,
        latency: LatencyLimits,
        client_ids: ClientIds,
    ) -> None:
        self._state = state
        self._proxy = proxy
        self._keys = keys
        self._metrics = metrics
        self._ops = ops
        self._rules = rules
        self._identity = identity
        self._max_body = max_body_bytes
        self._body_timeout_s = body_timeout_s
        self._max_running = max_running
        self._quotas = quotas
        self._bounds = bounds
        self._latency = latency
        self._running = 0
        self._traces = TraceIds(spans)
        self._spans = RequestSpans(spans)
        self._client_ids = client_ids

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._ops(scope, receive, send)
            return
        endpoint = ENDPOINTS.get(scope["path"])
        if endpoint is not None:
            watchdog = Watchdog()
            try:
                await self._generate(endpoint, scope, receive, send, watchdog)
            finally:
                watchdog.close()
        elif scope["path"] == MODELS or scope["path"].startswith(MODELS + "/"):
            await self._models(scope, send)
        elif not await self._ops.serve(scope, send):
            await send_error(
                send,
                UnknownPath(
                    f"nothing at {scope['path'][:200]!r}; try {', '.join(ENDPOINTS)} or {MODELS}"
                ),
            )

    async def _generate(
        self, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send, watchdog: Watchdog
    ) -> None:
        started = perf_counter()
        started_at = datetime.now(UTC)
        try:
            if scope["method"] != "POST":
                raise WrongMethod(f"{scope['path']}: {scope['method']} is not taken; send POST")
            headers = dict(scope["headers"])
            key = self._authenticate(headers)
            if self._running >= self._max_running:
                raise Overloaded(f"{self._running} requests are running already; try again")
            slot = self._admit(key)
        except RouterError as error:
            self._metrics.refused(error.outcome.value)
            await send_error(send, error)
            return
        self._running += 1
        tokens = 0
        try:
            body = await self._body(receive, watchdog)
            request = read_request(
                endpoint, body, headers, self._rules, self._identity, self._bounds.of(key.limits)
            )
            given = self._client_ids.read(headers.get(b"x-ratchet-trace-id"), key)
            request.trace_id = given or self._traces.take()
            choice = self._choose(request, key)
            call = Call(
                request=request,
                choice=choice,
                tenant=key.tenant,
                key_id=key.key_id,
                started=started,
                started_at=started_at,
                traceparent=self._traces.traceparent(request.trace_id, headers.get(b"traceparent")),
                given_traceparent=headers.get(b"traceparent"),
                segment=self._metrics.segment(request.context.get("segment", "")),
                slow_after_s=self._latency.limit_s(choice.model, endpoint, stream=request.stream),
                # Who may name a version may know which one answered.
                shows_arm=key.explicit_versions,
            )
            if given:
                await self._client_ids.claim(key.tenant, given)
            await self._serve(call, receive, send, watchdog)
            self._spans.record(call)
            tokens = (call.answer.prompt_tokens or 0) + (call.answer.completion_tokens or 0)
        except RouterError as error:
            self._metrics.refused(error.outcome.value)
            await send_error(send, error)
        except ClientLeft:
            self._metrics.refused(Outcome.cancelled.value)
        finally:
            self._running -= 1
            self._quotas.leave(slot, tokens)

    async def _serve(self, call: Call, receive: Receive, send: Send, watchdog: Watchdog) -> None:
        try:
            await self._proxy.serve(call, receive, send, watchdog)
        except Exception:
            log.exception("request.broke", trace_id=call.request.trace_id)
            self._metrics.refused(Outcome.server_error.value)
            # An answer that has begun cannot become another; the server then closes it.
            with contextlib.suppress(RuntimeError):
                await send_error(send, RouterError("the router failed; try again"))

    def _admit(self, key: ApiKey) -> RequestSlot:
        try:
            return self._quotas.admit(key)
        except QuotaExceeded as error:
            kind = TokensRateLimited if error.unit == "tokens a minute" else RateLimited
            raise kind(error.detail, retry_after_s=error.retry_after_s) from None

    def _authenticate(self, headers: Mapping[bytes, bytes]) -> ApiKey:
        raw = headers.get(b"authorization")
        if raw is None and b"x-api-key" in headers:
            # Where clients of the Messages API put it.
            raw = b"Bearer " + headers[b"x-api-key"]
        try:
            return self._keys.authenticate(raw.decode("latin-1") if raw else None, Permission.infer)
        except KeysUnread as error:
            raise NotReady(str(error)) from None
        except Unauthenticated as error:
            raise InvalidApiKey(str(error)) from None
        except Forbidden as error:
            raise InsufficientScope(str(error)) from None

    async def _body(self, receive: Receive, watchdog: Watchdog) -> bytes:
        """The whole body.

        Raises:
            RequestTooLarge: over the limit. SlowBody: not there in time. ClientLeft: never complete.

        """
        try:
            with watchdog.within(self._body_timeout_s):
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientLeft
                first: bytes = message["body"]
                if not message["more_body"] and len(first) <= self._max_body:
                    return first
                return await self._long_body(first, receive, more=message["more_body"])
        except TimeoutError:
            raise SlowBody(
                f"the body did not arrive within {self._body_timeout_s:g} s; send it again"
            ) from None

    async def _long_body(self, first: bytes, receive: Receive, *, more: bool) -> bytes:
        parts = [first]
        size = len(first)
        while more and size <= self._max_body * DISCARD_FACTOR:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            part: bytes = message["body"]
            more = message["more_body"]
            size += len(part)
            if size <= self._max_body:
                parts.append(part)
        if size > self._max_body:
            raise RequestTooLarge(
                f"the body is larger than {self._max_body} bytes; send a shorter one"
            )
        return b"".join(parts)

    def _choose(self, request: ChatRequest, key: ApiKey) -> RouteChoice:
        route = self._state.route(request.model)
        if route is not None:
            if request.purpose:
                raise InvalidRequest(
                    f"x-ratchet-purpose: {request.purpose} is of explicit versions; name one as the model",
                    param="x-ratchet-purpose",
                )
            request.purpose = LIVE
            kind, identity = key_of(request.user, request.session, request.trace_id)
            return self._state.choose(route, key.tenant, kind, identity)
        choice = self._state.explicit(request.model)
        if choice is None:
            raise self._unknown(request.model)
        if not key.explicit_versions:
            raise InsufficientScope(
                f"the key may not name versions; ask for the model {choice.model!r}", param="model"
            )
        if self._state.rejected(request.model):
            raise UnknownModel(
                f"the version {request.model!r} was rejected and is not served; "
                f"GET {MODELS} lists what answers",
                param="model",
            )
        request.purpose = request.purpose or Purpose.explicit.value
        return choice

    def _unknown(self, name: str) -> RouterError:
        if not self._state.knows_versions:
            return NotReady("the router has not read the registry yet; try again")
        models = ", ".join(route.state.model for route in self._state.routes())
        remedy = f"name one of: {models}" if models else _NO_MODEL
        return UnknownModel(f"the model {name[:200]!r} does not exist; {remedy}", param="model")

    async def _models(self, scope: Scope, send: Send) -> None:
        try:
            if scope["method"] not in ("GET", "HEAD"):
                raise WrongMethod(f"{MODELS}: {scope['method']} is not taken; send GET")
            key = self._authenticate(dict(scope["headers"]))
            rows = [
                {"id": name, "object": "model", "created": created, "owned_by": "ratchet"}
                for name, created, explicit in self._state.catalogue()
                if not explicit or key.explicit_versions
            ]
            wanted = scope["path"].removeprefix(MODELS).strip("/")
            if wanted:
                rows = [row for row in rows if row["id"] == wanted]
                if not rows:
                    raise self._unknown(wanted)
        except RouterError as error:
            await send_error(send, error)
            return
        value = rows[0] if wanted else {"object": "list", "data": rows}
        await send_json(send, 200, orjson.dumps(value))


async def send_error(send: Send, error: RouterError) -> None:
    """Tell the client what it did wrong, or what went wrong."""
    extra: list[tuple[bytes, bytes]] = []
    if error.retry_after_s:
        extra.append((b"retry-after", str(error.retry_after_s).encode()))
    if isinstance(error, (RequestTooLarge, SlowBody)):
        extra.append((b"connection", b"close"))
    if isinstance(error, InvalidApiKey):
        extra.append((b"www-authenticate", b"Bearer"))
    await send_json(send, error.status, error.body(), extra)


async def send_json(
    send: Send, status: int, body: bytes, extra: list[tuple[bytes, bytes]] | None = None
) -> None:
    """Send a whole JSON response."""
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *(extra or ()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
