"""OpenAI's stored chat completions with their messages; feedback is in the metadata."""

from __future__ import annotations

from services.cli.log_formats.litellm import first_choice
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
from services.cli.pair_formats.pair import Row


def _read(row: Row) -> LoggedAnswer:
    asked = row.get("messages", row.get("input"))
    metadata = row.get("metadata")
    prompt, completion = conversation(asked, first_choice(row, "completion"))
    return LoggedAnswer(
        trace_id=trace_of(row, "id"),
        prompt=prompt,
        completion=completion,
        verdicts=verdicts_in(metadata, row, completion=completion),
        version=identifier(row, "model"),
        user_id=identifier(row, "user") or identifier(context_of(metadata), "user_id", "user"),
        timestamp=moment(row.get("created"), "created"),
        metadata=context_in(metadata),
    )


def context_of(metadata: object) -> Row:
    """The metadata as an object; empty where there is none."""
    return metadata if isinstance(metadata, dict) else {}


OPENAI_COMPLETIONS = LogFormat(
    "openai",
    "OpenAI stored completions: object chat.completion, messages, choices, metadata",
    lambda row: row.get("object") == "chat.completion",
    _read,
)
