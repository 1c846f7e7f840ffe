"""Errors of the rollout service, with the HTTP status and code of each."""

from __future__ import annotations

from shared.errors import RatchetError


class RolloutError(RatchetError):
    """Base of the errors that reach a caller: what was wrong, and what to do."""

    title = "Not done"


class BadStrategy(RolloutError):
    """The strategy is invalid."""

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


class AuditUnavailable(RolloutError):
    """The log could not be read to its end."""

    status = 503
    code = "audit_unavailable"
    retry_after_s = 5


class ActionUnavailable(RolloutError):
    """An operator's action was not acknowledged; the brokers may have it, or get it yet."""

    status = 503
    code = "log_unavailable"


class KeyRefused(RolloutError):
    """The console may not hand out this key's secret."""

    status = 403
    code = "forbidden"


class NotAnApprover(RolloutError):
    """Accepting a version's data is an approver's."""

    status = 403
    code = "forbidden"


class EvaluationUnavailable(RolloutError):
    """An evaluation cannot begin now."""

    status = 503
    code = "evaluation_unavailable"
    retry_after_s = 30


class NotLeading(RolloutError):
    """Raised where this replica does not lead. Nothing was done, so a retry is safe."""

    status = 503
    code = "not_leading"
    retry_after_s = 2


class Unsure(RolloutError):
    """Leadership was lost during a decision: whether it counts is known from the log only."""

    status = 503
    code = "outcome_unknown"


class DecisionNotAcknowledged(Unsure):
    """A decision was not acknowledged; the brokers may have it, or get it yet."""

    code = "log_unavailable"


class EvidenceUnavailable(Exception):
    """Prometheus gave no usable answer."""


class LeadershipLost(Exception):
    """Another controller took the lead. `sent`: not before a decision went to the log."""

    def __init__(self, *, sent: bool) -> None:
        super().__init__("another controller leads")
        self.sent = sent
