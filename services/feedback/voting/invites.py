"""Invites: signed, expiring tokens that sign a rater in to the voting page."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, NamedTuple

from itsdangerous import BadSignature, URLSafeSerializer

from services.feedback.errors import FeedbackError, Reason

SALT = "ratchet.voting.invite"
"""Keeps invites apart from other tokens under the same secret."""
MAX_TOKEN = 2_000


class Rater(NamedTuple):
    """Who votes, and for which tenant."""

    tenant: str
    user_id: str


class InviteRefused(FeedbackError):
    """The invite is no invite of this service, or is over."""

    status = 403
    code = Reason.forbidden
    title = "Invite refused"


class Invites:
    """Issues and reads invites; whoever changes the secret ends all of them."""

    def __init__(self, secret: str) -> None:
        self._serializer = URLSafeSerializer(secret, salt=SALT)

    def issue(self, rater: Rater, *, expires_at: datetime) -> str:
        """The token of an invite."""
        return str(self._serializer.dumps([*rater, int(expires_at.timestamp())]))

    def read(self, token: str, *, now: datetime) -> Rater:
        """Whom a token invites.

        Raises:
            InviteRefused: it was not issued here, was changed, or is over.

        """
        try:
            content: Any = self._serializer.loads(token[:MAX_TOKEN])
            tenant, user_id, expires = content
            expires_at = datetime.fromtimestamp(expires, UTC)
        except (BadSignature, TypeError, ValueError):
            raise InviteRefused(
                "this invite link is not complete or was not issued here; ask for a new one"
            ) from None
        if now >= expires_at:
            raise InviteRefused(
                f"this invite link ended on {expires_at:%d %B %Y at %H:%M} UTC; ask for a new one"
            )
        return Rater(tenant, user_id)
