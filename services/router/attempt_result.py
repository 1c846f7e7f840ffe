"""Result of an attempt: what an engine's whole response, or its error, means for the client."""

from __future__ import annotations

from dataclasses import dataclass

from services.router.answer_readers import WHOLE_READERS
from services.router.call import Call, EngineAttempt
from services.router.engine_connection import EngineAnswerTooLarge
from services.router.errors import EngineFailed, EngineTimeout, EngineUnreachable, RouterError
from services.router.passed_through import ABSENT, PASSED_THROUGH
from services.router.relay import HTTP_OK
from services.router.response import AnswerGivenUp, UnreadableResponse, read_error
from shared.contracts.events.interactions import Outcome

ENGINE_FAULTS = frozenset((401, 403, 404, 408, 429))
"""4xx that are no fault of the client: the router's key is wrong, the adapter is not loaded, or the
engine is too busy."""


@dataclass(slots=True)
class WholeResponse:
    """A whole answer for the client."""

    status: int
    body: bytes
    retry_after_s: int = 0


def judged(call: Call, attempt: EngineAttempt, body: bytes) -> WholeResponse | None:
    """What a whole response means; None where it is a failure.

    Raises:
        AnswerGivenUp: another engine may have the answer.

    """
    if attempt.status == HTTP_OK:
        try:
            read = WHOLE_READERS[call.request.endpoint]
            name = call.shown(attempt.version)
            call.answer, body = read(body, name, call.request.trace_id)
        except AnswerGivenUp:
            raise
        except UnreadableResponse as error:
            attempt.outcome = Outcome.server_error
            attempt.error = str(error)
            return None
        return WholeResponse(HTTP_OK, body)
    message, shaped = read_error(attempt.status, body)
    attempt.error = message
    if not call.shows_arm:
        shaped = shaped.replace(attempt.engine_model.encode(), call.choice.model.encode())
    passed = call.request.endpoint in PASSED_THROUGH
    if passed and attempt.status in ABSENT and attempt.engine_model not in message:
        # No fault of a version: the engine has no such endpoint.
        attempt.outcome = Outcome.client_error
        return WholeResponse(404, shaped)
    if 400 <= attempt.status < 500 and attempt.status not in ENGINE_FAULTS:
        attempt.outcome = Outcome.client_error
        return WholeResponse(attempt.status, shaped)
    attempt.outcome = Outcome.server_error
    return None


def note_error(attempt: EngineAttempt, error: Exception) -> None:
    """Name how an attempt failed."""
    attempt.error = f"{type(error).__name__}: {error}"
    if isinstance(error, UnreadableResponse | EngineAnswerTooLarge):
        attempt.outcome = Outcome.server_error
    elif isinstance(error, TimeoutError):
        attempt.outcome = Outcome.timeout
    else:
        attempt.outcome = Outcome.crash


def failure_response(call: Call) -> WholeResponse:
    """What the client is told when the last attempt failed."""
    last = call.last
    tried = call.choice.model + (f" ({last.version})" if call.shows_arm else "")
    failures: dict[Outcome, RouterError] = {
        Outcome.server_error: EngineFailed(f"the engine failed to answer for {tried}; try again"),
        Outcome.crash: EngineUnreachable(
            f"the connection to the engine of {tried} failed or was lost; try again"
        ),
        Outcome.timeout: EngineTimeout(
            f"the engine of {tried} did not answer in time; try again, or ask for a shorter answer"
        ),
    }
    error = failures[last.outcome]
    return WholeResponse(error.status, error.body(), error.retry_after_s or 0)
