"""Values: what the `value` of feedback and of a signal may be, by type. Pure."""

from __future__ import annotations

from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from services.feedback.errors import Invalid, field_errors, invalid
from shared.contracts.events.base import MAX_TEXT
from shared.contracts.events.feedback import Correction, FeedbackType, Preference
from shared.contracts.events.signals import SignalType
from shared.errors import FieldError

MAX_RATING = 5
MIN_RATING = 1

_correction = TypeAdapter(Correction)
_preference = TypeAdapter(Preference)


def fields_of(item: Any) -> dict[str, Any] | None:
    """A JSON object without its nulls, or None where it is none."""
    if not isinstance(item, dict):
        return None
    fields = cast("dict[str, Any]", item)
    if None not in fields.values():
        return fields
    return {name: value for name, value in fields.items() if value is not None}


def json_kind(item: Any) -> str:
    """What JSON calls a value."""
    match item:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list():
            return "a list"
        case _:
            return "an object"


def feedback_value(kind: FeedbackType, value: Any, *, clamp: bool | None = None) -> Any:
    """Check the value of feedback and bring it into its type's form.

    `clamp` says whether a rating beyond the scale is brought into it; None: its sender cannot ask for that.

    Raises:
        Invalid: it does not fit the type.

    """
    match kind:
        case FeedbackType.thumbs_up | FeedbackType.thumbs_down:
            if value is None:
                return None
            raise _bad_value(f"must be absent for {kind}", "send the type alone")
        case FeedbackType.rating:
            return _rating(value, clamp=clamp)
        case FeedbackType.text_correction:
            return _nested(
                _correction,
                value,
                'send {"original": "…", "corrected": "…"}; original may be left out',
            )
        case FeedbackType.preference:
            return _nested(
                _preference,
                value,
                'send {"chosen": "…", "rejected": "…"}; chosen_version, rejected_version may follow',
            )
        case FeedbackType.demonstration | FeedbackType.comment:
            if isinstance(value, str) and value.strip() and len(value) <= MAX_TEXT:
                return value
            rule = f"must be a text of 1 to {MAX_TEXT} characters for {kind}"
            raise _bad_value(rule, "send the text itself")


def _rating(value: Any, *, clamp: bool | None) -> int:
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole:
        raise _bad_value("a rating is a whole number from 1 to 5", "send 1, 2, 3, 4 or 5")
    rating = int(value)
    if clamp:
        return min(max(rating, MIN_RATING), MAX_RATING)
    if not MIN_RATING <= rating <= MAX_RATING:
        asking = "" if clamp is None else ", or ask for clamping with ?clamp=true"
        raise _bad_value("a rating is a whole number from 1 to 5", f"send 1, 2, 3, 4 or 5{asking}")
    return rating


def _nested(adapter: TypeAdapter[Any], value: Any, remedy: str) -> Any:
    given = fields_of(value)
    if given is None:
        raise _bad_value(f"must be an object, not {json_kind(value)}", remedy)
    try:
        return adapter.validate_python(given)
    except ValidationError as error:
        found = field_errors(error, prefix="value")
        raise invalid([FieldError(item.field, item.rule, remedy) for item in found]) from None


def _bad_value(rule: str, remedy: str) -> Invalid:
    return invalid([FieldError("value", rule, remedy)])


def signal_value(kind: SignalType, value: Any) -> float | str | None:
    """Check the value of a signal: a share for edit_kept, a text or none for follow_up.

    Raises:
        Invalid: it does not fit the type.

    """
    match kind:
        case SignalType.edit_kept:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if number and 0 <= value <= 1:
                return float(value)
            raise _bad_value("is the share that was kept, from 0 to 1", "send a number such as 0.8")
        case SignalType.follow_up if value is not None:
            if isinstance(value, str) and len(value) <= MAX_TEXT:
                return value
            rule = f"is the next turn's text, at most {MAX_TEXT} characters"
            raise _bad_value(rule, "send the text, or leave it out")
        case _ if value is not None:
            raise _bad_value(f"must be absent for {kind}", "send the type alone")
        case _:
            return None
