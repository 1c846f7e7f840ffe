"""An answer of an old log with what people said of it, and what all forms of logs check."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from services.cli.pair_formats.pair import BadPair, Row, text, turns
from shared.contracts.events.base import MAX_ID, Message, prompt_text
from shared.contracts.events.feedback import Correction, FeedbackType

GOOD = frozenset(
    {
        "up",
        "thumbs_up",
        "thumbs-up",
        "thumb_up",
        "good",
        "positive",
        "like",
        "liked",
        "1",
        "true",
        "👍",
    }
)
BAD = frozenset(
    {
        "down",
        "thumbs_down",
        "thumbs-down",
        "thumb_down",
        "bad",
        "negative",
        "dislike",
        "disliked",
        "0",
        "-1",
        "false",
        "👎",
    }
)
THUMBS = ("feedback", "user_feedback", "thumb", "thumbs")
"""Fields that may hold a thumb."""
CONTEXT = ("session_id", "locale", "segment", "category")


@dataclass(frozen=True, slots=True)
class LoggedOpinion:
    """What somebody said of an answer, as feedback has it."""

    kind: FeedbackType
    value: Any = None


@dataclass(frozen=True, slots=True)
class LoggedAnswer:
    """An answer that no router gave."""

    trace_id: str
    prompt: str
    completion: str
    verdicts: tuple[LoggedOpinion, ...]
    version: str = ""
    user_id: str = ""
    timestamp: datetime | None = None
    metadata: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class LogFormat:
    """A form of logs by its name: how its rows are recognised and read."""

    name: str
    about: str
    matches: Callable[[Row], bool]
    read: Callable[[Row], LoggedAnswer]
    """May raise `BadPair`, which names the field."""


def conversation(messages: object, completion: str = "") -> tuple[str, str]:
    """The prompt as one text, and the answer: the last turn unless it is given.

    Raises:
        BadPair: there is no prompt, no answer, or a turn is more than text.

    """
    found: Sequence[Message] = turns(messages, "messages")
    if not all(turn.is_text and turn.role != "tool" for turn in found):
        raise BadPair("messages: a conversation with tools is more than feedback can bring")
    if not completion:
        *found, last = found
        if last.role != "assistant":
            raise BadPair("messages: the last turn must be the assistant's")
        completion = last.content
    if not found or found[-1].role != "user":
        raise BadPair("messages: the prompt must end with the user's turn")
    return prompt_text(tuple(found)), completion


def verdicts_in(*rows: object, completion: str) -> tuple[LoggedOpinion, ...]:
    """What the rows say of an answer, the first row that names a field counts.

    Raises:
        BadPair: they say nothing, or it cannot be read.

    """
    fields: dict[str, Any] = {}
    for row in reversed(rows):
        fields |= {k: v for k, v in row.items() if v is not None} if isinstance(row, dict) else {}
    found = [thumb(fields[name], name) for name in THUMBS if name in fields][:1]
    if "rating" in fields:
        found = [rating(fields["rating"])]
    if "correction" in fields:
        found.append(corrected(completion, text(fields, "correction")))
    if "comment" in fields:
        found.append(LoggedOpinion(FeedbackType.comment, text(fields, "comment")))
    if not found:
        raise BadPair("feedback: none; give feedback (up or down), rating (1 to 5) or correction")
    return tuple(found)


def thumb(value: object, name: str) -> LoggedOpinion:
    """A thumb, by any of the words for it.

    Raises:
        BadPair: it is none.

    """
    said = str(value).strip().lower().removesuffix(".0")
    if said in GOOD:
        return LoggedOpinion(FeedbackType.thumbs_up)
    if said in BAD:
        return LoggedOpinion(FeedbackType.thumbs_down)
    raise BadPair(f"{name}: {said[:40]!r} is neither up nor down")


def corrected(completion: str, better: str) -> LoggedOpinion:
    """A better text in the place of the answer."""
    value = Correction(original=completion, corrected=better)
    return LoggedOpinion(FeedbackType.text_correction, value)


def rating(value: object) -> LoggedOpinion:
    """A rating from 1 to 5.

    Raises:
        BadPair: it is none.

    """
    said = str(value).strip().removesuffix(".0")
    if said not in ("1", "2", "3", "4", "5"):
        raise BadPair(f"rating: must be a whole number from 1 to 5, not {said[:40]!r}")
    return LoggedOpinion(FeedbackType.rating, int(said))


def identifier(row: Row, *names: str) -> str:
    """The first of some fields that has something, as an id; else empty."""
    return next((str(row[name])[:MAX_ID] for name in names if row.get(name)), "")


def trace_of(row: Row, *names: str) -> str:
    """The row's own id, or one that follows from its content."""
    whole = orjson.dumps(dict(row), option=orjson.OPT_SORT_KEYS)
    return identifier(row, *names) or hashlib.sha256(whole).hexdigest()[:32]


def moment(value: object, name: str) -> datetime | None:
    """A time in seconds or in ISO 8601, in UTC where it names no zone; None where there is none.

    Raises:
        BadPair: it is none.

    """
    if value is None or value == "":
        return None
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, UTC)
        found = datetime.fromisoformat(str(value))
    except (ValueError, OverflowError, OSError):
        raise BadPair(f"{name}: {str(value)[:40]!r} is no time") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def context_in(*rows: object) -> dict[str, str]:
    """Session, locale, segment and category, from the first row that has each."""
    found: dict[str, str] = {}
    for row in rows:
        for name in CONTEXT:
            value = row.get(name) if isinstance(row, dict) else None
            if isinstance(value, str) and value:
                found.setdefault(name, value[:MAX_ID])
    return found
