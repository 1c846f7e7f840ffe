"""CloudEvents 1.0 in Kafka's binary mode: attributes in headers, the JSON value in the body."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from pydantic import ValidationError

from shared.contracts.events.base import Event, utc
from shared.contracts.events.dead_letters import DeadLetterReason

Headers = tuple[tuple[str, bytes], ...]

SPEC_VERSION = b"1.0"
JSON_TYPE = b"application/json"


class UnreadableRecord(Exception):
    """A record's value is not what its headers or its topic promise."""

    def __init__(self, reason: DeadLetterReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: DeadLetterReason = reason
        self.detail = detail


def encode(
    event: type[Event] | Event,
    *,
    source: str,
    event_id: str,
    time: datetime,
    traceparent: str = "",
) -> Headers:
    """The headers of an event. `source` is a URI reference such as `/ratchet/router`."""
    headers = (
        ("ce_specversion", SPEC_VERSION),
        ("ce_id", event_id.encode()),
        ("ce_source", source.encode()),
        ("ce_type", event.ce_type.encode()),
        ("ce_time", utc(time).encode()),
        ("content-type", JSON_TYPE),
    )
    if traceparent:
        return (*headers, ("traceparent", traceparent.encode()))
    return headers


def headers_of(raw: Iterable[tuple[str, bytes | None]]) -> Headers:
    """Headers as Kafka's clients hand them out; a null value, which Kafka allows, reads as empty."""
    return tuple((name, value or b"") for name, value in raw)


def header(headers: Iterable[tuple[str, bytes | None]], name: str) -> str:
    """The first header of that name as text, or an empty text."""
    for key, value in headers:
        if key == name:
            return (value or b"").decode("utf-8", "replace")
    return ""


def decode(
    headers: Iterable[tuple[str, bytes | None]],
    value: bytes | None,
    models: Mapping[str, type[Event]],
) -> Event:
    """Read a value as the model its `ce_type` names.

    Raises:
        UnreadableRecord: no or an unknown type (`unknown_type`), or a value that is not of the
            model (`schema`); the detail names the field and the rule.

    """
    kind = header(headers, "ce_type")
    model = models.get(kind)
    if model is None:
        expected = ", ".join(sorted(models))
        raise UnreadableRecord(
            "unknown_type", f"header ce_type is {kind!r}; expected one of {expected}"
        )
    if value is None:
        raise UnreadableRecord("schema", "the value is empty; expected JSON")
    try:
        return model.model_validate_json(value)
    except ValidationError as error:
        raise UnreadableRecord("schema", describe(error)) from None


def describe(error: ValidationError) -> str:
    """A validation error as `field: rule` phrases, at most five, without the input."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    phrases = [
        f"{'.'.join(str(part) for part in item['loc']) or 'body'}: {item['msg']}"
        for item in found[:5]
    ]
    if len(found) > len(phrases):
        phrases.append(f"and {len(found) - len(phrases)} more")
    return "; ".join(phrases)


def models_by_type(*models: type[Event]) -> dict[str, type[Event]]:
    """The mapping `decode` takes, from the models themselves."""
    return {model.ce_type: model for model in models}
