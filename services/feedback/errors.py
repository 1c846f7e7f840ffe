"""What the service refuses, and the one shape in which it says so.

Every refusal is an RFC 9457 problem: title, status, detail, a `code` from a closed set, and for
each bad field its name, the rule it breaks and what to do about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from pydantic import ValidationError

from shared.errors import FieldError, RatchetError
from shared.validation import in_one_line, rule_and_remedy


class Reason(StrEnum):
    """Why something was refused: the closed set of codes and metric labels."""

    malformed = "malformed"
    invalid = "invalid"
    too_large = "too_large"
    too_slow = "too_slow"
    unauthenticated = "unauthenticated"
    forbidden = "forbidden"
    not_found = "not_found"
    conflict = "conflict"
    rate_limited = "rate_limited"
    busy = "busy"
    not_ready = "not_ready"
    log_unavailable = "log_unavailable"
    store_unavailable = "store_unavailable"
    router_failed = "router_failed"
    read_model_unavailable = "read_model_unavailable"
    internal = "internal"


class FeedbackError(RatchetError):
    """Something was refused; the message says what was wrong and what to do."""

    code = Reason.internal


class Malformed(FeedbackError):
    """The body is no JSON, or no JSON of the expected kind."""

    status = 400
    code = Reason.malformed
    title = "Malformed body"


class Invalid(FeedbackError):
    """A field breaks a rule."""

    status = 422
    code = Reason.invalid
    title = "Invalid request"


class EventTooLarge(FeedbackError):
    """The event made of the body is larger than what is stored."""

    status = 413
    code = Reason.too_large
    title = "Too large"


class AnonymousVote(FeedbackError):
    """The vote names nobody, and anonymous votes are off."""

    status = 403
    code = Reason.forbidden
    title = "Not allowed"


class NotOfThePanel(FeedbackError):
    """The key may not ask for votes of the evaluation judge's panel."""

    status = 403
    code = Reason.forbidden
    title = "Not allowed"


class NotFound(FeedbackError):
    """There is no such thing, or no longer."""

    status = 404
    code = Reason.not_found
    title = "Not found"


class AlreadyVoted(FeedbackError):
    """The comparison has another vote."""

    status = 409
    code = Reason.conflict
    title = "Already decided"


class Busy(FeedbackError):
    """As much is waiting as may wait."""

    status = 503
    code = Reason.busy
    title = "Too much is waiting"


class EventLogUnavailable(FeedbackError):
    """The event log did not acknowledge; nothing is answered 202 that is not stored."""

    status = 503
    code = Reason.log_unavailable
    title = "Event log unavailable"


class ComparisonStoreUnavailable(FeedbackError):
    """Open comparisons cannot be kept."""

    status = 503
    code = Reason.store_unavailable
    title = "Comparison store unavailable"


class ReadModelBusy(FeedbackError):
    """As many queries run as may run, or one took too long."""

    status = 503
    code = Reason.busy
    title = "Too many queries"


class ReadModelUnavailable(FeedbackError):
    """The read model cannot be read; ingestion goes on without it."""

    status = 503
    code = Reason.read_model_unavailable
    title = "Read model unavailable"


class AmbiguousFeedback(FeedbackError):
    """Several traces have feedback of this id."""

    status = 409
    code = Reason.conflict
    title = "Ambiguous"


class FormatUnavailable(FeedbackError):
    """The service has none of the formats that the caller accepts."""

    status = 406
    code = Reason.invalid
    title = "No such format"


class RouterFailed(FeedbackError):
    """The router gave no answer to compare."""

    status = 502
    code = Reason.router_failed
    title = "Router failed"


class RouterUnavailable(FeedbackError):
    """The router cannot be reached, or has no engine."""

    status = 503
    code = Reason.router_failed
    title = "Router unavailable"


REMEDIES = {
    "trace_id": "send the x-ratchet-trace-id header of the answer that the feedback is about",
    "type": "send one of thumbs_up, thumbs_down, rating, text_correction, preference, "
    "demonstration, comment, or of a signal: regenerate, copy, edit_kept, abandon, follow_up",
    "revision": "send a whole number, 0 first, one more for each edit",
    "timestamp": "send the time with its zone, such as 2026-11-18T09:00:00Z, or leave it out",
    "metadata": "send an object of at most 32 texts, such as locale, segment, category, session_id",
    "messages": 'send a list such as [{"role": "user", "content": "…"}]',
    "versions": 'send two version names, such as ["assistant-v1.1", "assistant-v1.0"]',
    "choice": "send left, right, tie or both_bad",
    "panel": 'leave it out, or send "judge" to keep the vote for the evaluation judge',
    "model": "send the model's name, such as assistant",
}


def field_errors(error: ValidationError, *, prefix: str = "") -> list[FieldError]:
    """What pydantic found, as field, rule and remedy, without echoing the input."""
    found: list[FieldError] = []
    for item in error.errors(include_url=False, include_input=False):
        parts = [str(part) for part in item["loc"]]
        field = ".".join([prefix, *parts] if prefix else parts) or "body"
        rule, remedy = rule_and_remedy(item)
        if item["type"] == "extra_forbidden":
            remedy = "leave it out, or put your own data into metadata"
        elif parts:
            remedy = REMEDIES.get(parts[0], remedy)
        found.append(FieldError(field, rule, remedy))
    return found


def invalid(fields: Sequence[FieldError]) -> Invalid:
    """An Invalid whose detail is the list of its fields in one line."""
    return Invalid(in_one_line(fields), fields)
