"""Audit: the whole record of one rollout, streamed from the log on demand.

The decision log in memory keeps the newest decisions; the topics keep all, signs of life a month.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing

from services.rollout.decision_log import MODELS, age
from services.rollout.errors import AuditUnavailable, Unknown
from shared.contracts.events.rollouts import Decision, LeaderElected
from shared.contracts.topics import ROLLOUT_HOLDS, ROLLOUTS
from shared.kafka.envelope import UnreadableRecord, decode, header
from shared.kafka.log import EventLog, LogUnavailable, Record, read_to_end, records_to_end
from shared.registry.routing import RoutingTable

READ_S = 30.0
READ_HOLDS_S = 600.0
"""How long the reading of a month of signs of life may take, with what the reader does meanwhile."""
BATCH = 100
AUDITS_AT_A_TIME = 2


class AuditLog:
    """Reads decisions from the topics; what a fenced leader wrote, or one never elected, is left out."""

    def __init__(self, event_log: EventLog) -> None:
        self._log = event_log
        self._turn = asyncio.Semaphore(AUDITS_AT_A_TIME)

    async def batches(self, rollout_id: str) -> AsyncGenerator[list[Decision]]:
        """Every valid decision of a rollout, oldest first, a few at a time.

        Raises:
            Unknown: there is none.
            AuditUnavailable: the topics were not read to their end in time, or others are read.

        """
        try:
            await asyncio.wait_for(self._turn.acquire(), READ_S)
        except TimeoutError:
            raise AuditUnavailable(
                f"{AUDITS_AT_A_TIME} rollouts are read just now; try again"
            ) from None
        batch: list[Decision] = []
        try:
            async with aclosing(self._decisions(rollout_id)) as decisions:
                async for decision in decisions:
                    batch.append(decision)
                    if len(batch) == BATCH:
                        yield batch
                        batch = []
            if batch:
                yield batch
        except LogUnavailable as error:
            raise AuditUnavailable(f"the decisions could not be read: {error}; try again") from None
        finally:
            self._turn.release()

    async def _decisions(self, rollout_id: str) -> AsyncGenerator[Decision]:
        moves, tokens = await self._moves(rollout_id)
        if not moves:
            raise Unknown(f"rollout {rollout_id}: unknown; GET /v1/rollouts lists them")
        newest = moves[0].order
        # They have one key, so they are in one partition and in their order, but for those that a
        # leader wrote after it was fenced.
        async for record in records_to_end(
            self._log,
            ROLLOUT_HOLDS,
            timeout_s=READ_HOLDS_S,
            keep=lambda record: record.key == rollout_id,
        ):
            hold = _event(record)
            if not isinstance(hold, Decision) or (tokens and hold.token not in tokens):
                continue
            while moves and moves[0].order < hold.order:
                newest = moves[0].order
                yield moves.popleft()
            if hold.order > newest:
                newest = hold.order
                yield hold
        for move in moves:
            yield move

    async def _moves(self, rollout_id: str) -> tuple[deque[Decision], set[int]]:
        """What changed a rollout, oldest first, and the tokens that elections gave."""
        elections, tokens, found = RoutingTable(), set[int](), list[Decision]()
        for record in await read_to_end(
            self._log,
            ROLLOUTS,
            timeout_s=READ_S,
            keep=lambda record: record.key == rollout_id or _elects(record),
        ):
            event = _event(record)
            if isinstance(event, LeaderElected):
                elections.elect(record.offset)
                tokens.add(record.offset)
            elif event is not None and elections.believes(event.token):
                found.append(event)
        return deque(sorted(found, key=age)), tokens


def _elects(record: Record) -> bool:
    return header(record.headers, "ce_type") == LeaderElected.ce_type


def _event(record: Record) -> Decision | LeaderElected | None:
    try:
        event = decode(record.headers, record.value, MODELS)
    except (ValueError, UnreadableRecord):
        return None
    assert isinstance(event, Decision | LeaderElected)
    return event
