"""Side effects of a decision: routing states for the routers, lifecycle states of the versions."""

from __future__ import annotations

import structlog
from redis.exceptions import RedisError

from services.rollout import lifecycles
from services.rollout.decision_log import DecisionLog
from services.rollout.leadership import Leadership
from shared.clock import Clock
from shared.contracts.events.rollouts import Decision, DecisionKind
from shared.contracts.events.versions import Lifecycle, VersionState, state_key
from shared.contracts.topics import VERSIONS
from shared.kafka.log import LogUnavailable
from shared.observability.events import Unavailable
from shared.registry.routing import RoutingState
from shared.registry.versions import Registry, Version
from shared.registry.view import RoutingView

log = structlog.get_logger(__name__)

VIEW_REFRESH_S = 15.0
"""How often the routing states are put to Redis again, in case it was flushed."""


class Effects:
    """Idempotent effects of written decisions, repeated until they hold."""

    def __init__(
        self,
        leadership: Leadership,
        decision_log: DecisionLog,
        registry: Registry,
        view: RoutingView,
        clock: Clock,
    ) -> None:
        self._leadership = leadership
        self._decision_log = decision_log
        self._registry = registry
        self._view = view
        self._clock = clock
        self._view_at = float("-inf")

    async def act(self, decision: Decision) -> None:
        """Publish routing states and write lifecycle states. A later round repeats what fails."""
        await self._put(RoutingState.of(decision))
        if decision.kind is DecisionKind.hold:
            return
        try:
            await self.uphold(decision.model)
        except LogUnavailable as error:
            log.warning(
                Unavailable.kafka, during="version_states", model=decision.model, error=str(error)
            )

    async def uphold(self, model: str = "") -> None:
        """Write version states that differ from what was decided; of all models where none is named.

        Raises:
            LogUnavailable: they could not be written.

        """
        models = [model] if model else [one.model for one in self._decision_log.routing.models()]
        for name in models:
            for change in lifecycles.changes(self._decision_log, self._registry, name):
                state = VersionState(
                    version=change.version,
                    model=change.model,
                    state=change.state,
                    rollout=change.rollout,
                    reason=change.reason,
                    holdout=change.holdout,
                    gain=change.gain,
                    token=self._decision_log.token,
                    at=self._clock.now(),
                )
                await self._append(
                    state, f"{state.token}:{change.version}:{change.state}:{change.holdout:d}"
                )

    async def retire(self, version: Version, *, actor: str, on_behalf_of: str, reason: str) -> None:
        """Write a person's word that a version is retired.

        Raises:
            LogUnavailable: it was not acknowledged.

        """
        before, now = version.state, self._clock.now()
        state = VersionState(
            version=version.record.version,
            model=version.record.model,
            state=Lifecycle.retired,
            rollout=before.rollout if before else "",
            reason=reason,
            gain=before.gain if before else None,
            actor=actor,
            on_behalf_of=on_behalf_of,
            token=self._decision_log.token,
            at=now,
        )
        await self._append(state, f"{state.token}:{state.version}:retired:{now.isoformat()}")

    async def refresh(self) -> None:
        """Put every routing state to Redis again when it is time to."""
        now = self._clock.monotonic()
        if now - self._view_at < VIEW_REFRESH_S:
            return
        self._view_at = now
        for state in self._decision_log.routing.models():
            await self._put(state)

    async def _append(self, state: VersionState, event_id: str) -> None:
        key = state_key(state.version)
        await self._leadership.append(VERSIONS, key, state, event_id)
        # The follower brings it again; until then it must not be written twice.
        self._registry.apply(key, state.to_json())
        log.info("version.moved", version=state.version, state=state.state.value, actor=state.actor)

    def forget(self) -> None:
        """Have the next `refresh` put everything, whenever the last one was."""
        self._view_at = float("-inf")

    async def _put(self, state: RoutingState) -> None:
        try:
            if not await self._view.put(state):
                log.warning("view.refused", model=state.model, token=state.token)
        except RedisError as error:
            # The routers read the topic too.
            log.warning(
                Unavailable.redis, during="routing_view", model=state.model, error=str(error)
            )
