"""Corrections that raters make on a page: feedback on one answer that they saw."""

from __future__ import annotations

from datetime import datetime

from services.feedback.submissions import Redact, read_submission, submitted
from services.feedback.voting.invites import Rater
from shared.contracts.events.feedback import FeedbackSubmitted, FeedbackType
from shared.contracts.events.signals import SignalObserved
from shared.contracts.events.votes import Side


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
