"""Session lease: fencing by the consumer group's session, so that no late write meets a successor's.

The group coordinator gives a worker's partitions away once it heard no heartbeat for a whole session.
aiokafka only logs that heartbeats fail: cut off from the coordinator alone, a worker would go on
fetching and producing beside its successor.
"""

# pyright: basic, reportMissingTypeStubs=false
# aiokafka has no types.
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiokafka.errors import NoError, RebalanceInProgressError
from aiokafka.protocol.group import HeartbeatRequest, SyncGroupRequest

from services.aggregator.stall_guard import uptime_s


class SessionLease:
    """Lasts half a session from the sending of the last heartbeat that the coordinator confirmed.

    The other half is the time that a request may take to reach the log. While it has lapsed, the
    writer holds its requests back: a confirmed heartbeat of the same generation proves that nobody else owned the
    partitions meanwhile. Without partitions there is nothing to lose: not `armed`.
    """

    def __init__(self, session_timeout_s: float, *, now: Callable[[], float] = uptime_s) -> None:
        self._session_timeout_s = session_timeout_s
        self._now = now
        self._confirmed_s = float("-inf")
        self._rebalancing_s: float | None = None
        self._coordinator: Any = None
        self.armed = False

    def watch(self, coordinator: Any) -> None:
        """Take the answers to this coordinator's heartbeats from now on."""
        if coordinator is self._coordinator:
            return
        self._coordinator = coordinator
        send = coordinator._send_req

        async def watched(request: Any) -> Any:
            sent_s = self._now()
            response = await send(request)
            if isinstance(request, HeartbeatRequest | SyncGroupRequest):
                self.answered(response.error_code, sent_s)
            return response

        coordinator._send_req = watched

    def answered(self, error_code: int, sent_s: float) -> None:
        """The coordinator answered a heartbeat (or SyncGroup) that was sent at `sent_s`.

        During a rebalance it keeps a member for the rebalance timeout, so such answers count for
        one session, the time that handing over may take.
        """
        if error_code == NoError.errno:
            self._rebalancing_s = None
        elif error_code == RebalanceInProgressError.errno:
            if self._rebalancing_s is None:
                self._rebalancing_s = sent_s
            if sent_s - self._rebalancing_s > self._session_timeout_s:
                return
        else:
            return
        self._confirmed_s = max(self._confirmed_s, sent_s)

    def valid(self) -> bool:
        """Whether a write that is sent now comes before any successor's."""
        return not self.armed or self._now() - self._confirmed_s <= self._session_timeout_s / 2
