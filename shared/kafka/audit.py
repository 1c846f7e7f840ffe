"""Audit: who asks for an action, and its event on the audit topic."""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import NamedTuple

from shared.contracts.events.audit import ActionAudited
from shared.contracts.topics import AUDIT
from shared.kafka.log import EventLog

NO_TENANT = "default"
"""Tenant of an action that concerns none alone."""


class Requester(NamedTuple):
    """Who asks for an action: the principal, which nobody chooses, for whom, and why."""

    actor: str
    on_behalf_of: str = ""
    reason: str = ""


async def audit_action(
    log: EventLog,
    action: str,
    subject: str,
    who: Requester,
    *,
    at: datetime,
    tenant: str = NO_TENANT,
) -> None:
    """Record an action that is on no other topic.

    Raises:
        LogUnavailable: the brokers did not acknowledge it.

    """
    event = ActionAudited(
        action=action,
        subject=subject,
        tenant=tenant,
        actor=who.actor,
        on_behalf_of=who.on_behalf_of,
        reason=who.reason,
        at=at,
    )
    await log.publish(AUDIT, key=subject, event=event, event_id=secrets.token_hex(16))
