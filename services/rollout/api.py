"""The control API (design section 5). Reads are answered by every replica, commands by the leader."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import structlog
from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from services.rollout import steps
from services.rollout.controller import Controller
from services.rollout.decision_log import DecisionLog, RolloutHistory
from services.rollout.errors import BadStrategy, Unknown
from services.rollout.strategy import Strategy, parse, read
from services.rollout.views import decision_view, rollout_view, version_view
from shared.contracts.events.api_keys import Permission
from shared.contracts.events.base import Identifier
from shared.http.asgi import Scope
from shared.http.body import GuardedApp
from shared.http.problems import handle_errors
from shared.keys import ApiKey, KeyRing
from shared.registry.versions import Registry

log = structlog.get_logger(__name__)

MAX_BODY_BYTES = 256 * 1024
BODY_TIMEOUT_S = 10.0
MAX_PAGE = 1_000
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
    again: bool = Field(default=False, description="start a version that was rejected before")
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
                again=body.again,
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

    handle_errors(app)
    return app


def guarded(app: FastAPI, api: RolloutApi) -> GuardedApp:
    """The application behind authentication, a limit and a deadline for bodies."""

    def authorize(scope: Scope) -> None:
        api.authenticate(Request(scope))

    return GuardedApp(app, authorize=authorize, limit=MAX_BODY_BYTES, timeout_s=BODY_TIMEOUT_S)
