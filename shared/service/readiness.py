"""Readiness that depends on topics: freshness checks, and catching up before the work starts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

import structlog

from shared.clock import Clock
from shared.contracts.topics import USER_KEYS
from shared.kafka.log import LogUnavailable
from shared.kafka.user_keys import UserKeys
from shared.observability.events import Unavailable
from shared.observability.health import Health

log = structlog.get_logger(__name__)

KEYS_WITHIN_S = 60.0
"""How long a starting service waits for the keys of people's texts before it is ready without."""
STALE_AFTER_S = 15.0
"""Not ready once a topic was not read to its end for so long: Kafka is unavailable."""


class CatchesUp(Protocol):
    """A follower of a topic."""

    async def caught_up(self, timeout_s: float) -> None:
        """Return once all that was on the topic is folded in.

        Raises:
            LogUnavailable: not within `timeout_s` seconds.

        """
        ...


def freshness(
    age_s: Callable[[], float], stale_after_s: float = STALE_AFTER_S
) -> Callable[[], str | None]:
    """A readiness check: the topic was read to its end at most `stale_after_s` seconds ago."""

    def check() -> str | None:
        age = age_s()
        if age <= stale_after_s:
            return None
        return f"not read to the end for {age:.0f} s; is Kafka up?"

    return check


def follow_user_keys(
    keys: UserKeys | None, health: Health, clock: Clock, *, within_s: float = KEYS_WITHIN_S
) -> None:
    """Begin to follow the keys of people's texts, and add what readiness says of that.

    Whoever writes texts needs all keys, so the service is not ready before they were read to their
    end once; after `within_s` seconds it is ready nonetheless, and says so until they were. Writers
    of texts then wait for the keys, each within its own deadline. None: texts are not encrypted.
    """
    if keys is None:
        return
    keys.follow()
    deadline = clock.monotonic() + within_s
    followed = late = False

    def unread() -> str | None:
        nonlocal followed, late
        followed = followed or not keys.unread()
        if followed:
            return None
        said = (
            f"{USER_KEYS} is not read to its end: {keys.unread()}; texts wait for it to be written"
        )
        if not late and clock.monotonic() > deadline:
            late = True
            log.warning("user_keys.late", after_s=within_s, reason=keys.unread())
        return said

    def check() -> str | None:
        said = unread()
        return None if late else said

    health.ready("user_keys", check)
    health.note("user_keys", unread)


async def catch_up(
    followers: Iterable[CatchesUp],
    stop: asyncio.Event,
    *,
    timeout_s: float,
    waiting: Callable[[], object] = lambda: None,
) -> bool:
    """Wait until every follower has read its topic to the end; False where `stop` came first.

    `waiting` is called after each try of `timeout_s` seconds that failed: a sign of life.
    """
    left = list(followers)
    while left and not stop.is_set():
        try:
            await left[0].caught_up(timeout_s)
        except LogUnavailable as error:
            log.warning(Unavailable.kafka, during="catch_up", error=str(error))
            waiting()
        else:
            left.pop(0)
    return not left
