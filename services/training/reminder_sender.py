"""Reminder sender: of all replicas one posts a reminder, and no restart posts it again.

A replica writes to `reminders.v1` that it is about to send. Whose record is the first of its kind in
a period sends; who is killed between the two leaves the reminder out until the next period.
"""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta
from typing import NamedTuple

import structlog

from services.training.reminders import CollectionStatus, Reminder, due, is_apart
from shared.clock import Clock
from shared.contracts.events.reminders import ReminderClaimed, ReminderKind
from shared.contracts.topics import REMINDERS
from shared.http.webhooks import Webhooks
from shared.kafka.envelope import decode, models_by_type
from shared.kafka.log import EventLog, LogUnavailable, Record
from shared.observability.events import Unavailable
from shared.registry.follow import Follower
from shared.webhook_message import WebhookMessage

log = structlog.get_logger(__name__)

MODELS = models_by_type(ReminderClaimed)
CATCH_UP_S = 30.0
CLAIM_OPEN = timedelta(minutes=1)
"""How long a claim may take to be read back before another is made in its place."""


class _OpenClaim(NamedTuple):
    """A claim of this replica that was not read back yet."""

    claim: ReminderClaimed
    message: WebhookMessage


class ReminderSender(Follower):
    """Claims what is due, and posts what the log says this replica claimed first."""

    def __init__(self, event_log: EventLog, webhooks: Webhooks, clock: Clock) -> None:
        self._event_log = event_log
        self._webhooks = webhooks
        self._clock = clock
        self._last: dict[tuple[str, ReminderKind], ReminderClaimed] = {}
        self._open: dict[ReminderKind, _OpenClaim] = {}
        self._status: CollectionStatus | None = None
        self._noted = asyncio.Event()
        super().__init__(event_log, (REMINDERS,), self._fold)

    def note(self, status: CollectionStatus) -> None:
        """Take in where the plan stands now; `run` sends what is due."""
        self._status = status
        self._noted.set()

    async def run(self) -> None:
        """Follow the topic, and claim what is due whenever something was noted, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(super().run())
            group.create_task(self._remind())

    async def _remind(self) -> None:
        while True:
            await self._noted.wait()
            self._noted.clear()
            try:
                await self.caught_up(CATCH_UP_S)
                await self._claim()
            except LogUnavailable as error:
                log.warning(Unavailable.kafka, during="reminder", error=str(error))

    async def _claim(self) -> None:
        status, now = self._status, self._clock.now()
        assert status is not None
        last = {kind: one for (model, kind), one in self._last.items() if model == status.model}
        for reminder in due(status, last, now):
            waiting = self._open.get(reminder.kind)
            if waiting is None or now - waiting.claim.at >= CLAIM_OPEN:
                await self._publish(reminder)

    async def _publish(self, reminder: Reminder) -> None:
        claim = ReminderClaimed(
            reminder_id=str(uuid.uuid4()),
            model=reminder.status.model,
            kind=reminder.kind,
            figures=dict(reminder.figures),
            at=self._clock.now(),
        )
        self._open[claim.kind] = _OpenClaim(claim, reminder.message(claim.reminder_id, claim.at))
        await self._event_log.publish(
            REMINDERS,
            key=f"{claim.model}/{claim.kind.value}",
            event=claim,
            event_id=claim.reminder_id,
        )

    def _fold(self, record: Record) -> None:
        claim = decode(record.headers, record.value, MODELS)
        assert isinstance(claim, ReminderClaimed)
        opened = self._open.get(claim.kind)
        own = opened is not None and opened.claim.reminder_id == claim.reminder_id
        if own:
            del self._open[claim.kind]
        place = (claim.model, claim.kind)
        if not is_apart(claim.at, self._last.get(place)):
            return  # another replica's was first
        self._last[place] = claim
        if opened is not None and own:
            log.info("reminder.sends", kind=claim.kind.value, reminder_id=claim.reminder_id)
            self._webhooks.post(opened.message)
