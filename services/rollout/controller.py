"""Control loop of all rollouts: observe, write the decision to the log, then act on it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog

from services.rollout import steps
from services.rollout.active_rollouts import ActiveRollout, ActiveRollouts
from services.rollout.agents import Agents
from services.rollout.candidates import Candidates
from services.rollout.counts import JudgeState
from services.rollout.decision_log import DecisionLog, RolloutHistory
from services.rollout.effects import Effects
from services.rollout.errors import (
    Conflict,
    LeadershipLost,
    NotLeading,
    Unknown,
)
from services.rollout.evidence_store import EvidenceStore
from services.rollout.leadership import Leadership
from services.rollout.metrics import RolloutMetrics
from services.rollout.observer import Observer
from services.rollout.prometheus import Prometheus
from services.rollout.recorder import DecisionRecorder
from services.rollout.shadow_results import ShadowResults
from services.rollout.state import CONTROLLER, Move, RolloutState
from services.rollout.strategy import Strategy
from services.rollout.verdict import Verdict
from shared.clock import Clock
from shared.contracts.events.rollouts import Decision, DecisionKind
from shared.contracts.events.versions import Lifecycle
from shared.kafka.log import LogUnavailable
from shared.observability.events import Unavailable
from shared.registry.versions import Registry
from shared.registry.view import RoutingView
from shared.validation import field_refusal

log = structlog.get_logger(__name__)

MAX_ROLLOUT_ID = 180
NOTHING: Mapping[str, str] = {}
"""What a rollout overrides that begins by itself."""


@dataclass(frozen=True, slots=True)
class ControllerPolicy:
    """Settings of the control loop. Durations are in seconds."""

    strategy: Strategy
    auto_start: bool
    look_interval_s: float
    hold_interval_s: float
    no_data_after_s: float
    series_grace_s: float


class Controller:
    """All rollouts of all models. One replica leads; the others keep the fold warm."""

    def __init__(
        self,
        *,
        policy: ControllerPolicy,
        leadership: Leadership,
        decision_log: DecisionLog,
        registry: Registry,
        view: RoutingView,
        prometheus: Prometheus,
        agents: Agents,
        shadow_results: ShadowResults,
        evidence_store: EvidenceStore,
        metrics: RolloutMetrics,
        clock: Clock,
        announce: Callable[[Decision], None] = lambda _: None,
    ) -> None:
        self._policy = policy
        self._leadership = leadership
        self._decision_log = decision_log
        self._registry = registry
        self._candidates = Candidates(registry, decision_log, agents)
        self._observer = Observer(prometheus, agents, shadow_results, clock, policy.no_data_after_s)
        self._effects = Effects(leadership, decision_log, registry, view, clock)
        self._recorder = DecisionRecorder(
            leadership, decision_log.routing, self._effects, metrics, clock, announce
        )
        self._active = ActiveRollouts(evidence_store, metrics, clock, policy.series_grace_s)
        self._metrics = metrics
        self._clock = clock
        self._turn = asyncio.Lock()
        self._round_at = clock.monotonic()
        self._led = False

    def idle_s(self) -> float:
        """Seconds since the last round began."""
        return self._clock.monotonic() - self._round_at

    def alive(self) -> None:
        """Waiting for an absent log is progress too: a restart would not bring it back."""
        self._round_at = self._clock.monotonic()

    async def run(self, stop: asyncio.Event) -> None:
        """Run rounds until `stop` is set. A failure in a round does not end the loop."""
        while not stop.is_set():
            began = self._clock.monotonic()
            try:
                await self.round()
            except LogUnavailable as error:
                log.warning(Unavailable.kafka, during="round", error=str(error))
            except LeadershipLost as error:
                log.warning("leadership.lost", error=str(error))
            except Exception:
                log.exception("round.failed")
            self._round_at = self._clock.monotonic()
            spent = self._round_at - began
            rest = max(0.05, self._policy.look_interval_s - spent)
            try:
                async with asyncio.timeout(rest):
                    await stop.wait()
            except TimeoutError:
                continue
        await self._leadership.resign()

    async def round(self) -> None:
        """One round: lead or try to, start what waits, look at every unfinished rollout."""
        leads = self._leadership.leads
        if leads:
            await self._leadership.keep()
        elif await self._leadership.campaign():
            self._led = False
        leads = self._leadership.leads
        self._metrics.leader.set(leads)
        if not leads:
            self._follow()
            return
        if not self._led:
            async with self._turn:
                await self._take_over()
                self._led = True
        verified = await self._candidates.verified_firsts()
        async with self._turn:
            await self._start_what_waits(verified)
            await self._effects.uphold()
            await self._effects.refresh()
        names = [history.state.rollout_id for history in self._decision_log.unfinished()]
        said = await asyncio.gather(*(self._look(name) for name in names), return_exceptions=True)
        self._active.forget_series()
        for error in said:
            if isinstance(error, BaseException):
                raise error

    def _follow(self) -> None:
        """Know no more than the log; what another replica decides is its to show."""
        if self._led:
            self._metrics.forget_all()
        self._active.follow()
        self._led = False

    async def start(
        self,
        *,
        model: str,
        candidate: str,
        strategy: Strategy | None,
        supersede: bool,
        actor: str,
        reason: str,
        on_behalf_of: str = "",
        again: bool = False,
        unevaluated: bool = False,
        one_tenant: bool = False,
    ) -> RolloutState:
        """Begin a rollout; of a version that was rejected before only `again`.

        `unevaluated` overrides a strategy that requires an evaluation, and `one_tenant` accepts that
        one tenant gave more than half of the candidate's data; the decision says so.
        `actor` is who was authenticated, `on_behalf_of` whom the actor names.

        Raises:
            RolloutError: the candidate may not, or the model has an unfinished rollout.

        """
        self._must_lead()
        async with self._turn:
            self._must_lead()
            stable = self._candidates.check(model, candidate, again=again)
            chosen = strategy or self._policy.strategy
            accepted = self._candidates.accepted(
                candidate, chosen, unevaluated=unevaluated, one_tenant=one_tenant
            )
            unfinished = self._decision_log.unfinished_of(model)
            if unfinished is not None:
                if not supersede:
                    raise Conflict(
                        f"model {model} has the unfinished rollout "
                        f"{unfinished.state.rollout_id}; abort it, or ask with supersede (ratchet rollout start --supersede)"
                    )
                if unfinished.state.candidate == candidate:
                    raise Conflict(
                        f"{candidate} is in the unfinished rollout "
                        f"{unfinished.state.rollout_id} already; wait for its end"
                    )
                move = steps.abort(
                    unfinished.state,
                    self._clock.now(),
                    f"superseded by {candidate}: {reason}",
                    DecisionKind.supersede,
                )
                await self._command(unfinished, move, actor, on_behalf_of)
            try:
                return await self._begin(
                    model, stable, candidate, chosen, actor, reason, on_behalf_of, accepted
                )
            except LeadershipLost as error:
                # The rollout before it has ended by now, whatever became of this one.
                raise LeadershipLost(sent=error.sent or unfinished is not None) from error

    async def retry(
        self, rollout_id: str, *, actor: str, reason: str, on_behalf_of: str = ""
    ) -> RolloutState:
        """Begin again with the same candidate and strategy, and no evidence.

        Raises:
            RolloutError: it has not ended, or may not begin.

        """
        self._must_lead()
        state = self._history(rollout_id).state
        if not state.phase.finished:
            raise Conflict(f"rollout {rollout_id} has not ended; abort it before a retry")
        return await self.start(
            model=state.model,
            candidate=state.candidate,
            strategy=state.strategy,
            supersede=False,
            again=True,
            actor=actor,
            on_behalf_of=on_behalf_of,
            reason=reason or f"retry of {rollout_id}",
        )

    async def command(
        self,
        rollout_id: str,
        make: Callable[[RolloutState, datetime], Move],
        actor: str,
        on_behalf_of: str = "",
    ) -> RolloutState:
        """Let a person's move through: pause, resume, promote or abort.

        Raises:
            RolloutError: there is no such rollout, or its phase does not allow the move.

        """
        self._must_lead()
        async with self._turn:
            self._must_lead()
            history = self._history(rollout_id)
            active = self._active.get(rollout_id)
            state = active.state if active else history.state
            await self._command(history, make(state, self._clock.now()), actor, on_behalf_of)
            return self._history(rollout_id).state

    async def set_holdout(
        self, model: str, share: int, *, actor: str, on_behalf_of: str, reason: str
    ) -> None:
        """Hold out `share` basis points of the users on the present reference; 0 ends it.

        The reference is the version that is stable when the holdout begins.

        Raises:
            RolloutError: the model has no stable version, or an unfinished rollout.

        """
        self._must_lead()
        async with self._turn:
            self._must_lead()
            routing = self._decision_log.routing.get(model)
            if routing is None:
                raise field_refusal(
                    Unknown,
                    "model",
                    f"{model} has no stable version to refer to",
                    "train or register its first",
                )
            if self._decision_log.unfinished_of(model) is not None:
                raise Conflict(
                    f"model {model} has an unfinished rollout, whose users must not move; "
                    "wait for its end or abort it"
                )
            reference = (routing.reference or routing.stable) if share else ""
            await self._recorder.set_holdout(
                routing, share, reference, actor=actor, on_behalf_of=on_behalf_of, reason=reason
            )

    async def retire(self, version: str, *, actor: str, on_behalf_of: str, reason: str) -> None:
        """Take a version out of the engines and of the queue, until somebody starts a rollout of it.

        Raises:
            RolloutError: it is unknown, gets traffic or was rejected.

        """
        self._must_lead()
        async with self._turn:
            self._must_lead()
            known = self._candidates.retirable(version)
            await self._effects.retire(known, actor=actor, on_behalf_of=on_behalf_of, reason=reason)

    def waits_for(self, version: str) -> str:
        """Whom a version's first rollout waits for, and why; empty where it may begin."""
        majority = self._candidates.one_tenants(version)
        return f"an approver, as {majority}" if majority else ""

    def newest(
        self, history: RolloutHistory
    ) -> tuple[RolloutState, JudgeState | None, Verdict | None]:
        """See ActiveRollouts.newest."""
        return self._active.newest(history)

    def _history(self, rollout_id: str) -> RolloutHistory:
        history = self._decision_log.get(rollout_id)
        if history is None:
            raise Unknown(f"rollout {rollout_id}: unknown; GET /v1/rollouts lists them")
        return history

    def _must_lead(self) -> None:
        if not self._leadership.leads:
            leader = self._decision_log.holder or "nobody yet"
            raise NotLeading(f"this replica does not lead; the leader is {leader}; ask there")

    async def _take_over(self) -> None:
        """Make good what a predecessor left undone, and show life for its rollouts."""
        unfinished = list(self._decision_log.unfinished())
        await self._active.lead(unfinished)
        for history in unfinished:
            active = await self._active.take_up(history)
            move = Move(
                DecisionKind.hold,
                active.state.but(updated_at=self._clock.now()),
                active.state.weight,
                f"{self._leadership.holder} took the lead",
            )
            await self._record(active, move, CONTROLLER, {})
        for state in self._decision_log.routing.models():
            self._metrics.know(state.model)
        self._effects.forget()

    async def _start_what_waits(self, verified: dict[str, str]) -> None:
        """The first verified version becomes stable; the next ones begin their rollouts."""
        for model in self._candidates.models():
            routing = self._decision_log.routing.get(model)
            if routing is None:
                if model in verified:
                    await self._recorder.set_stable(model, verified[model])
                continue
            name = self._candidates.waiting(model)
            lacking = self._candidates.unevaluated(name, self._policy.strategy)
            if name and self._policy.auto_start and not lacking:
                await self._begin(
                    model,
                    routing.stable,
                    name,
                    self._policy.strategy,
                    CONTROLLER,
                    "registered and released",
                )

    async def _begin(
        self,
        model: str,
        stable: str,
        candidate: str,
        strategy: Strategy,
        actor: str,
        reason: str,
        on_behalf_of: str = "",
        accepted: Mapping[str, str] = NOTHING,
    ) -> RolloutState:
        now = self._clock.now()
        known = self._registry.get(candidate)
        state = RolloutState(
            rollout_id=f"{candidate[:MAX_ROLLOUT_ID]}-{secrets.token_hex(4)}",
            model=model,
            stable=stable,
            candidate=candidate,
            came_from=known.lifecycle if known else Lifecycle.registered,
            strategy=strategy,
            asked_by=actor,
            started_at=now,
            step_started_at=now,
            updated_at=now,
        )
        move = Move(DecisionKind.start, state, 0, reason or "started")
        await self._record(ActiveRollout.begun(state), move, actor, dict(accepted), on_behalf_of)
        return state

    async def _command(
        self, history: RolloutHistory, move: Move, actor: str, on_behalf_of: str
    ) -> None:
        active = await self._active.take_up(history)
        await self._record(active, move, actor, {}, on_behalf_of)

    async def _look(self, rollout_id: str) -> None:
        """Observe one rollout and do what follows."""
        active = self._active.get(rollout_id)
        if active is None:
            history = self._decision_log.get(rollout_id)
            if history is None:
                return
            active = await self._active.take_up(history)
        raw = await self._observer.look(active.state, active.evidence)
        async with self._turn:
            if self._active.get(rollout_id) is not active or active.state.phase.finished:
                return
            window = await self._active.judge(active, raw)
            seen = self._observer.observation(
                raw, active.state, active.evidence, active.judge, window
            )
            move = steps.look(active.state, seen)
            due = self._clock.monotonic() - active.last_decision_at >= self._policy.hold_interval_s
            if move.urgent or due:
                judged = {**raw.evidence(seen), "judged_step": active.state.step}
                await self._record(active, move, CONTROLLER, judged)
            else:
                active.state = move.state
            if seen.verdict is not None:
                self._metrics.found(active.state, seen.verdict.results)

    async def _record(
        self,
        active: ActiveRollout,
        move: Move,
        actor: str,
        evidence: dict[str, Any],
        on_behalf_of: str = "",
    ) -> None:
        """Record a move; a rollout that ends by it is looked at no more."""
        await self._recorder.record(active, move, actor, evidence, on_behalf_of)
        self._active.recorded(active)
