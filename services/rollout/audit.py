"""Audit: the whole record of one rollout, read from the log on demand.

The decision log in memory keeps the newest decisions; the topic keeps all.
"""

from __future__ import annotations

from services.rollout.decision_log import MODELS, LoggedDecision
from services.rollout.errors import AuditUnavailable, Unknown
from shared.contracts.events.rollouts import Decision, LeaderElected
from shared.contracts.topics import ROLLOUTS
from shared.kafka.envelope import UnreadableRecord, decode
from shared.kafka.log import EventLog, LogUnavailable, read_to_end

READ_S = 30.0


class AuditLog:
    """Reads decisions from the topic; what a fenced leader wrote is left out."""

    def __init__(self, event_log: EventLog) -> None:
        self._log = event_log

    async def decisions(self, rollout_id: str) -> list[LoggedDecision]:
        """Every valid decision of a rollout, oldest first.

        Raises:
            Unknown: there is none.
            AuditUnavailable: the topic was not read to its end in READ_S seconds.

        """
        try:
            records = await read_to_end(self._log, ROLLOUTS, timeout_s=READ_S)
        except LogUnavailable as error:
            raise AuditUnavailable(f"the decisions could not be read: {error}; try again") from None
        token, found = -1, list[LoggedDecision]()
        for record in records:
            try:
                event = decode(record.headers, record.value, MODELS)
            except (ValueError, UnreadableRecord):
                continue
            if isinstance(event, LeaderElected):
                token = record.offset
            elif isinstance(event, Decision) and token <= event.token:
                found.append(LoggedDecision(record.offset, event))
        found = [one for one in found if one.decision.rollout_id == rollout_id]
        if not found:
            raise Unknown(f"rollout {rollout_id}: unknown; GET /v1/rollouts lists them")
        return found
