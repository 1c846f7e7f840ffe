"""Audit: the whole record of one rollout, read from the log on demand.

The decision log in memory keeps the newest decisions; the topics keep all, signs of life a month.
"""

from __future__ import annotations

from services.rollout.decision_log import MODELS, age
from services.rollout.errors import AuditUnavailable, Unknown
from shared.contracts.events.rollouts import Decision, LeaderElected
from shared.contracts.topics import ROLLOUT_HOLDS, ROLLOUTS
from shared.kafka.envelope import UnreadableRecord, decode, header
from shared.kafka.log import EventLog, LogUnavailable, Record, read_to_end
from shared.registry.routing import RoutingTable

READ_S = 30.0


class AuditLog:
    """Reads decisions from the topics; what a fenced leader wrote, or one never elected, is left out."""

    def __init__(self, event_log: EventLog) -> None:
        self._log = event_log

    async def decisions(self, rollout_id: str) -> list[Decision]:
        """Every valid decision of a rollout, oldest first.

        Raises:
            Unknown: there is none.
            AuditUnavailable: the topics were not read to its end in READ_S seconds.

        """
        try:
            moves = await read_to_end(
                self._log,
                ROLLOUTS,
                timeout_s=READ_S,
                keep=lambda record: record.key == rollout_id or _elects(record),
            )
            holds = await read_to_end(
                self._log,
                ROLLOUT_HOLDS,
                timeout_s=READ_S,
                keep=lambda record: record.key == rollout_id,
            )
        except LogUnavailable as error:
            raise AuditUnavailable(f"the decisions could not be read: {error}; try again") from None
        elections, tokens, found = RoutingTable(), set[int](), list[Decision]()
        for record in moves:
            event = _event(record)
            if isinstance(event, LeaderElected):
                elections.elect(record.offset)
                tokens.add(record.offset)
            elif event is not None and elections.believes(event.token):
                found.append(event)
        # In another topic, so beside no election: it must have the token of one.
        for record in holds:
            event = _event(record)
            if isinstance(event, Decision) and (not tokens or event.token in tokens):
                found.append(event)
        if not found:
            raise Unknown(f"rollout {rollout_id}: unknown; GET /v1/rollouts lists them")
        return sorted(found, key=age)


def _elects(record: Record) -> bool:
    return header(record.headers, "ce_type") == LeaderElected.ce_type


def _event(record: Record) -> Decision | LeaderElected | None:
    try:
        event = decode(record.headers, record.value, MODELS)
    except (ValueError, UnreadableRecord):
        return None
    assert isinstance(event, Decision | LeaderElected)
    return event
