"""Inference errors, with the HTTP status each becomes."""

from __future__ import annotations

from shared.errors import RatchetError


class InferenceError(RatchetError):
    """A failure that a caller is told about, with the HTTP status it becomes."""

    title = "Not done"


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


class PortTaken(InferenceError):
    """Another process listens where the engine should."""


class Stopping(InferenceError):
    """The service is being stopped; the work is left to whoever comes next."""
