"""Readiness that depends on topics: freshness checks, and catching up before the work starts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

import structlog

from shared.kafka.log import LogUnavailable
from shared.observability.events import Unavailable

log = structlog.get_logger(__name__)

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
