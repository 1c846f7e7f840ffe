"""Inference errors, with the HTTP status each becomes."""

from __future__ import annotations

from typing import ClassVar


class InferenceError(Exception):
    """A failure that a caller is told about, with the HTTP status it becomes."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"


class EngineUnavailable(InferenceError):
    """The engine did not answer; another try may succeed."""

    status = 503
    code = "engine_unavailable"


class EngineRefused(InferenceError):
    """The engine answered and said no."""

    status = 502
    code = "engine_refused"


class UnknownAdapter(InferenceError):
    """No such version is wanted here."""

    status = 404
    code = "unknown_adapter"


class NotAcceptable(InferenceError):
    """The refusal is none that people may overrule."""

    status = 409
    code = "not_acceptable"


class BodyTooLarge(InferenceError):
    """A request's body is larger than any that this API takes."""

    status = 413
    code = "too_large"


class BodyTooSlow(InferenceError):
    """A request's body did not arrive in time."""

    status = 408
    code = "too_slow"


class PortTaken(InferenceError):
    """Another process listens where the engine should."""


class Stopping(InferenceError):
    """The service is being stopped; the work is left to whoever comes next."""
