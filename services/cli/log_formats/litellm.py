"""LiteLLM's request log, with feedback beside it or in its metadata."""

from __future__ import annotations

from services.cli.log_formats.logged import (
    LogFormat,
    LoggedAnswer,
    context_in,
    conversation,
    identifier,
    moment,
    trace_of,
    verdicts_in,
)
from services.cli.pair_formats.pair import BadPair, Row, objects, text


def first_choice(answer: object, name: str) -> str:
    """The text of a chat completion's one choice.

    Raises:
        BadPair: there is none, or several, of which nobody knows which was judged.

    """
    choices = objects(
        answer.get("choices") if isinstance(answer, dict) else None, f"{name}.choices"
    )
    if len(choices) != 1 or not isinstance(choices[0].get("message"), dict):
        raise BadPair(f"{name}.choices: must be one, with its message")
    return text(choices[0]["message"], "content")


def _read(row: Row) -> LoggedAnswer:
    metadata = row.get("metadata")
    inner = metadata.get("requester_metadata") if isinstance(metadata, dict) else None
    prompt, completion = conversation(
        row.get("messages"), first_choice(row.get("response"), "response")
    )
    return LoggedAnswer(
        trace_id=trace_of(row, "trace_id", "id", "request_id"),
        prompt=prompt,
        completion=completion,
        verdicts=verdicts_in(row, inner, metadata, completion=completion),
        version=identifier(row, "model"),
        user_id=identifier(row, "end_user", "user"),
        timestamp=moment(row.get("startTime"), "startTime"),
        metadata=context_in(inner, metadata, row),
    )


LITELLM = LogFormat(
    "litellm",
    "LiteLLM: messages, response, end_user; feedback beside them or in metadata",
    lambda row: "messages" in row and "response" in row,
    _read,
)
