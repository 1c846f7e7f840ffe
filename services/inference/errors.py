"""Inference errors, with the HTTP status each becomes."""

from __future__ import annotations

from shared.errors import RatchetError


class InferenceError(RatchetError):
    """Base of the inference errors, with the HTTP status of each."""

    title = "Not done"


class EngineUnavailable(InferenceError):
    """The engine did not answer; another try may succeed."""

    status = 503
    code = "engine_unavailable"


class EngineTimedOut(EngineUnavailable):
    """The engine took the request and did not answer in time: no other service should be asked for it."""

    status = 504
    code = "engine_timed_out"


class EngineRefused(InferenceError):
    """The engine refused the request."""

    status = 502
    code = "engine_refused"


class EngineLacks(EngineRefused):
    """The engine has no such path or model."""


class UnknownAdapter(InferenceError):
    """No such version is wanted here."""

    status = 404
    code = "unknown_adapter"


class VersionNotAllowed(InferenceError):
    """The key may ask for models, and name no versions."""

    status = 403
    code = "forbidden"


class NotAcceptable(InferenceError):
    """The refusal cannot be overruled."""

    status = 409
    code = "not_acceptable"


class AcceptanceNotKept(InferenceError):
    """The disk refused an acceptance, which does not hold then."""

    status = 503
    code = "acceptance_not_kept"


class AcceptanceNotOnRecord(InferenceError):
    """The audit log does not have an acceptance, so it does not count."""

    status = 503
    code = "acceptance_not_on_record"


class NoRewardModel(InferenceError):
    """No reward model was published for the model."""

    status = 404
    code = "no_reward_model"


class RewardModelElsewhere(InferenceError):
    """The reward model is of another base than this service has: one that has it scores."""

    status = 404
    code = "reward_model_elsewhere"


class ScorerOverloaded(InferenceError):
    """Too many requests wait for scores."""

    status = 503
    code = "scorer_overloaded"


class ScorerUnavailable(InferenceError):
    """There were no scores: the reward model cannot be used, or took too long."""

    status = 503
    code = "scorer_unavailable"


class PortTaken(InferenceError):
    """Another process listens where the engine should."""


class Stopping(InferenceError):
    """The service is being stopped; another worker takes over the work."""
