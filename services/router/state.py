"""What the router knows of rollouts, how fresh that is, and the arm that follows from it.

States come from Redis and from the log; the newer one counts, whichever brought it. A state that
sends traffic to a candidate is fresh by the time of its last decision: a controller writes one at
least every 20 s. Without a fresh one the candidate gets nothing (design invariant 4).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from services.router.assignment import KeyKind, digest, holdout_bucket, on_candidate
from shared.clock import Clock
from shared.contracts.events.interactions import Arm
from shared.contracts.events.versions import Lifecycle, SettingsRecord
from shared.registry.routing import RoutingState, RoutingTable
from shared.registry.versions import Registry

log = structlog.get_logger(__name__)

MAX_KEYS = 200_000
"""Distinct keys remembered per rollout and weight; beyond it counting stops for both arms."""
STALE_LOOK_S = 1.0
REDIS, ROLLOUTS, REGISTRY, KEYS = "redis", "rollouts", "registry", "keys"
"""Where knowledge comes from."""
ROUTE_SOURCES = frozenset((REDIS, ROLLOUTS))
HOLDOUT = "holdout"
"""Arm of held-out users in metrics and headers; events have a field of their own for them."""
SERVED = frozenset((Lifecycle.stable, Lifecycle.canary, Lifecycle.shadow))


@dataclass(frozen=True, slots=True)
class RouteChoice:
    """Where a request goes, and what it falls back to."""

    model: str
    version: str
    arm: str
    rollout: str = ""
    fallback: str = ""
    holdout: str = ""
    """The reference version, for a user who is held out."""


@dataclass(slots=True)
class Route:
    """One model's routing state, ready for requests. `stale_at` is in monotonic seconds."""

    state: RoutingState
    stale_at: float
    outside: RouteChoice
    stable: RouteChoice
    candidate: RouteChoice
    holdout: RouteChoice
    keys: set[int] = field(default_factory=set)


class RouterState:
    """Routes by model, and the versions that may be asked for by name."""

    def __init__(
        self,
        clock: Clock,
        *,
        stale_after_s: float,
        assigned: Callable[[str, str, str], None] = lambda _model, _arm, _rollout: None,
        changed: Callable[[RoutingState], None] = lambda _state: None,
        refused: Callable[[str], bool] = lambda _rollout: False,
        max_keys: int = MAX_KEYS,
        secret: bytes = b"",
    ) -> None:
        """`assigned` hears of each distinct key by model, arm and rollout, `changed` of states.

        `refused` tells whether a rollout's candidate gets nothing here (its circuit breaker).
        `secret` keys the assignment's hash.
        """
        self._clock = clock
        self._stale_after_s = stale_after_s
        self._assigned = assigned
        self._changed = changed
        self._refused = refused
        self._max_keys = max_keys
        self._secret = secret
        self._table = RoutingTable()
        self._routes: dict[str, Route] = {}
        self._registry = Registry()
        self._sources: set[str] = set()

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources that have told all they know, by name."""
        return tuple(sorted(self._sources))

    @property
    def knows_routes(self) -> bool:
        """True once Redis or the log has told all states."""
        return not self._sources.isdisjoint(ROUTE_SOURCES)

    @property
    def knows_versions(self) -> bool:
        """True once a name that is neither model nor version is known not to exist."""
        return self.knows_routes and REGISTRY in self._sources

    @property
    def knows_keys(self) -> bool:
        """True once all API keys were read."""
        return KEYS in self._sources

    def heard(self, source: str) -> None:
        """Take note that a source has told all it knows."""
        self._sources.add(source)

    @property
    def table(self) -> RoutingTable:
        """The newest state per model, shared by all sources."""
        return self._table

    def put(self, state: RoutingState) -> bool:
        """Take a state, if it is newer than what is known; tells whether it changed anything."""
        return self._table.put(state) and self.adopt(state)

    def adopt(self, state: RoutingState) -> bool:
        """Route by a state that the table has just kept; tells whether it changed anything."""
        before = self._routes.get(state.model)
        if before is not None and before.state == state:
            return False
        self._routes[state.model] = self._route(state, before)
        self._changed(state)
        return True

    def use_registry(self, registry: Registry) -> None:
        """Look up versions in this registry from now on."""
        self._registry = registry

    def routes(self) -> tuple[Route, ...]:
        """All routes, by model name."""
        return tuple(self._routes[name] for name in sorted(self._routes))

    def route(self, model: str) -> Route | None:
        """The model's route, or None for an unknown model."""
        return self._routes.get(model)

    def choose(self, route: Route, tenant: str, kind: KeyKind, key: str) -> RouteChoice:
        """The arm of a request. Deterministic in the state and the key, but for staleness."""
        state = route.state
        if (
            state.holdout
            and kind is not KeyKind.trace
            and on_candidate(holdout_bucket(state.model, tenant, kind, key), state.holdout)
        ):
            return route.holdout
        if not (state.rollout and state.candidate):
            return route.outside
        if state.weight and self._clock.monotonic() > route.stale_at:
            return route.outside
        place = digest(state.rollout, tenant, kind, key, secret=self._secret)
        choice = route.candidate if on_candidate(place, state.weight) else route.stable
        if kind is KeyKind.trace:
            self._assigned(state.model, choice.arm, state.rollout)
        elif place not in route.keys and len(route.keys) < self._max_keys:
            route.keys.add(place)
            self._assigned(state.model, choice.arm, state.rollout)
        if choice is route.candidate and self._refused(state.rollout):
            return route.outside
        return choice

    def rejected(self, version: str) -> bool:
        """Whether a version was taken back, so that no engine serves it."""
        found = self._registry.get(version)
        return found is not None and found.lifecycle is Lifecycle.rejected

    def settings(self, version: str) -> SettingsRecord | None:
        """The settings that a version serves; None for an adapter alone."""
        return self._registry.settings(version)

    def explicit(self, version: str) -> RouteChoice | None:
        """A version asked for by name: no arm, no rollout, no fallback. None if unknown."""
        found = self._registry.get(version)
        if found is not None:
            return RouteChoice(model=found.record.model, version=version, arm="")
        for route in self._routes.values():
            if version in (route.state.stable, route.state.candidate):
                return RouteChoice(model=route.state.model, version=version, arm="")
        return None

    def writer_of(self, name: str) -> RouteChoice:
        """The version that a name asks for: it, or a model's stable one; no version of an unknown model."""
        if (found := self.explicit(name)) is not None:
            return found
        route = self._routes.get(name)
        version = "" if route is None else route.state.stable
        return RouteChoice(model=name, version=version, arm="")

    def catalogue(self) -> list[tuple[str, int, bool]]:
        """Name, creation time in Unix seconds, and whether it is a version, of all on offer."""
        rows = [
            (route.state.model, int(route.state.at.timestamp()), False) for route in self.routes()
        ]
        rows += [
            (version.record.version, int(version.record.created_at.timestamp()), True)
            for version in self._registry.versions()
            if version.lifecycle in SERVED
        ]
        return rows

    def age_s(self) -> float:
        """Age of the oldest state that sends traffic to a candidate; 0 where none does."""
        now = self._clock.monotonic()
        ages = [
            now - (route.stale_at - self._stale_after_s)
            for route in self._routes.values()
            if route.state.weight
        ]
        return max(ages, default=0.0)

    def stale(self) -> tuple[str, ...]:
        """Models whose candidate gets nothing because their state is too old."""
        now = self._clock.monotonic()
        return tuple(
            route.state.model
            for route in self.routes()
            if route.state.weight and now > route.stale_at
        )

    async def run(self) -> None:
        """Log when a model's state gets too old and when it is fresh again, until cancelled."""
        known: tuple[str, ...] = ()
        while True:
            await self._clock.sleep(STALE_LOOK_S)
            stale = self.stale()
            for model in set(stale) - set(known):
                log.warning("routing.stale", model=model, age_s=round(self.age_s(), 1))
            for model in set(known) - set(stale):
                log.info("routing.fresh", model=model)
            known = stale

    def _route(self, state: RoutingState, before: Route | None) -> Route:
        # An age below 0 is a controller's clock that runs ahead: its state is fresh as of now.
        age_s = max(0.0, (self._clock.now() - state.at).total_seconds())
        model, rollout = state.model, state.rollout
        route = Route(
            state=state,
            stale_at=self._clock.monotonic() + self._stale_after_s - age_s,
            outside=RouteChoice(model=model, version=state.stable, arm=""),
            stable=RouteChoice(
                model=model, version=state.stable, arm=Arm.stable.value, rollout=rollout
            ),
            candidate=RouteChoice(
                model=model,
                version=state.candidate,
                arm=Arm.candidate.value,
                rollout=rollout,
                fallback=state.stable,
            ),
            holdout=RouteChoice(
                model=model,
                version=state.reference,
                arm=HOLDOUT,
                fallback=state.stable if state.stable != state.reference else "",
                holdout=state.reference,
            ),
        )
        if before is not None and (before.state.rollout, before.state.weight) == (
            rollout,
            state.weight,
        ):
            route.keys = before.keys
        return route
