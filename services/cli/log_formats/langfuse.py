"""Langfuse's export of traces with their scores. Scores of evaluators are no person's word."""

from __future__ import annotations

from typing import Any

from services.cli.log_formats.logged import (
    LogFormat,
    LoggedAnswer,
    LoggedOpinion,
    context_in,
    conversation,
    corrected,
    identifier,
    moment,
    rating,
    thumb,
    trace_of,
)
from services.cli.pair_formats.pair import BadPair, Row, asked, objects, text
from shared.contracts.events.base import prompt_text
from shared.contracts.events.feedback import FeedbackType

MACHINES = ("EVAL",)
"""Sources of scores that are no person's."""


def _read(row: Row) -> LoggedAnswer:
    prompt, completion = _said(row)
    found = _verdicts(objects(row.get("scores"), "scores"), completion)
    return LoggedAnswer(
        trace_id=trace_of(row, "id"),
        prompt=prompt,
        completion=completion,
        verdicts=found,
        version=identifier(row, "version", "release"),
        user_id=identifier(row, "userId"),
        timestamp=moment(row.get("timestamp"), "timestamp"),
        metadata=context_in(row.get("metadata"), {"session_id": row.get("sessionId")}),
    )


def _said(row: Row) -> tuple[str, str]:
    """Input and output, which are texts, turns, or objects with them."""
    given, output = row.get("input"), row.get("output")
    if isinstance(output, list) and len(output) == 1:
        output = output[0]
    if isinstance(output, dict):
        output = output.get("content", output.get("completion"))
    completion = text({"output": output}, "output")
    if isinstance(given, dict):
        given = given.get("messages", given.get("prompt", given.get("question")))
    if isinstance(given, list):
        return conversation(given, completion)
    return prompt_text(asked(given, "input")), completion


def _verdicts(scores: list[dict[str, Any]], completion: str) -> tuple[LoggedOpinion, ...]:
    people = [one for one in scores if one.get("source") not in MACHINES]
    found: list[LoggedOpinion] = []
    for score in people:
        if score.get("name") == "correction":
            found.append(corrected(completion, text(score, "stringValue")))
        elif not any(one.kind is not FeedbackType.text_correction for one in found):
            found.append(_opinion(score))
    remarks = [str(one["comment"]) for one in people if str(one.get("comment") or "").strip()]
    if remarks:
        found.append(LoggedOpinion(FeedbackType.comment, "\n".join(remarks)))
    if not found:
        raise BadPair("scores: none is a person's")
    return tuple(found)


def _opinion(score: dict[str, Any]) -> LoggedOpinion:
    """A score as a thumb, or as a rating where it is above 1."""
    named, value = str(score.get("name")), score.get("value")
    if score.get("dataType") == "CATEGORICAL":
        return thumb(score.get("stringValue", value), f"scores.{named}")
    if isinstance(value, int | float) and value > 1:
        return rating(value)
    return thumb(value, f"scores.{named}")


LANGFUSE = LogFormat(
    "langfuse",
    "Langfuse traces: input, output, scores, userId",
    lambda row: "scores" in row and "output" in row,
    _read,
)
