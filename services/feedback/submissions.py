"""Submissions: validation, identity and redaction of feedback, from a request body to an event.

Pure: the same body, tenant, time and redactor give the same event, over HTTP and from the intake.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from pydantic import BaseModel, TypeAdapter, ValidationError

from services.feedback.dissatisfaction import is_dissatisfied
from services.feedback.errors import REMEDIES, Malformed, field_errors, invalid
from services.feedback.foreign_answers import check_source, stored_trace_id
from services.feedback.values import feedback_value, fields_of, json_kind, signal_value
from shared.contracts.events.base import MAX_ID, Context, unvalidated
from shared.contracts.events.feedback import (
    Correction,
    FeedbackSubmitted,
    FeedbackType,
    FeedbackWithdrawn,
    Preference,
)
from shared.contracts.events.intake import SignalSubmission, Submission, Withdrawal
from shared.contracts.events.signals import SignalObserved, SignalType
from shared.contracts.feedback_id import default_feedback_id, typed_feedback_id
from shared.errors import FieldError
from shared.pseudonyms import AS_THEY_COME, UserPseudonyms
from shared.redaction.detection import Redact, by_rules

REVISION_EPOCH = datetime(2020, 1, 1, tzinfo=UTC)
"""A withdrawal without a revision takes the seconds since then: above any count of edits."""
CONTEXT_FIELDS = frozenset(("session_id", "locale", "segment", "category"))


@dataclass(frozen=True, slots=True)
class SubmissionRules:
    """What a deployment may set about submissions."""

    use_anonymous: bool = False
    """Feedback without user_id reaches the judge and datasets."""
    max_age: timedelta = timedelta(days=30)
    """How long before its receipt feedback may say that it was given."""
    classify_follow_ups: bool = False
    """Tell by rule whether the next turn of a follow_up is dissatisfied."""
    max_ahead: timedelta = timedelta(minutes=5)
    """How long after its receipt, for clocks that are ahead."""
    pseudonyms: UserPseudonyms = AS_THEY_COME
    """How user ids are stored."""


DEFAULT_RULES = SubmissionRules()


def parse_json(body: bytes) -> Any:
    """The body as JSON.

    Raises:
        Malformed: it is none; the detail says where.

    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Malformed(f"the body is not JSON: {error}; send a JSON object in UTF-8") from None


def read_submission(item: Any, *, clamp: bool | None = None) -> Submission | SignalSubmission:
    """Check one body, of feedback or of a signal, and bring its value into its type's form.

    `clamp` as in `feedback_value`.

    Raises:
        Malformed: it is no JSON object.
        Invalid: a field breaks a rule.

    """
    given = fields_of(item)
    if given is None:
        raise Malformed(f"feedback is a JSON object, not {json_kind(item)}; send {{…}}")
    try:
        if given.get("type") in _SIGNALS:
            signal = SignalSubmission.model_validate(given)
            return signal.model_copy(update={"value": signal_value(signal.type, signal.value)})
        submission: Submission = _submission.validate_python(given)
    except ValidationError as error:
        raise invalid(field_errors(error)) from None
    check_source(submission)
    value = feedback_value(submission.type, submission.value, clamp=clamp)
    if value is not submission.value:
        submission.value = value
    return submission


def read_withdrawal(item: Mapping[str, Any]) -> Withdrawal:
    """Check a withdrawal.

    Raises:
        Invalid: a field breaks a rule.

    """
    try:
        return Withdrawal.model_validate(fields_of(item))
    except ValidationError as error:
        raise invalid(field_errors(error)) from None


def event_id(feedback_id: str, revision: int) -> str:
    """The `ce_id` of a revision."""
    return f"{feedback_id}:{revision}"


def submitted(
    submission: Submission | SignalSubmission,
    *,
    tenant: str,
    at: datetime,
    redact: Redact,
    fallback_id: str = "",
    rules: SubmissionRules = DEFAULT_RULES,
) -> FeedbackSubmitted | SignalObserved:
    """The event of a checked submission, every text redacted. `at` is when it was received.

    `fallback_id` (the Idempotency-Key) names feedback that carries no feedback_id. Feedback without
    user_id is `anonymous`, so it counts but neither judges nor teaches, unless the rules let it.

    Raises:
        Invalid: redaction made a text too long, the metadata names another tenant, or the timestamp
            is out of bounds.

    """
    kind = submission.type
    user_id = rules.pseudonyms.of(tenant, submission.user_id)
    own_id = submission.feedback_id or fallback_id
    trace_id = stored_trace_id(submission)
    fields: dict[str, Any] = {
        "feedback_id": own_id or default_feedback_id(tenant, trace_id, user_id, kind),
        "revision": submission.revision,
        "trace_id": trace_id,
        "tenant": tenant,
        "type": kind,
        "value": submission.value,
        "user_id": user_id,
        "context": context_of(submission.metadata, tenant=tenant, redact=redact),
        "submitted_at": at,
        "anonymous": not user_id and not rules.use_anonymous,
        "by_receipt": not own_id and not submission.revision,
        "given_at": submission.timestamp and _given_at(submission.timestamp, at, rules),
    }
    if isinstance(submission, Submission) and not (
        submission.source or isinstance(submission.value, str | BaseModel)
    ):
        # No text was redacted and no id put together, so validation would find nothing new.
        return FeedbackSubmitted.unvalidated(fields)
    try:
        if isinstance(submission, Submission):
            return FeedbackSubmitted(**{**fields, **_answer(submission, redact)})
        value = submission.value
        fields["value"] = value if isinstance(value, float) else None
        return SignalObserved(**fields, dissatisfied=_dissatisfied(value, rules))
    except ValidationError as error:
        raise invalid(field_errors(error)) from None


def withdrawn(
    withdrawal: Withdrawal, *, tenant: str, at: datetime, rules: SubmissionRules = DEFAULT_RULES
) -> FeedbackWithdrawn:
    """The event of a withdrawal.

    Without a revision it takes the seconds since REVISION_EPOCH, and of a default id it is ordered
    by receipt. Without a type it takes the one that the default id of this trace and user belongs
    to, `thumbs_up` for the id that thumbs and ratings share.

    Raises:
        Invalid: the type is absent and the id is none of the default ids, or the revision is absent
            and `at` lies before REVISION_EPOCH.

    """
    user_id = rules.pseudonyms.of(tenant, withdrawal.user_id)
    default = _type_of_default(withdrawal, tenant, user_id)
    kind = withdrawal.type or default
    if kind is None:
        rule = "is required where feedback_id is not the default id of this trace_id and user_id"
        remedy = "send the type of the feedback, or the user_id it was given with"
        raise invalid([FieldError("type", rule, remedy)])
    revision = withdrawal.revision
    if revision is None:
        revision = int((at - REVISION_EPOCH).total_seconds())
    try:
        return FeedbackWithdrawn(
            feedback_id=withdrawal.feedback_id,
            revision=revision,
            trace_id=withdrawal.trace_id,
            tenant=tenant,
            type=kind,
            user_id=user_id,
            submitted_at=at,
            by_receipt=default is not None and withdrawal.revision is None,
        )
    except ValidationError as error:
        raise invalid(field_errors(error)) from None


def context_of(metadata: Mapping[str, str], *, tenant: str, redact: Redact) -> Context:
    """Metadata as a context: four known fields, the rest labels, redacted but the session's id.

    Raises:
        Invalid: it names another tenant, or a known field is no identifier.

    """
    if not metadata:
        return NO_CONTEXT
    if "tenant" in metadata and metadata["tenant"] != tenant:
        rule = "is not the tenant of the API key or of the topic"
        raise invalid([FieldError("metadata.tenant", rule, "leave it out: the key decides")])
    # A session id joins a session's requests and stays as it is.
    rules = by_rules(redact)
    known: dict[str, Any] = {}
    labels: dict[str, str] = {}
    fits = True
    for name, text in metadata.items():
        if name in CONTEXT_FIELDS:
            kept = known[name] = text if name == "session_id" else rules(text)
            fits = fits and len(kept) <= MAX_ID and kept.isprintable()
        elif name != "tenant":
            labels[name] = redact(text)
    if fits:
        # Checked metadata break no other rule of a context.
        known["labels"] = labels
        return unvalidated(Context, known)
    try:
        return Context(**known, labels=labels)
    except ValidationError as error:
        raise invalid(field_errors(error, prefix="metadata")) from None


NO_CONTEXT = Context()
_SIGNALS = tuple(kind.value for kind in SignalType)
_submission = TypeAdapter(Submission).validator


def _dissatisfied(next_turn: object, rules: SubmissionRules) -> bool | None:
    """What the rule says of a next turn; None where there is none or no one asked."""
    if not rules.classify_follow_ups or not isinstance(next_turn, str):
        return None
    return is_dissatisfied(next_turn)


def _given_at(timestamp: datetime, at: datetime, rules: SubmissionRules) -> datetime:
    if at - rules.max_age <= timestamp <= at + rules.max_ahead:
        return timestamp
    rule = (
        f"is more than {rules.max_age} before or {rules.max_ahead} after the receipt at "
        f"{at.isoformat(timespec='seconds')}"
    )
    raise invalid([FieldError("timestamp", rule, REMEDIES["timestamp"])])


def _redacted(value: Any, redact: Redact) -> Any:
    match value:
        case str():
            return redact(value)
        case Correction():
            return Correction(original=redact(value.original), corrected=redact(value.corrected))
        case Preference():
            return Preference(
                chosen=redact(value.chosen),
                rejected=redact(value.rejected),
                chosen_version=value.chosen_version,
                rejected_version=value.rejected_version,
            )
        case _:
            return value


def _answer(submission: Submission, redact: Redact) -> dict[str, Any]:
    return {
        "value": _redacted(submission.value, redact),
        "version": submission.version,
        "prompt": redact(submission.prompt) if submission.prompt else "",
        "completion": redact(submission.completion) if submission.completion else "",
        "source": submission.source,
        "model": submission.model,
    }


def _type_of_default(withdrawal: Withdrawal, tenant: str, user_id: str) -> FeedbackType | None:
    place = (tenant, withdrawal.trace_id, user_id)
    for kind in FeedbackType:
        if typed_feedback_id(*place, kind) == withdrawal.feedback_id:
            return kind
    return None
