"""What raters say of one answer on a page beyond their choice: corrections and marked spans."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from services.feedback.errors import Invalid, invalid
from services.feedback.submissions import REVISION_EPOCH, read_submission, submitted
from services.feedback.voting.invites import Rater
from services.feedback.voting.spans import MarkedSpan, liked_parts, without_disliked
from shared.contracts.events.feedback import FeedbackSubmitted, FeedbackType
from shared.contracts.events.signals import SignalObserved
from shared.contracts.events.votes import Side
from shared.errors import FieldError
from shared.redaction.detection import Redact


def marks(
    answer: Side,
    spans: Sequence[MarkedSpan],
    rater: Rater,
    *,
    feedback_id: str,
    category: str,
    at: datetime,
    redact: Redact,
) -> list[FeedbackSubmitted | SignalObserved]:
    """The events of marked spans; the last marks of an answer count.

    Disliked spans are a correction: the answer without them. Liked ones are a comment that quotes
    them.

    Raises:
        Invalid: a span lies behind the text, nothing is left without the disliked ones, or nothing
            is marked.

    """
    text = answer.completion
    if any(span.end > len(text) for span in spans):
        raise _bad_spans(f"a part ends behind the answer's {len(text)} characters")
    metadata = {"category": category, "vote_source": "page"}
    metadata |= {
        f"spans_{name}": ",".join(str(span) for span in spans if span.liked is liked)
        for name, liked in (("liked", True), ("disliked", False))
    }
    return [
        submitted(
            read_submission(
                {
                    "feedback_id": f"{feedback_id}:{kind.value}",
                    "revision": int((at - REVISION_EPOCH).total_seconds()),
                    "trace_id": answer.trace_id,
                    "type": kind.value,
                    "value": value,
                    "user_id": rater.user_id,
                    "metadata": metadata,
                }
            ),
            tenant=rater.tenant,
            at=at,
            redact=redact,
        )
        for kind, value in _said(text, spans).items()
    ]


def _said(text: str, spans: Sequence[MarkedSpan]) -> dict[FeedbackType, object]:
    values: dict[FeedbackType, object] = {}
    if any(not span.liked for span in spans):
        corrected = without_disliked(text, spans)
        if not corrected or corrected == text:
            raise _bad_spans("nothing is left of the answer without what you dislike")
        values[FeedbackType.text_correction] = {"original": text, "corrected": corrected}
    if quoted := liked_parts(text, spans):
        values[FeedbackType.comment] = quoted
    return values


def _bad_spans(rule: str) -> Invalid:
    return invalid([FieldError("spans", rule, "mark other parts")])


def correction(
    answer: Side,
    corrected: str,
    rater: Rater,
    *,
    category: str,
    source: str,
    at: datetime,
    redact: Redact,
) -> FeedbackSubmitted | SignalObserved:
    """The event of a correction; a rater's last one of an answer counts.

    Raises:
        Invalid: the text is too long or empty.

    """
    submission = read_submission(
        {
            "trace_id": answer.trace_id,
            "type": FeedbackType.text_correction.value,
            "value": {"original": answer.completion, "corrected": corrected},
            "user_id": rater.user_id,
            "metadata": {"category": category, "vote_source": source},
        }
    )
    return submitted(submission, tenant=rater.tenant, at=at, redact=redact)
