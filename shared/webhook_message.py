"""Body of a webhook: one shape for whatever is posted."""

# pyright: strict
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class WebhookMessage:
    """What happened: as a text for a chat, and as data for programs."""

    type: str
    """What happened, as `rollout.rollback`."""
    id: str
    """The same whenever this is posted again; of a signed webhook also its `webhook-id`."""
    at: datetime
    """When it happened, aware."""
    text: str
    """Plain text, which Slack and Mattermost show."""
    data: Mapping[str, Any]

    def body(self) -> dict[str, Any]:
        """The body, ready for JSON."""
        return {
            "type": self.type,
            "id": self.id,
            "timestamp": self.at.isoformat(),
            "text": self.text,
            "data": dict(self.data),
        }
