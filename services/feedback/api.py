"""The HTTP API. Bodies are read raw and checked once: that is what makes the hot path quick."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, cast

import structlog
from fastapi import APIRouter, FastAPI, Request, Response
from pydantic import TypeAdapter, ValidationError

from services.feedback import documents
from services.feedback.comparisons import Comparisons
from services.feedback.direct_routes import DirectApp, Endpoint
from services.feedback.errors import (
    FeedbackError,
    Malformed,
    NotOfThePanel,
    Reason,
    field_errors,
    invalid,
)
from services.feedback.feedback_spans import FeedbackSpans
from services.feedback.metrics import FeedbackMetrics, Way
from services.feedback.publisher import FeedbackPublisher, feedback_record
from services.feedback.submissions import (
    DEFAULT_RULES,
    SubmissionRules,
    parse_json,
    read_submission,
    read_withdrawal,
    submitted,
    withdrawn,
)
from services.feedback.trace_limits import TraceLimits
from services.feedback.values import fields_of, json_kind
from shared.clock import Clock
from shared.contracts.events.api_keys import Permission
from shared.contracts.events.base import Identifier
from shared.contracts.events.feedback import FeedbackSubmitted, FeedbackWithdrawn
from shared.contracts.events.signals import SignalObserved
from shared.errors import FieldError, RatchetError
from shared.http.asgi import AsgiApp
from shared.http.body import ClientDisconnected, read_body
from shared.http.cors import with_cors
from shared.http.openapi import describe
from shared.http.problems import handle_errors, json_response, problem
from shared.kafka.log import PER_TURN, NewRecord, record_bytes
from shared.keys import ApiKey, KeyRing
from shared.observability.spans import OFF, Spans
from shared.observability.tracing import rebuilt_traceparent
from shared.quotas import Quotas
from shared.redaction.detection import Redact, primed, redacted

log = structlog.get_logger(__name__)

SUBMIT_PATH = "/v1/feedback"
BATCH_PATH = "/v1/feedback/batch"
WITHDRAW_PATH = "/v1/feedback/{feedback_id:path}"
MAX_BATCH = 1_000
MULTI_STATUS = 207
ACCEPTED = 202
_identifier = TypeAdapter(Identifier)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a caller may send, and how long it may take."""

    body_bytes: int
    batch_bytes: int
    body_timeout_s: float


class FeedbackApi:
    """The endpoints, each one method."""

    def __init__(
        self,
        *,
        publisher: FeedbackPublisher,
        comparisons: Comparisons,
        keys: KeyRing,
        metrics: FeedbackMetrics,
        clock: Clock,
        redact: Redact,
        limits: Limits,
        traces: TraceLimits,
        quotas: Quotas,
        rules: SubmissionRules = DEFAULT_RULES,
        spans: Spans = OFF,
    ) -> None:
        self._traces = traces
        self._spans = FeedbackSpans(spans, clock)
        self._publisher = publisher
        self._comparisons = comparisons
        self._keys = keys
        self._metrics = metrics
        self._clock = clock
        self._redact = redact
        self._limits = limits
        self._quotas = quotas
        self._rules = rules

    async def submit(self, request: Request) -> Response:
        """Store one piece of feedback; 202 once the brokers acknowledged it."""
        key = self._authenticate(request, Permission.feedback)
        self._spend(key)
        body = await self._body(request, self._limits.body_bytes)
        submission = read_submission(parse_json(body), clamp=_flag(request, "clamp"))
        at, fallback_id = self._clock.now(), _idempotency_key(request)
        event = await redacted(
            self._redact,
            lambda redact: submitted(
                submission,
                tenant=key.tenant,
                at=at,
                redact=redact,
                fallback_id=fallback_id,
                rules=self._rules,
            ),
        )
        await self._store(f"POST {SUBMIT_PATH}", request, event)
        self._metrics.accepted(event, "single")
        return json_response(ACCEPTED, _receipt(event))

    async def submit_batch(self, request: Request) -> Response:
        """Store up to 1,000 pieces of feedback; each gets a result of its own."""
        key = self._authenticate(request, Permission.feedback)
        body = parse_json(await self._body(request, self._limits.batch_bytes))
        items = _items(body)
        self._spend(key, len(items))
        clamp = _flag(request, "clamp")
        idempotency_key = _idempotency_key(request)
        given = _traceparent(request)
        context = self._spans.batch_context(given)
        at = self._clock.now()
        results: list[dict[str, Any]] = []
        kinds: list[tuple[str, bool]] = []
        records: list[NewRecord] = []
        places: list[int] = []

        def event_of(index: int, item: Any, redact: Redact) -> FeedbackSubmitted | SignalObserved:
            return submitted(
                read_submission(item, clamp=clamp),
                tenant=key.tenant,
                # Items are received one after the other: of two on one answer the last counts.
                at=at + timedelta(microseconds=index),
                redact=redact,
                fallback_id=f"{idempotency_key}:{index}" if idempotency_key else "",
                rules=self._rules,
            )

        redact = await primed(
            self._redact,
            (_unless_refused(partial(event_of, *place)) for place in enumerate(items)),
        )
        for index, item in enumerate(items):
            if index % PER_TURN == PER_TURN - 1:
                await asyncio.sleep(0)
            try:
                event = event_of(index, item, redact)
                record = feedback_record(event, traceparent=context)
                await self._check_trace(event, record)
            except FeedbackError as error:
                self._metrics.rejected(Reason(error.code), "batch")
                results.append(_refusal(error))
                continue
            kinds.append((event.type, event.anonymous))
            records.append(record)
            places.append(index)
            results.append({"status": ACCEPTED, **_receipt(event)})
        refused = await self._publisher.store_batch(records) if records else {}
        for index, error in refused.items():
            self._metrics.rejected(Reason.too_large, "batch")
            results[places[index]] = _refusal(error)
        stored = [kind for index, kind in enumerate(kinds) if index not in refused]
        anonymous = sum(anonymous for _, anonymous in stored)
        self._metrics.accepted_batch((kind for kind, _ in stored), anonymous=anonymous)
        self._spans.stored_batch(
            f"POST {BATCH_PATH}",
            context,
            given,
            key.tenant,
            [record.key for index, record in enumerate(records) if index not in refused],
            at,
        )
        whole = len(stored) == len(items)
        log.info("feedback.batch", items=len(items), accepted=len(stored))
        return json_response(ACCEPTED if whole else MULTI_STATUS, {"results": results})

    async def withdraw(self, request: Request) -> Response:
        """Take feedback back: a revision that counts as none."""
        key = self._authenticate(request, Permission.feedback)
        self._spend(key)
        query = dict(request.query_params)
        query["feedback_id"] = request.path_params["feedback_id"]
        event = withdrawn(
            read_withdrawal(query), tenant=key.tenant, at=self._clock.now(), rules=self._rules
        )
        await self._store(f"DELETE {WITHDRAW_PATH}", request, event)
        self._metrics.accepted(event, "withdrawal")
        log.info(
            "feedback.withdrawn",
            trace_id=event.trace_id,
            feedback_id=event.feedback_id,
            revision=event.revision,
        )
        return json_response(ACCEPTED, _receipt(event))

    async def open_comparison(self, request: Request) -> Response:
        """Two blind answers to one question."""
        key = self._authenticate(request, Permission.vote)
        self._spend(key)
        body = parse_json(await self._body(request, self._limits.body_bytes))
        if (fields_of(body) or {}).get("panel") == "judge" and not key.judge_panel:
            raise NotOfThePanel(
                "panel: judge needs a key of its own; have one issued with --judge-panel"
            )
        opened = await self._comparisons.open(
            body, tenant=key.tenant, authorization=request.headers.get("authorization", "")
        )
        return json_response(201, opened)

    async def vote(self, request: Request) -> Response:
        """The one vote of a comparison; names the versions once it is stored."""
        key = self._authenticate(request, Permission.vote)
        self._spend(key)
        body = parse_json(await self._body(request, self._limits.body_bytes))
        comparison_id = request.path_params["comparison_id"]
        answer = await self._comparisons.vote(
            comparison_id, body, tenant=key.tenant, pseudonyms=self._rules.pseudonyms
        )
        log.info("vote.accepted", comparison_id=comparison_id)
        return json_response(200, answer)

    async def _store(
        self,
        name: str,
        request: Request,
        event: FeedbackSubmitted | SignalObserved | FeedbackWithdrawn,
    ) -> None:
        given = _traceparent(request)
        context = self._spans.context(given, event.trace_id)
        record = feedback_record(event, traceparent=context)
        await self._check_trace(event, record)
        await self._publisher.store(record)
        self._spans.stored(name, context, given, event)

    def _check_trace(
        self, event: FeedbackSubmitted | SignalObserved | FeedbackWithdrawn, record: NewRecord
    ) -> Awaitable[None]:
        size = record_bytes(record)
        return self._traces.check(event.tenant, event.trace_id, event.feedback_id, size)

    def _authenticate(self, request: Request, scope: Permission) -> ApiKey:
        return self._keys.authenticate(_header(request, b"authorization"), scope)

    def _spend(self, key: ApiKey, events: int = 1) -> None:
        """Count events against the limits of the key and its tenant.

        Raises:
            QuotaExceeded: one is reached.

        """
        self._quotas.spend(key.tenant, events, key=key)

    async def _body(self, request: Request, limit: int) -> bytes:
        try:
            return await read_body(
                request.scope,
                request.receive,
                limit=limit,
                timeout_s=self._limits.body_timeout_s,
            )
        except ClientDisconnected:
            raise Malformed("the connection ended before the body did; send it again") from None


def open_to_browsers(app: AsgiApp, origins: tuple[str, ...]) -> AsgiApp:
    """The application for browsers on pages of these origins too."""
    return with_cors(
        app,
        origins,
        methods=("GET", "POST", "DELETE"),
        expose=("x-ratchet-trace-id", "retry-after"),
    )


def create_app(api: FeedbackApi, metrics: FeedbackMetrics, *routers: APIRouter) -> FastAPI:
    """The application: routes, and the one place where errors become answers."""
    app = DirectApp(title="Ratchet feedback", version="1", docs_url=None, redoc_url=None)
    describe(app, documents.MODELS, problems=(401, 403, 422, 503))

    def route(
        method: str, path: str, endpoint: Endpoint, way: Way, **documentation: Any
    ) -> Endpoint:
        async def call(request: Request) -> Response:
            try:
                return await endpoint(request)
            except RatchetError as error:
                metrics.rejected(Reason(error.code), way)
                return problem(error)
            except Exception:
                metrics.rejected(Reason.internal, way)
                log.exception("feedback.failed", way=way)
                return problem(FeedbackError("the service failed; send it again, ids and all"))

        app.add_api_route(
            path,
            call,
            methods=[method],
            name=endpoint.__name__,
            response_class=Response,
            summary=endpoint.__doc__,
            **documentation,
        )
        return call

    single = route("POST", SUBMIT_PATH, api.submit, "single", **documents.SUBMIT)
    app.serve_directly(SUBMIT_PATH, single)
    batch = route("POST", BATCH_PATH, api.submit_batch, "batch", **documents.SUBMIT_BATCH)
    app.serve_directly(BATCH_PATH, batch)
    route("DELETE", WITHDRAW_PATH, api.withdraw, "withdrawal", **documents.WITHDRAW)
    route("POST", "/v1/comparisons", api.open_comparison, "comparison", **documents.COMPARE)
    path = "/v1/comparisons/{comparison_id}/vote"
    route("POST", path, api.vote, "vote", **documents.VOTE)
    for router in routers:
        app.include_router(router)

    handle_errors(app)
    return app


def _unless_refused(build: Callable[[Redact], object]) -> Callable[[Redact], None]:
    """A build whose refusal is nothing yet: it is said when the item's turn comes."""

    def built(redact: Redact) -> None:
        with suppress(FeedbackError):
            build(redact)

    return built


def _receipt(event: Any) -> dict[str, Any]:
    return {
        "feedback_id": event.feedback_id,
        "revision": event.revision,
        "trace_id": event.trace_id,
    }


def _refusal(error: FeedbackError) -> dict[str, Any]:
    return {"status": error.status, "error": error.problem()}


def _items(body: Any) -> list[Any]:
    found = (fields_of(body) or {}).get("items")
    if not isinstance(found, list):
        raise Malformed(f'items: is {json_kind(found)}; send {{"items": […]}}')
    items = cast("list[Any]", found)
    if not 1 <= len(items) <= MAX_BATCH:
        rule = f"holds {len(items)} items, 1 to {MAX_BATCH} are allowed"
        raise invalid([FieldError("items", rule, f"send 1 to {MAX_BATCH} items a batch")])
    return items


def _flag(request: Request, name: str) -> bool:
    if not request.scope["query_string"]:
        return False
    match request.query_params.get(name, "false").lower():
        case "true" | "1":
            return True
        case "false" | "0":
            return False
        case _:
            pass
    raise invalid([FieldError(name, "is true or false", f"send ?{name}=true or leave it out")])


def _header(request: Request, name: bytes) -> str | None:
    """A header, found without making an object of all of them."""
    for given, value in request.scope["headers"]:
        if given == name:
            return value.decode("latin-1")
    return None


def _idempotency_key(request: Request) -> str:
    key = _header(request, b"idempotency-key")
    if not key:
        return ""
    try:
        return _identifier.validate_python(key)
    except ValidationError as error:
        raise invalid(field_errors(error, prefix="header Idempotency-Key")) from None


def _traceparent(request: Request) -> str:
    given = _header(request, b"traceparent")
    return rebuilt_traceparent(given) if given else ""
