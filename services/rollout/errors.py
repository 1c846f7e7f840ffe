"""The service's errors, mapped to HTTP in one place."""

from __future__ import annotations

from shared.errors import FieldError, RatchetError


class RolloutError(RatchetError):
    """Something the caller is told: what was wrong, and what to do."""

    title = "Not done"

    def __init__(self, detail: str, *, field: str | None = None) -> None:
        super().__init__(detail, [FieldError(field, detail)] if field else [])


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
    """Another replica decides, or nobody yet. Nothing was done, so asking again is safe."""

    status = 503
    code = "not_leading"
    retry_after_s = 2


class Unsure(RolloutError):
    """The lead was lost over a decision: whether it counts is for the log to say."""

    status = 503
    code = "outcome_unknown"


class DecisionNotAcknowledged(Unsure):
    """A decision was not acknowledged; the brokers may have it, or get it yet."""

    code = "log_unavailable"


class EvidenceUnavailable(Exception):
    """Prometheus gave no answer that evidence can be made of."""


class LeadershipLost(Exception):
    """Another controller took the lead. `sent`: not before a decision went to the log."""

    def __init__(self, *, sent: bool) -> None:
        super().__init__("another controller leads")
        self.sent = sent
