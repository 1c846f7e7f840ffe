"""Recorder of decisions: writes each to the log, then shows it and acts on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog

from services.rollout.active_rollouts import ActiveRollout
from services.rollout.decision_log import MAX_HOLDS
from services.rollout.effects import Effects
from services.rollout.evidence import carried
from services.rollout.leadership import Leadership
from services.rollout.metrics import RolloutMetrics
from services.rollout.state import CONTROLLER, Move
from shared.clock import Clock
from shared.contracts.events.rollouts import Decision, DecisionKind, Phase
from shared.registry.routing import RoutingState, RoutingTable

log = structlog.get_logger(__name__)

WHOLE_EVIDENCE_S = 120.0
WHOLE_EVIDENCE_HOLDS = MAX_HOLDS // 2
"""How often a hold carries all evidence, by time and by number; the others only show life."""


class DecisionRecorder:
    """Writes the leader's decisions. It acts on none that may not count."""

    def __init__(
        self,
        leadership: Leadership,
        routing: RoutingTable,
        effects: Effects,
        metrics: RolloutMetrics,
        clock: Clock,
        announce: Callable[[Decision], None],
    ) -> None:
        """`announce` tells others of each decision, and never waits."""
        self._leadership = leadership
        self._routing = routing
        self._effects = effects
        self._metrics = metrics
        self._clock = clock
        self._announce = announce

    async def record(
        self,
        active: ActiveRollout,
        move: Move,
        actor: str,
        evidence: dict[str, Any],
        on_behalf_of: str = "",
    ) -> None:
        """Write a move with its evidence, and bring `active` to it.

        Raises:
            LeadershipLost, LogUnavailable: nothing was acted on; see Leadership.write.

        """
        state = move.state
        now = self._clock.monotonic()
        only_holds = move.kind is DecisionKind.hold and not move.urgent
        whole = (
            not only_holds
            or now - active.last_full_evidence_at >= WHOLE_EVIDENCE_S
            or active.holds_since >= WHOLE_EVIDENCE_HOLDS
        )
        content = {
            **(evidence if whole else {}),
            **carried(active.evidence, whole=whole),
            "state": state.model_dump(mode="json"),
        }

        def decide(token: int, seq: int) -> Decision:
            return Decision(
                token=token,
                seq=seq,
                kind=move.kind,
                model=state.model,
                rollout_id=state.rollout_id,
                stable=state.candidate if state.phase is Phase.healthy else state.stable,
                candidate=state.candidate,
                phase=state.phase,
                step=state.step,
                weight_before=move.weight_before,
                weight=state.weight,
                shadow=state.mirrored,
                outcome=state.outcome,
                actor=actor,
                on_behalf_of=on_behalf_of,
                reason=move.reason[:2000],
                evidence=content,
                **self._holdout(state.model),
                config_sha256=state.strategy.sha256,
                strategy=state.strategy.to_dict() if move.kind is DecisionKind.start else None,
                at=self._clock.now(),
            )

        decision = await self._leadership.write(decide, sign_of_life=only_holds)
        active.state = state
        active.evidence = active.evidence.reported()
        active.last_decision_at = now
        active.last_full_evidence_at = now if whole else active.last_full_evidence_at
        active.holds_since = 0 if whole else active.holds_since + 1
        self._metrics.decided(state.model, state.outcome)
        self._metrics.show(state, rolled_back=move.kind is DecisionKind.rollback)
        if move.kind is not DecisionKind.hold:
            log.info(
                "rollout.decided",
                rollout_id=state.rollout_id,
                kind=move.kind.value,
                phase=state.phase.value,
                weight=state.weight,
                outcome=state.outcome.value if state.outcome else None,
                actor=actor,
                reason=move.reason,
            )
        await self._effects.act(decision)
        self._announce(decision)

    async def set_stable(self, model: str, version: str) -> None:
        """Make a model's first released version stable.

        Raises:
            LeadershipLost, LogUnavailable: nothing was acted on; see Leadership.write.

        """

        def decide(token: int, seq: int) -> Decision:
            return Decision(
                token=token,
                seq=seq,
                kind=DecisionKind.stable_set,
                model=model,
                rollout_id="",
                stable=version,
                phase=Phase.healthy,
                actor=CONTROLLER,
                reason="the first released version that an engine has verified",
                at=self._clock.now(),
            )

        decision = await self._leadership.write(decide)
        self._metrics.decided(model, None)
        await self._effects.act(decision)
        self._announce(decision)

    async def set_holdout(
        self,
        routing: RoutingState,
        share: int,
        reference: str,
        *,
        actor: str,
        on_behalf_of: str,
        reason: str,
    ) -> None:
        """Hold out a share of a model's users, in basis points, on a reference version.

        Raises:
            LeadershipLost, LogUnavailable: nothing was acted on; see Leadership.write.

        """

        def decide(token: int, seq: int) -> Decision:
            return Decision(
                token=token,
                seq=seq,
                kind=DecisionKind.stable_set,
                model=routing.model,
                rollout_id="",
                stable=routing.stable,
                phase=Phase.healthy,
                holdout=share,
                holdout_reference=reference,
                actor=actor,
                on_behalf_of=on_behalf_of,
                reason=reason,
                at=self._clock.now(),
            )

        decision = await self._leadership.write(decide)
        await self._effects.act(decision)
        self._announce(decision)

    def _holdout(self, model: str) -> dict[str, Any]:
        """The present holdout, which every decision of a rollout carries on."""
        state = self._routing.get(model)
        if state is None:
            return {}
        return {"holdout": state.holdout, "holdout_reference": state.reference}
