"""People in records: whose data a record holds, and what is left of it without a person. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any, cast

import orjson
from pydantic import TypeAdapter, ValidationError

from services.feedback.values import fields_of
from shared.contracts.events.base import Identifier
from shared.contracts.events.quality import ExampleJoined
from shared.contracts.subject import subject_of, users_in
from shared.kafka.log import Record

NOTHING_SAID = {
    "messages": (), "tools": (), "completion": "", "answer": None,
    "asker": "", "feedback": (), "signals": (),
}  # fmt: skip
"""Fields of a joined example that hold texts or people, as they are without them."""

Trace = tuple[str, str]
"""Tenant and trace id, or comparison id of a vote."""
_TRACE: TypeAdapter[Trace] = TypeAdapter(tuple[Identifier, Identifier])


def body_of(record: Record) -> Mapping[str, Any]:
    """A record's JSON object; empty where it has none."""
    try:
        found = orjson.loads(record.value or b"null")
    except orjson.JSONDecodeError:
        return {}
    return fields_of(found) or {}


def is_about(body: Mapping[str, Any], subjects: Collection[str]) -> bool:
    """Whether one of the people in a record's body is one of the subjects."""
    tenant = str(body.get("tenant", ""))
    return any(subject_of(tenant, user) in subjects for user in users_in(body))


def is_asked_by(body: Mapping[str, Any], subjects: Collection[str]) -> bool:
    """Whether the `asker` of a record's body is one of the subjects."""
    asker = body.get("asker")
    return isinstance(asker, str) and subject_of(str(body.get("tenant", "")), asker) in subjects


def traces_of(body: Mapping[str, Any]) -> list[Trace]:
    """The traces that a record is about: its own, or those of an annotation item's answers."""
    answers = [fields_of(one) or {} for one in _list(body.get("answers"))]
    found = [_trace_of({**one, "tenant": body.get("tenant")}) for one in answers or [body]]
    return [trace for trace in found if trace is not None]


def traces_in(body: Mapping[str, Any]) -> list[str]:
    """Trace ids of the answers that a record of examples or preferences is made of."""
    found = [body.get("trace_id"), *_list(body.get("traces"))]
    return [one for one in found if isinstance(one, str)]


def without_person(
    example: ExampleJoined, subjects: Collection[str], *, at: datetime, whole: bool
) -> ExampleJoined:
    """A joined example as an erasure at a moment leaves it.

    Where the person asked (`whole`, or as its `asker` says) no text is left, else only what the
    person said until then goes.
    """
    if whole or subject_of(example.tenant, example.asker) in subjects:
        context = example.context.model_copy(update={"session_id": "", "labels": {}})
        return example.model_copy(update={**NOTHING_SAID, "context": context, "updated_at": at})
    others = {
        name: tuple(
            one
            for one in getattr(example, name)
            if subject_of(example.tenant, one.user_id) not in subjects or one.submitted_at > at
        )
        for name in ("feedback", "signals")
    }
    return example.model_copy(update={**others, "updated_at": at})


def _trace_of(body: Mapping[str, Any]) -> Trace | None:
    """The trace that a body names, by its own id or a comparison's; None where no id names one."""
    found = (body.get("tenant"), body.get("trace_id") or body.get("comparison_id"))
    try:
        return _TRACE.validate_python(found)
    except ValidationError:
        return None


def _list(value: object) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []
