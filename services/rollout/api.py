"""What the control API does (design section 5). Every replica answers reads, the leader commands."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import asdict
from itertools import islice
from typing import Any

import structlog
from fastapi import Request

from services.rollout import steps
from services.rollout.audit import AuditLog
from services.rollout.controller import Controller
from services.rollout.counts import ArmCounts, JudgeState
from services.rollout.decision_log import DecisionLog, RolloutHistory
from services.rollout.errors import (
    Conflict,
    DecisionNotAcknowledged,
    LeadershipLost,
    NotAnApprover,
    NotLeading,
    Unknown,
    Unsure,
)
from services.rollout.evaluations import EvaluateRequest, Evaluations
from services.rollout.explain import Traffic, explain
from services.rollout.gains import since_reference, win_rate
from services.rollout.intervals import interval_series
from services.rollout.live_figures import LiveFigures
from services.rollout.registrations import RegisterRequest, Registrations
from services.rollout.replay import Replay, SliceTable
from services.rollout.requests import (
    CommandRequest,
    ExplainRequest,
    HoldoutRequest,
    RetireRequest,
    StartRequest,
)
from services.rollout.strategy import Strategy
from services.rollout.strategy_files import StrategyFolder, parse
from services.rollout.views import decision_view, holdout_view, rollout_view, version_view
from shared.contracts.events.api_keys import Permission
from shared.http.problems import InvalidField
from shared.kafka.log import LogUnavailable
from shared.keys import ApiKey, KeyRing
from shared.registry.versions import Registry
from shared.tenants import OperatorScope
from shared.validation import field_refusal

log = structlog.get_logger(__name__)

COMMANDS = ("pause", "resume", "promote", "abort", "retry")
"""Of rollouts, on people's word."""
SCORES = "satisfaction"
MAX_WAITING = 3
"""Versions that wait for an approver, as the model's present rollout names them."""
UNKNOWN = "it is not known whether the decision was written"
LOOK_FIRST = "look with `ratchet rollout status` before another try"
_DECISION_ID = re.compile(r"^\d{1,18}:\d{1,18}$")


class RolloutApi:
    """What the endpoints do."""

    def __init__(
        self,
        controller: Controller,
        decision_log: DecisionLog,
        registry: Registry,
        keys: KeyRing,
        strategies: StrategyFolder,
        audit: AuditLog,
        registrations: Registrations,
        evaluations: Evaluations,
        figures: LiveFigures,
    ) -> None:
        self._controller = controller
        self._decision_log = decision_log
        self._registry = registry
        self._keys = keys
        self._strategies = strategies
        self._audit = audit
        self._registrations = registrations
        self._evaluations = evaluations
        self._figures = figures

    def authenticate(self, request: Request) -> ApiKey:
        """Everything here needs the scope `operate`."""
        return self._keys.authenticate(request.headers.get("authorization"), Permission.operate)

    async def start(self, body: StartRequest, key: ApiKey) -> dict[str, Any]:
        """See StartRequest."""
        if body.again:
            _must_have_reason(body.reason, "again overrides a rejection")
        if body.unevaluated:
            _must_have_reason(body.reason, "unevaluated overrides the strategy")
        if body.one_tenant:
            _must_have_reason(body.reason, "one_tenant accepts whose data it was trained on")
            if not key.approver:
                raise field_refusal(
                    NotAnApprover,
                    "one_tenant",
                    f"{key.key_id} is no approver's key",
                    "one issued with `ratchet keys create --approver` has to start it",
                )
        strategy = self._strategy(body.strategy)
        state = await self._settle(
            lambda: self._controller.start(
                model=body.model,
                candidate=body.candidate,
                strategy=strategy,
                supersede=body.supersede,
                again=body.again,
                unevaluated=body.unevaluated,
                one_tenant=body.one_tenant,
                actor=key.key_id,
                on_behalf_of=body.on_behalf_of,
                reason=body.reason,
            )
        )
        return self.rollout(state.rollout_id)

    async def command(
        self, rollout_id: str, verb: str, body: CommandRequest, key: ApiKey
    ) -> dict[str, Any]:
        """Pause, resume, promote, abort or retry a rollout."""
        who = {"actor": key.key_id, "on_behalf_of": body.on_behalf_of}
        if verb == "retry" or (verb == "promote" and body.full):
            _must_have_reason(body.reason, f"{verb} overrides the judge")
        if verb == "retry":
            state = await self._settle(
                lambda: self._controller.retry(rollout_id, reason=body.reason, **who)
            )
            return self.rollout(state.rollout_id)

        gatekeeper = {"actor": key.key_id, "approver": key.approver}

        def make(state: steps.RolloutState, at: Any) -> steps.Move:
            match verb:
                case "pause":
                    return steps.pause(state, at, body.reason)
                case "resume":
                    return steps.resume(state, at, body.reason, **gatekeeper)
                case "promote":
                    return steps.promote(state, at, body.reason, full=body.full, **gatekeeper)
                case "abort":
                    return steps.abort(state, at, body.reason)
                case _:
                    raise Unknown(
                        f"{verb}: unknown; there are {', '.join(COMMANDS[:-1])} and {COMMANDS[-1]}"
                    )

        await self._settle(lambda: self._controller.command(rollout_id, make, **who))
        return self.rollout(rollout_id)

    def rollout(self, rollout_id: str) -> dict[str, Any]:
        """One rollout."""
        return self._view(self._history(rollout_id))

    def rollouts(self, model: str, limit: int, scope: OperatorScope) -> list[dict[str, Any]]:
        """Rollouts in a key's scope, newest first."""
        newest = (
            history
            for history in reversed(self._decision_log.histories(model))
            if scope.has_model(history.state.model)
        )
        return [self._view(history) for history in islice(newest, limit)]

    def current(self, model: str) -> dict[str, Any]:
        """The model's unfinished rollout, else its last one."""
        histories = self._decision_log.histories(model)
        history = self._decision_log.unfinished_of(model) or (histories[-1] if histories else None)
        views = self._version_views(model)
        waits = (
            f"{one['version']} waits for {one['waits_for']}" for one in views if one["waits_for"]
        )
        waiting = list(islice(waits, MAX_WAITING))
        if history is None:
            more = "".join(f". {one}" for one in waiting)
            raise field_refusal(
                Unknown,
                "model",
                f"{model} never had a rollout",
                f"start one, or name another model{more}",
            )
        return {**self._view(history), "waiting": "; ".join(waiting)}

    def decisions(
        self, rollout_id: str, after: str, limit: int, *, moves: bool = False
    ) -> dict[str, Any]:
        """A page of a rollout's decisions, or of a model's that belong to none.

        `after` is the id of the last one seen; `moves` leaves out holds.
        """
        seen = _order(after)
        history = self._decision_log.get(rollout_id)
        if history is not None:
            found = history.decisions(seen, limit, moves=moves)
        else:
            found = [one for one in self._decision_log.of_model(rollout_id) if one.order > seen][
                :limit
            ]
            if not self._decision_log.of_model(rollout_id):
                raise Unknown(f"rollout {rollout_id}: unknown; GET /v1/rollouts lists them")
        return {
            "decisions": [decision_view(one) for one in found],
            "next": found[-1].decision_id if len(found) == limit else None,
        }

    async def replay(self, rollout_id: str) -> dict[str, Any]:
        """Every decision recomputed from the log's record."""
        replay = Replay(rollout_id)
        # A rollout of days takes a minute to judge, in which the controller must not stand still.
        async with aclosing(self._audit.batches(rollout_id)) as batches:
            async for batch in batches:
                await asyncio.to_thread(replay.add, batch)
        return replay.report.to_dict()

    async def slices(self, rollout_id: str) -> AsyncGenerator[str]:
        """The judge's evidence as CSV, a piece at a time."""
        table, header = SliceTable(), SliceTable.header()
        async with aclosing(self._audit.batches(rollout_id)) as batches:
            async for batch in batches:
                yield header + await asyncio.to_thread(table.rows, batch)
                header = ""

    def intervals(self, rollout_id: str) -> list[dict[str, Any]]:
        """Confidence sequences of the relative criteria over time."""
        history = self._history(rollout_id)
        states = [(at, JudgeState.model_validate(raw)) for at, raw in history.judged()]
        state, judged, _ = self._controller.newest(history)
        if judged is not None:
            states.append((state.updated_at, judged))
        return interval_series(state.strategy.judge, states)

    async def gains(self, model: str) -> list[dict[str, Any]]:
        """Gain of each candidate over its stable version, and over the holdout's reference.

        Oldest first. The intervals hold at every moment at once with 1 - alpha of the strategy;
        they are None while an arm has no scored feedback, no vote, or there is no holdout.
        """
        routing = self._decision_log.routing.get(model)
        reference = routing.reference if routing is not None and routing.holdout else ""
        scores = await self._figures.scores() if reference else {}
        votes = await self._figures.votes()
        deployments, now = self._decision_log.deployments, self._figures.now()
        found: list[dict[str, Any]] = []
        for history in self._decision_log.histories(model):
            view, state = self._view(history), history.state
            shown = self.intervals(state.rollout_id)
            points = next((one["points"] for one in shown if one["criterion"] == SCORES), [])
            found.append(
                {
                    "version": state.candidate,
                    "reference": state.stable,
                    "rollout_id": state.rollout_id,
                    "result": view["result"] or state.phase.value,
                    "confidence": 1 - (alpha := state.strategy.judge.alpha),
                    "satisfaction": points[-1] if points else None,
                    "win_rate": win_rate(state.candidate, state.stable, votes, alpha=alpha),
                    "holdout_reference": reference,
                    "since_reference": since_reference(
                        deployments.of(state.candidate),
                        deployments.of(reference),
                        (state.candidate, reference),
                        scores,
                        now=now,
                        alpha=alpha,
                    ),
                    "win_rate_since_reference": win_rate(
                        state.candidate, reference, votes, alpha=alpha
                    ),
                }
            )
        return found

    def explain(self, body: ExplainRequest) -> dict[str, Any]:
        """Whether a strategy is valid, and what it means at some traffic."""
        strategy = self._strategy(body.strategy)
        assert strategy is not None
        traffic = Traffic(**body.traffic.model_dump()) if body.traffic else None
        if traffic is None and body.model:
            traffic = self._present_traffic(body.model)
        return {
            "name": strategy.name,
            "config_sha256": strategy.sha256,
            "traffic": asdict(traffic) if traffic else None,
            "steps": [plan.to_dict() for plan in explain(strategy, traffic)] if traffic else [],
        }

    async def set_holdout(self, body: HoldoutRequest, key: ApiKey) -> dict[str, Any]:
        """See HoldoutRequest."""
        await self._settle(
            lambda: self._controller.set_holdout(
                body.model,
                round(body.share * 100),
                actor=key.key_id,
                on_behalf_of=body.on_behalf_of,
                reason=body.reason,
            )
        )
        return self.holdout(body.model)

    def holdout(self, model: str) -> dict[str, Any]:
        """The model's holdout, and the decision that set it, where there is one."""
        routing = self._decision_log.routing.get(model)
        if routing is None:
            raise field_refusal(
                Unknown,
                "model",
                f"{model} has no stable version yet",
                "train or register its first",
            )
        return holdout_view(routing, self._decision_log.of_model(model))

    async def register(self, body: RegisterRequest, key: ApiKey) -> dict[str, Any]:
        """See RegisterRequest."""
        version = await self._registrations.register(body, key.key_id)
        return version_view(version, (), whole=True)

    async def evaluate(self, name: str, body: EvaluateRequest, key: ApiKey) -> dict[str, Any]:
        """See EvaluateRequest."""
        return await self._evaluations.begin(name, body, key.key_id)

    async def retire(self, name: str, body: RetireRequest, key: ApiKey) -> dict[str, Any]:
        """See RetireRequest."""
        await self._settle(
            lambda: self._controller.retire(
                name, actor=key.key_id, on_behalf_of=body.on_behalf_of, reason=body.reason
            )
        )
        return self.version(name)

    def versions(self, model: str, scope: OperatorScope) -> list[dict[str, Any]]:
        """Versions in a key's scope, in order of registration."""
        return [one for one in self._version_views(model) if scope.has_model(one["model"])]

    def version(self, name: str) -> dict[str, Any]:
        """One version with its record."""
        version = self._registry.get(name)
        if version is None:
            raise Unknown(f"version {name}: unknown; GET /v1/versions lists them")
        view = version_view(
            version,
            self._decision_log.deployments.of(name),
            waits_for=self._controller.waits_for(name),
            whole=True,
        )
        return {**view, "evaluating": self._evaluations.progress(name)}

    def _version_views(self, model: str) -> list[dict[str, Any]]:
        deployments = self._decision_log.deployments
        return [
            version_view(
                version,
                deployments.of(version.record.version),
                waits_for=self._controller.waits_for(version.record.version),
            )
            for version in self._registry.versions(model)
        ]

    async def _settle(self, action: Callable[[], Awaitable[Any]]) -> Any:
        """Run a command and map failures of the log to API errors.

        Raises:
            RolloutError: as the action does; NotLeading where nothing was sent, Unsure where it
                was and no answer says what became of it.

        """
        try:
            return await action()
        except LogUnavailable as error:
            raise DecisionNotAcknowledged(f"{UNKNOWN}: {error}; {LOOK_FIRST}") from error
        except LeadershipLost as error:
            now = f"the leader is {self._decision_log.holder}"
            if error.sent:
                raise Unsure(f"{UNKNOWN}: the lead was lost, {now}; {LOOK_FIRST}") from None
            raise NotLeading(f"nothing was done: the lead was lost, {now}; ask there") from None

    def _history(self, rollout_id: str) -> RolloutHistory:
        history = self._decision_log.get(rollout_id)
        if history is None:
            raise Unknown(f"rollout {rollout_id}: unknown; GET /v1/rollouts lists them")
        return history

    def _present_traffic(self, model: str) -> Traffic:
        """Traffic of the model's unfinished rollout, from the judge's own counts."""
        history = self._decision_log.unfinished_of(model)
        state, judged, _ = self._controller.newest(history) if history else (None, None, None)
        counts = judged.totals.candidate + judged.totals.stable if judged else ArmCounts()
        if state is None or not counts.requests:
            raise field_refusal(
                Conflict,
                "traffic",
                f"no unfinished rollout of {model} has counted requests",
                "say the traffic",
            )
        return Traffic.of(counts, (state.updated_at - state.started_at).total_seconds())

    def _view(self, history: RolloutHistory) -> dict[str, Any]:
        state, judged, verdict = self._controller.newest(history)
        return rollout_view(history, state, judged, verdict)

    def _strategy(self, asked: str | dict[str, Any] | None) -> Strategy | None:
        if asked is None:
            return None
        if isinstance(asked, dict):
            return parse(asked)
        return self._strategies.named(asked)


def _order(decision_id: str) -> tuple[int, int]:
    """Order of a decision by its id; before all where there is none."""
    if not decision_id:
        return (-1, -1)
    if not _DECISION_ID.match(decision_id):
        raise field_refusal(
            InvalidField, "after", "must be the id of a decision", "use `next` of the last page"
        )
    token, _, seq = decision_id.partition(":")
    return (int(token), int(seq))


def _must_have_reason(reason: str, why: str) -> None:
    if not reason.strip():
        raise field_refusal(
            InvalidField, "reason", f"is required, as {why}", "say why; it is kept on record"
        )
