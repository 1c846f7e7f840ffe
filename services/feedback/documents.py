"""Bodies of the ingestion API as its OpenAPI document describes them.

The hot path neither reads nor writes through them: submissions are checked by `submissions`, and
answers are written as they are.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, RootModel

from services.feedback.comparisons import ComparisonRequest, VoteRequest
from shared.contracts.events.base import MAX_ID
from shared.contracts.events.intake import SignalSubmission, Submission, Withdrawal
from shared.http.openapi import (
    Problem,
    json_body,
    json_content,
    problem_responses,
    query_parameters,
)


class FeedbackReceipt(BaseModel):
    """Feedback or a withdrawal that is stored."""

    feedback_id: str
    revision: int
    trace_id: str


class FeedbackBody(RootModel[Submission | SignalSubmission]):
    """One piece of feedback, or one signal."""


class FeedbackBatch(BaseModel):
    """Several pieces of feedback."""

    items: list[FeedbackBody] = Field(min_length=1, max_length=1_000)


class BatchResult(BaseModel):
    """Result of one item: `status` 202 with its receipt, else its problem."""

    status: int
    feedback_id: str | None = None
    revision: int | None = None
    trace_id: str | None = None
    error: Problem | None = None


class BatchResults(BaseModel):
    """A result for each item, in the order of the items."""

    results: list[BatchResult]


class BlindAnswer(BaseModel):
    """An answer whose version is not named."""

    text: str


class OpenedComparison(BaseModel):
    """Two blind answers to one question."""

    comparison_id: str
    left: BlindAnswer
    right: BlindAnswer


class VersionsOfSides(BaseModel):
    """Versions behind the two sides, named after the vote."""

    left: str
    right: str


class VoteReceipt(BaseModel):
    """A vote that is stored."""

    accepted: bool
    versions: VersionsOfSides


MODELS = (
    FeedbackBody,
    FeedbackReceipt,
    FeedbackBatch,
    BatchResults,
    ComparisonRequest,
    OpenedComparison,
    VoteRequest,
    VoteReceipt,
)
_CLAMP = {
    "name": "clamp",
    "in": "query",
    "schema": {"type": "boolean", "default": False},
    "description": "bring a rating outside 1 to 5 into it",
}
_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_ID},
    "description": "names feedback that has no feedback_id; in a batch, with the index of its item",
}


def _answers(
    problems: tuple[int, ...], *successes: tuple[int, str, type[BaseModel]]
) -> dict[int | str, Any]:
    return {
        **{
            status: {"description": said, "content": json_content(model)}
            for status, said, model in successes
        },
        **problem_responses(*problems),
    }


_WRITING = (400, 401, 403, 408, 413, 422, 429, 503)

SUBMIT: dict[str, Any] = {
    "status_code": 202,
    "responses": _answers(_WRITING, (202, "Stored", FeedbackReceipt)),
    "openapi_extra": {
        "requestBody": json_body(FeedbackBody),
        "parameters": [_CLAMP, _IDEMPOTENCY_KEY],
    },
}
SUBMIT_BATCH: dict[str, Any] = {
    "status_code": 202,
    "responses": _answers(
        _WRITING,
        (202, "All stored", BatchResults),
        (207, "Some refused; `results` says which and why", BatchResults),
    ),
    "openapi_extra": {
        "requestBody": json_body(FeedbackBatch),
        "parameters": [_CLAMP, _IDEMPOTENCY_KEY],
    },
}
WITHDRAW: dict[str, Any] = {
    "status_code": 202,
    "responses": _answers((401, 403, 422, 429, 503), (202, "Stored", FeedbackReceipt)),
    "openapi_extra": {"parameters": query_parameters(Withdrawal, without="feedback_id")},
}
COMPARE: dict[str, Any] = {
    "status_code": 201,
    "responses": _answers((*_WRITING, 404, 502), (201, "Opened", OpenedComparison)),
    "openapi_extra": {"requestBody": json_body(ComparisonRequest)},
}
VOTE: dict[str, Any] = {
    "status_code": 200,
    "responses": _answers((*_WRITING, 404, 409), (200, "Stored", VoteReceipt)),
    "openapi_extra": {"requestBody": json_body(VoteRequest)},
}
