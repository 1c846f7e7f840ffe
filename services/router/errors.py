"""What a request can fail of, in the shape of the OpenAI API's errors."""

from __future__ import annotations

from typing import Any, ClassVar

import orjson

from shared.contracts.events.interactions import Outcome
from shared.errors import RatchetError


class RouterError(RatchetError):
    """A refusal or failure that the client is told about."""

    kind: ClassVar[str] = "server_error"
    code = "internal_error"
    outcome: ClassVar[Outcome] = Outcome.server_error

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.param = param

    def body(self) -> bytes:
        """The error as JSON."""
        return error_body(self.detail, kind=self.kind, code=self.code, param=self.param)


class InvalidRequest(RouterError):
    """The body or a header is not what the API takes."""

    status = 400
    kind = "invalid_request_error"
    code = "invalid_request"
    outcome = Outcome.client_error


class InvalidApiKey(InvalidRequest):
    """No key, or one that is not known."""

    status = 401
    kind = "authentication_error"
    code = "invalid_api_key"


class InsufficientScope(InvalidRequest):
    """The key may not do this."""

    status = 403
    kind = "permission_error"
    code = "insufficient_scope"


class UnknownPath(InvalidRequest):
    """There is nothing at this path."""

    status = 404
    code = "unknown_path"


class UnknownModel(InvalidRequest):
    """No model and no version has this name."""

    status = 404
    code = "model_not_found"


class WrongMethod(InvalidRequest):
    """The path is there, the method is not."""

    status = 405
    code = "method_not_allowed"


class TraceIdTaken(InvalidRequest):
    """A request of the tenant has this trace id already."""

    status = 409
    code = "trace_id_taken"


class SlowBody(InvalidRequest):
    """The request's body did not arrive in time."""

    status = 408
    code = "request_timeout"


class RequestTooLarge(InvalidRequest):
    """The body is over the limit."""

    status = 413
    code = "request_too_large"


class RateLimited(InvalidRequest):
    """The key or its tenant has used up its requests."""

    status = 429
    kind = "requests"
    code = "rate_limit_exceeded"


class TokensRateLimited(RateLimited):
    """The key or its tenant has used up its tokens."""

    kind = "tokens"


class NotReady(RouterError):
    """The router does not know yet where to send anything."""

    status = 503
    code = "not_ready"
    retry_after_s = 1


class Overloaded(RouterError):
    """As many requests run as the router takes at once."""

    status = 503
    code = "overloaded"
    retry_after_s = 1


class EngineFailed(RouterError):
    """The engine answered with an error of its own, or with something unreadable."""

    status = 502
    code = "engine_error"


class EngineUnreachable(RouterError):
    """No engine could be reached, or the connection to it was lost."""

    status = 503
    code = "engine_unavailable"
    outcome = Outcome.crash
    retry_after_s = 1


class EngineTimeout(RouterError):
    """The engine did not answer in time."""

    status = 504
    code = "engine_timeout"
    outcome = Outcome.timeout


def error_body(message: str, *, kind: str, code: str | None, param: str | None = None) -> bytes:
    """An error in the shape of the OpenAI API."""
    return orjson.dumps({"error": error_value(message, kind=kind, code=code, param=param)})


def error_value(
    message: str, *, kind: str, code: str | None, param: str | None = None
) -> dict[str, Any]:
    """What stands under `error`, in an answer and in a stream's last event."""
    return {"message": message, "type": kind, "param": param, "code": code}
