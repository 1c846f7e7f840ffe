"""Health checks of the router: losing Redis, Kafka or the controller does not make it unready."""

from __future__ import annotations

from services.router.settings import RouterSettings
from services.router.spool import Spool
from services.router.state import RouterState
from shared.clock import Clock
from shared.observability.health import Health

WHOLE_WITHIN_S = 5.0
"""How long a starting router waits for all its sources before one of them has to do."""
SPOOL_WARNING = 0.5
"""Share of the spool's limit from where it is said."""


def add_checks(
    health: Health, state: RouterState, spool: Spool, settings: RouterSettings, clock: Clock
) -> None:
    """Add the router's checks and notes. Call it at the start: it takes the time."""
    started = clock.monotonic()

    def routes() -> str | None:
        waited_enough = clock.monotonic() - started > WHOLE_WITHIN_S
        if state.knows_versions or (state.knows_routes and waited_enough):
            return None
        if state.knows_routes:
            return f"versions.v1 is being read; serving without it after {WHOLE_WITHIN_S:g} s"
        return (
            "no routing state yet: neither Redis nor the rollouts topic has told one; check "
            "RATCHET_REDIS_URL and RATCHET_KAFKA_BOOTSTRAP"
        )

    def keys() -> str | None:
        if settings.profile == "local" or state.knows_keys:
            return None
        return "the API keys were not read yet; check RATCHET_KAFKA_BOOTSTRAP"

    def fresh() -> str | None:
        stale = state.stale()
        if not stale:
            return None
        return (
            f"no decision for {state.age_s():.0f} s, everyone goes to stable: {', '.join(stale)}; "
            "check the rollout controller"
        )

    def spooled() -> str | None:
        if spool.trouble:
            return f"events wait in memory, the disk refuses them ({spool.trouble}); free some room"
        if spool.bytes < SPOOL_WARNING * settings.spool_limit_bytes:
            return None
        return f"{spool.bytes} of {settings.spool_limit_bytes} bytes wait for Kafka"

    health.ready("routes", routes)
    health.ready("keys", keys)
    health.note("fresh", fresh)
    health.note("spool", spooled)
