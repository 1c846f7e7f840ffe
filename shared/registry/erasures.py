"""Erasure requests: a person is named on the log by hashes, never by the user id."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import datetime

from shared.contracts.events.erasures import ErasureRequested
from shared.contracts.subject import subject_of
from shared.contracts.topics import ERASURES
from shared.kafka.audit import Requester
from shared.kafka.log import EventLog

Pseudonym = Callable[[str, str], str]
"""Gives the id under which a tenant's user is stored today."""


def subjects_of(tenant: str, user_id: str, pseudonym: Pseudonym) -> tuple[str, ...]:
    """The person's hashes: of today's stored id, and of the id as it was sent."""
    names = dict.fromkeys((pseudonym(tenant, user_id), user_id))
    return tuple(subject_of(tenant, name) for name in names)


async def request_erasure(
    log: EventLog, tenant: str, subjects: tuple[str, ...], who: Requester, *, now: datetime
) -> ErasureRequested:
    """Ask the feedback service to erase a person.

    Raises:
        LogUnavailable: the brokers did not acknowledge it.

    """
    event = ErasureRequested(
        erasure_id=str(uuid.uuid4()),
        tenant=tenant,
        subjects=subjects,
        requested_at=now,
        **who._asdict(),
    )
    await log.publish(ERASURES, key=event.subjects[0], event=event, event_id=event.erasure_id)
    return event
