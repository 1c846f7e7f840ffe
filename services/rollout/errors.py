"""The service's errors, mapped to HTTP in one place."""

from __future__ import annotations

from typing import ClassVar


class RolloutError(Exception):
    """Something the caller can be told: what was wrong, and what to do."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class BadStrategy(RolloutError):
    """A strategy that says something impossible."""

    status = 422
    code = "bad_strategy"


class NotAllowed(RolloutError):
    """The candidate may not get traffic."""

    status = 422
    code = "not_allowed"


class Unknown(RolloutError):
    """There is no such rollout, model or version."""

    status = 404
    code = "not_found"


class Conflict(RolloutError):
    """The rollout's phase does not allow it."""

    status = 409
    code = "conflict"


class NotLeading(RolloutError):
    """Another replica decides, or nobody yet."""

    status = 503
    code = "not_leading"


class LogAway(RolloutError):
    """A decision could not be written, so nothing was done."""

    status = 503
    code = "log_unavailable"


class EvidenceUnavailable(Exception):
    """Prometheus gave no answer that evidence can be made of."""


class LeadershipLost(Exception):
    """Another controller took the lead; what we were about to do is not done."""
