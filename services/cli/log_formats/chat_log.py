"""Plain JSON lines: a conversation, or a prompt and a completion, with feedback beside it."""

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
from services.cli.pair_formats.pair import Row, text


def _read(row: Row) -> LoggedAnswer:
    if "messages" in row:
        given = text(row, "completion") if "completion" in row else ""
        prompt, completion = conversation(row["messages"], given)
    else:
        prompt, completion = text(row, "prompt"), text(row, "completion")
    metadata = row.get("metadata")
    return LoggedAnswer(
        trace_id=trace_of(row, "trace_id", "id"),
        prompt=prompt,
        completion=completion,
        verdicts=verdicts_in(row, metadata, completion=completion),
        version=identifier(row, "version", "model"),
        user_id=identifier(row, "user_id", "user"),
        timestamp=moment(row.get("timestamp"), "timestamp"),
        metadata=context_in(row, metadata),
    )


CHAT_LOG = LogFormat(
    "chat-log",
    "messages, or prompt and completion; feedback, rating, correction, comment; user_id, id",
    lambda row: (
        ("messages" in row or "prompt" in row) and not {"response", "scores", "object"} & row.keys()
    ),
    _read,
)
