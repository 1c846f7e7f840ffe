"""Intake: consumes the feedback that products publish to their tenant's intake topic.

Rules and identity are those of the HTTP API. Redelivery is idempotent: an event takes its time
from the record, so reading a record twice gives the same event.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import ClassVar

from pydantic import ConfigDict

from services.feedback.errors import Busy, EventLogUnavailable, FeedbackError, Reason, invalid
from services.feedback.feedback_spans import FeedbackSpans
from services.feedback.metrics import FeedbackMetrics
from services.feedback.publisher import FeedbackPublisher, feedback_record
from services.feedback.submissions import (
    DEFAULT_RULES,
    SubmissionRules,
    read_submission,
    read_withdrawal,
    submitted,
    withdrawn,
)
from shared.clock import Clock
from shared.contracts.events.base import Event
from shared.contracts.events.dead_letters import DeadLetterReason
from shared.contracts.events.feedback import FeedbackSubmitted, FeedbackWithdrawn
from shared.contracts.events.signals import SignalObserved
from shared.errors import FieldError
from shared.kafka.consumer import Reject
from shared.kafka.envelope import header, models_by_type
from shared.kafka.log import LogUnavailable, Record
from shared.observability.spans import OFF, SpanKind, Spans
from shared.observability.tracing import rebuilt_traceparent
from shared.quotas import QuotaExceeded, Quotas
from shared.redaction.detection import Redact, redacted

INTAKE_TOPIC = re.compile(r"^ratchet\.feedback-intake\.(?P<tenant>.+)\.v1$")
GROUP = "ratchet.feedback-intake"


class SubmittedBody(Event):
    """Any JSON object; the rules of a submission are applied to it afterwards."""

    model_config = ConfigDict(extra="allow")
    ce_type: ClassVar[str] = FeedbackSubmitted.ce_type


class SignalBody(Event):
    """Any JSON object; the rules of a submission are applied to it afterwards."""

    model_config = ConfigDict(extra="allow")
    ce_type: ClassVar[str] = SignalObserved.ce_type


class WithdrawnBody(Event):
    """Any JSON object; the rules of a withdrawal are applied to it afterwards."""

    model_config = ConfigDict(extra="allow")
    ce_type: ClassVar[str] = FeedbackWithdrawn.ce_type


INTAKE_MODELS = models_by_type(SubmittedBody, SignalBody, WithdrawnBody)
_LETTER_REASONS: dict[Reason, DeadLetterReason] = {
    Reason.too_large: "too_large",
    Reason.forbidden: "policy",
}


class Intake:
    """Consumer handler of the intake topics: validates a record and publishes it as feedback."""

    def __init__(
        self,
        publisher: FeedbackPublisher,
        metrics: FeedbackMetrics,
        *,
        redact: Redact,
        clock: Clock,
        quotas: Quotas,
        rules: SubmissionRules = DEFAULT_RULES,
        spans: Spans = OFF,
    ) -> None:
        self._publisher = publisher
        self._metrics = metrics
        self._redact = redact
        self._clock = clock
        self._quotas = quotas
        self._rules = rules
        self._spans = FeedbackSpans(spans, clock)

    async def handle(self, event: Event, record: Record) -> None:
        """Store what a product published.

        Raises:
            Reject: it breaks a rule, its tenant is over its quota, or the brokers refuse it for
                good; the detail says which.
            LogUnavailable: not acknowledged; the record is to be handled again.

        """
        now = self._clock.now()
        try:
            stored = await redacted(
                self._redact, lambda redact: self.read(event, record, redact, now=now)
            )
            self._quotas.spend(stored.tenant)
            await self._store(stored, record)
        except QuotaExceeded as error:
            self._metrics.rejected(Reason.rate_limited, "intake")
            remedy = "replay the dead letters of this topic later, or raise the tenant's limit"
            raise Reject("policy", f"{error.detail}; {remedy}") from error
        except FeedbackError as error:
            self._metrics.rejected(Reason(error.code), "intake")
            raise Reject(_LETTER_REASONS.get(Reason(error.code), "schema"), error.detail) from error
        self._metrics.accepted(stored, "intake")
        waited_s = self._clock.now().timestamp() - record.timestamp_ms / 1000
        self._metrics.intake_age.observe(max(0.0, waited_s))

    async def _store(
        self, stored: FeedbackSubmitted | SignalObserved | FeedbackWithdrawn, record: Record
    ) -> None:
        given = rebuilt_traceparent(header(record.headers, "traceparent"))
        place = f"{record.topic}/{record.partition}/{record.offset}"
        context = self._spans.context(given, stored.trace_id, place)
        entry = feedback_record(stored, traceparent=context)
        try:
            await self._publisher.store(entry)
        except (Busy, EventLogUnavailable) as error:
            # Else the tries of an outage would use the quota up, and the records be refused.
            self._quotas.refund(stored.tenant)
            raise LogUnavailable(error.detail) from error
        self._spans.stored("process feedback-intake", context, given, stored, SpanKind.consumer)

    def read(
        self, event: Event, record: Record, redact: Redact, *, now: datetime
    ) -> FeedbackSubmitted | SignalObserved | FeedbackWithdrawn:
        """The event of a record: its tenant is its topic's, its time the record's.

        Raises:
            FeedbackError: it breaks a rule.

        """
        found = INTAKE_TOPIC.match(record.topic)
        assert found is not None, record.topic
        tenant = found["tenant"]
        at = self._time_of(record, now)
        body = event.model_extra or {}
        if isinstance(event, WithdrawnBody):
            return withdrawn(read_withdrawal(body), tenant=tenant, at=at, rules=self._rules)
        return submitted(
            read_submission(body),
            tenant=tenant,
            at=at,
            redact=redact,
            rules=self._rules,
        )

    def _time_of(self, record: Record, now: datetime) -> datetime:
        """A record's time, which its producer chose, within the bounds of a submission's own.

        Raises:
            Invalid: it is beyond what a date can say, or the producer's clock is wrong.

        """
        try:
            at = datetime.fromtimestamp(record.timestamp_ms / 1000, UTC)
        except (ValueError, OverflowError, OSError):
            rule = f"of the record is {record.timestamp_ms} ms since 1970, which is no date"
            remedy = "let the client library set it"
            raise invalid([FieldError("timestamp", rule, remedy)]) from None
        rules = self._rules
        if not now - rules.max_age <= at <= now + rules.max_ahead:
            rule = (
                f"of the record is {at.isoformat()}, more than {rules.max_age} before or "
                f"{rules.max_ahead} after {now.isoformat(timespec='seconds')}"
            )
            raise invalid(
                [FieldError("timestamp", rule, "set the clock of the producer's machine")]
            )
        return at
