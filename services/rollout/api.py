"""The control API (design section 5). Reads are answered by every replica, commands by the leader."""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from pathlib import Path
from typing import Annotated, Any

import structlog
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from services.rollout import steps
from services.rollout.controller import Controller
from services.rollout.decision_log import DecisionLog, RolloutHistory
from services.rollout.errors import BadStrategy, NotLeading, RolloutError, Unknown
from services.rollout.strategy import Strategy, parse, read
from services.rollout.views import decision_view, rollout_view, version_view
from shared.contracts.events.api_keys import Permission
from shared.contracts.events.base import Identifier
from shared.keys import ApiKey, Forbidden, KeyRing, Unauthenticated
from shared.observability.health import OpsApp, Receive, Scope, Send
from shared.registry.versions import Registry

log = structlog.get_logger(__name__)

MAX_BODY_BYTES = 256 * 1024
MAX_PAGE = 1_000
RETRY_AFTER_S = "2"
_STRATEGY_NAME = re.compile(r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}$")


class StartRequest(BaseModel):
    """Begin a rollout."""

    model_config = ConfigDict(extra="forbid")
    model: Identifier
    candidate: Identifier
    strategy: str | dict[str, Any] | None = Field(
        default=None, description="name of a strategy file, or a strategy; absent: the default"
    )
    supersede: bool = False
    actor: Identifier | None = None
    reason: Annotated[str, Field(max_length=1000)] = ""


class CommandRequest(BaseModel):
    """Who wants it, and why."""

    model_config = ConfigDict(extra="forbid")
    actor: Identifier | None = None
    reason: Annotated[str, Field(max_length=1000)] = ""
    full: bool = Field(default=False, description="promote: make the candidate stable at once")


class RolloutApi:
    """What the endpoints do."""

    def __init__(
        self,
        controller: Controller,
        decision_log: DecisionLog,
        registry: Registry,
        keys: KeyRing,
        strategies: Path,
    ) -> None:
        self._controller = controller
        self._decision_log = decision_log
        self._registry = registry
        self._keys = keys
        self._strategies = strategies

    def authenticate(self, request: Request) -> ApiKey:
        """Everything here needs the scope `operate`."""
        return self._keys.authenticate(request.headers.get("authorization"), Permission.operate)

    async def start(self, body: StartRequest, key: ApiKey) -> dict[str, Any]:
        """See StartRequest."""
        strategy = self._strategy(body.strategy)
        state = await self._controller.settle(
            lambda: self._controller.start(
                model=body.model,
                candidate=body.candidate,
                strategy=strategy,
                supersede=body.supersede,
                actor=body.actor or key.key_id,
                reason=body.reason,
            )
        )
        return self.rollout(state.rollout_id)

    async def command(
        self, rollout_id: str, verb: str, body: CommandRequest, key: ApiKey
    ) -> dict[str, Any]:
        """Pause, resume, promote, abort or retry a rollout."""
        actor = body.actor or key.key_id
        if verb == "retry":
            state = await self._controller.settle(
                lambda: self._controller.retry(rollout_id, actor=actor, reason=body.reason)
            )
            return self.rollout(state.rollout_id)

        def make(state: steps.RolloutState, at: Any) -> steps.Move:
            match verb:
                case "pause":
                    return steps.pause(state, at, body.reason)
                case "resume":
                    return steps.resume(state, at, body.reason)
                case "promote":
                    return steps.promote(state, at, body.reason, full=body.full)
                case "abort":
                    return steps.abort(state, at, body.reason)
                case _:
                    raise Unknown(
                        f"{verb}: unknown; there are pause, resume, promote, abort and retry"
                    )

        await self._controller.settle(lambda: self._controller.command(rollout_id, make, actor))
        return self.rollout(rollout_id)

    def rollout(self, rollout_id: str) -> dict[str, Any]:
        """One rollout."""
        history = self._decision_log.get(rollout_id)
        if history is None:
            raise Unknown(f"rollout {rollout_id}: unknown; GET /v1/rollouts lists them")
        return self._view(history)

    def rollouts(self, model: str, limit: int) -> list[dict[str, Any]]:
        """Rollouts, newest first."""
        return [
            self._view(history) for history in self._decision_log.histories(model)[::-1][:limit]
        ]

    def current(self, model: str) -> dict[str, Any]:
        """The model's unfinished rollout, else its last one."""
        histories = self._decision_log.histories(model)
        history = self._decision_log.unfinished_of(model) or (histories[-1] if histories else None)
        if history is None:
            raise Unknown(f"model {model}: never had a rollout", field="model")
        return self._view(history)

    def decisions(self, rollout_id: str, after: int, limit: int) -> dict[str, Any]:
        """A page of a rollout's decisions, or of a model's that belong to none."""
        history = self._decision_log.get(rollout_id)
        if history is not None:
            found = history.decisions(after, limit)
        else:
            found = [one for one in self._decision_log.of_model(rollout_id) if one.offset > after][
                :limit
            ]
            if not self._decision_log.of_model(rollout_id):
                raise Unknown(f"rollout {rollout_id}: unknown; GET /v1/rollouts lists them")
        return {
            "decisions": [decision_view(one) for one in found],
            "next": found[-1].offset if len(found) == limit else None,
        }

    def versions(self, model: str) -> list[dict[str, Any]]:
        """Versions in order of registration."""
        return [version_view(version) for version in self._registry.versions(model)]

    def version(self, name: str) -> dict[str, Any]:
        """One version with its record."""
        version = self._registry.get(name)
        if version is None:
            raise Unknown(f"version {name}: unknown; GET /v1/versions lists them")
        return version_view(version, whole=True)

    def _view(self, history: RolloutHistory) -> dict[str, Any]:
        state, judged, verdict = self._controller.newest(history)
        return rollout_view(history, state, judged, verdict)

    def _strategy(self, asked: str | dict[str, Any] | None) -> Strategy | None:
        if asked is None:
            return None
        if isinstance(asked, dict):
            return parse(asked)
        path = self._strategies / f"{asked}.yaml"
        if not _STRATEGY_NAME.match(asked) or not path.is_file():
            known = ", ".join(sorted(one.stem for one in self._strategies.glob("*.yaml")))
            raise BadStrategy(
                f"strategy: {asked} is not known; there are {known}, or send one whole",
                field="strategy",
            )
        return read(path)


def create_app(api: RolloutApi) -> FastAPI:
    """The application: routes, and the one place where errors become answers."""
    app = FastAPI(title="Ratchet rollout", version="1")

    @app.post("/v1/rollouts", status_code=201)
    async def start(request: Request, body: StartRequest) -> dict[str, Any]:
        return await api.start(body, api.authenticate(request))

    @app.get("/v1/rollouts")
    async def rollouts(
        request: Request, model: str = "", limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 50
    ) -> dict[str, Any]:
        api.authenticate(request)
        return {"rollouts": api.rollouts(model, limit)}

    @app.get("/v1/rollouts/current")
    async def current(request: Request, model: str) -> dict[str, Any]:
        api.authenticate(request)
        return api.current(model)

    @app.get("/v1/rollouts/{rollout_id}")
    async def rollout(request: Request, rollout_id: str) -> dict[str, Any]:
        api.authenticate(request)
        return api.rollout(rollout_id)

    @app.get("/v1/rollouts/{rollout_id}/decisions")
    async def decisions(
        request: Request,
        rollout_id: str,
        after: int = -1,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 200,
    ) -> dict[str, Any]:
        api.authenticate(request)
        return api.decisions(rollout_id, after, limit)

    @app.post("/v1/rollouts/{rollout_id}/{verb}")
    async def command(
        request: Request, rollout_id: str, verb: str, body: CommandRequest | None = None
    ) -> JSONResponse:
        key = api.authenticate(request)
        done = await api.command(rollout_id, verb, body or CommandRequest(), key)
        return JSONResponse(done, status_code=201 if verb == "retry" else 200)

    @app.get("/v1/versions")
    async def versions(request: Request, model: str = "") -> dict[str, Any]:
        api.authenticate(request)
        return {"versions": api.versions(model)}

    @app.get("/v1/versions/{version:path}")
    async def version(request: Request, version: str) -> dict[str, Any]:
        api.authenticate(request)
        return api.version(version)

    _handle_errors(app)
    return app


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(RolloutError)
    async def told(_: Request, error: RolloutError) -> JSONResponse:
        return _error(error.status, error.code, error.message, error.field)

    @app.exception_handler(Unauthenticated)
    async def unauthenticated(_: Request, error: Unauthenticated) -> JSONResponse:
        return _error(401, "unauthenticated", str(error))

    @app.exception_handler(Forbidden)
    async def forbidden(_: Request, error: Forbidden) -> JSONResponse:
        return _error(403, "forbidden", str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        said = error.errors()[0]
        field = ".".join(str(part) for part in said["loc"] if part not in ("body", "query"))
        message = f"{field}: {said['msg']}" if field else str(said["msg"])
        return _error(422, "invalid", message, field or None)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}; /docs lists what there is"
        return _error(error.status_code, "not_found", message)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        log.error("api.failed", error=repr(error))
        return _error(500, "internal", "the service failed; the log says how. Try again")


def _error(status: int, code: str, message: str, field: str | None = None) -> JSONResponse:
    # Only where nothing was done: a second promote would end a second step.
    headers = {"retry-after": RETRY_AFTER_S} if code == NotLeading.code else None
    body = {"error": {"code": code, "message": message, "field": field}}
    return JSONResponse(body, status_code=status, headers=headers)


class WithOps:
    """The application with /healthz, /readyz and /metrics in front, and a limit on bodies."""

    def __init__(self, app: FastAPI, ops: OpsApp) -> None:
        self._app = app
        self._ops = ops

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] in ("GET", "HEAD") and await self._ops.serve(scope, send):
            return
        whole = await _within(MAX_BODY_BYTES, scope, receive)
        if whole is None:
            message = f"body: larger than {MAX_BODY_BYTES} bytes; send a smaller one"
            await _error(413, "too_large", message)(scope, receive, send)
            return
        await self._app(scope, whole, send)


async def _within(limit: int, scope: Scope, receive: Receive) -> Receive | None:
    """A `receive` that gives the request's body, read whole; None where that has over `limit` bytes.

    The length that a client announces only spares us the reading: a chunked body has none.
    """
    length = dict(scope["headers"]).get(b"content-length", b"")
    if length.isdigit() and int(length) > limit:
        return None
    messages: list[MutableMapping[str, Any]] = []
    size = 0
    while not messages or messages[-1].get("more_body", False):
        messages.append(await receive())
        size += len(messages[-1].get("body", b""))
        if size > limit:
            return None
    messages.reverse()

    async def again() -> MutableMapping[str, Any]:
        return messages.pop() if messages else await receive()

    return again
