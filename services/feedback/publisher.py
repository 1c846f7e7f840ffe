"""Publisher: writes events to the feedback topic with a bounded queue and a circuit breaker."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from services.feedback.circuit_breaker import CircuitBreaker, Refusal, State
from services.feedback.errors import Busy, EventLogUnavailable, EventTooLarge
from services.feedback.metrics import Metrics
from services.feedback.submissions import event_id
from shared.clock import Clock
from shared.contracts.events.feedback import FeedbackSubmitted, FeedbackWithdrawn
from shared.contracts.events.votes import VoteCast
from shared.contracts.topics import FEEDBACK
from shared.kafka.envelope import encode
from shared.kafka.log import EventLog, LogUnavailable, NewRecord
from shared.observability.events import Unavailable

log = structlog.get_logger(__name__)

SOURCE = "/ratchet/feedback"
StoredEvent = FeedbackSubmitted | FeedbackWithdrawn | VoteCast
MAX_EVENT_BYTES = 900_000
"""Largest value that is stored; brokers refuse records of 1 MiB."""


def feedback_record(
    event: FeedbackSubmitted | FeedbackWithdrawn, *, traceparent: str = ""
) -> NewRecord:
    """The record of one revision, keyed by its trace.

    Raises:
        EventTooLarge: the event is larger than what is stored.

    """
    identity = event_id(event.feedback_id, event.revision)
    return _record(event, event.trace_id, identity, traceparent)


def vote_record(event: VoteCast, *, traceparent: str = "") -> NewRecord:
    """The record of a vote, keyed by its comparison.

    Raises:
        EventTooLarge: the event is larger than what is stored.

    """
    identity = event_id(event.comparison_id, event.revision)
    return _record(event, event.comparison_id, identity, traceparent)


class FeedbackPublisher:
    """Stores records on the feedback topic, or refuses within `timeout_s` seconds."""

    def __init__(
        self,
        log: EventLog,
        breaker: CircuitBreaker,
        metrics: Metrics,
        clock: Clock,
        *,
        timeout_s: float,
    ) -> None:
        self._log = log
        self._breaker = breaker
        self._metrics = metrics
        self._clock = clock
        self._timeout_s = timeout_s

    async def store(self, records: Sequence[NewRecord]) -> None:
        """Return once the brokers acknowledged every record.

        Raises:
            Busy: as many events are waiting as may wait.
            EventLogUnavailable: the breaker is open, or the brokers did not acknowledge in time; a
                record may have been stored all the same, and sending it again is safe.

        """
        start = self._clock.monotonic()
        admission = self._breaker.admit(len(records), start)
        if isinstance(admission, Refusal):
            raise _refused(admission)
        try:
            await self._log.append_many(records, timeout_s=self._timeout_s)
        except LogUnavailable as error:
            now = self._clock.monotonic()
            self._breaker.failed(admission, now)
            self._metrics.publish_failed.observe(now - start)
            log.warning(Unavailable.kafka, during="publish", events=len(records), error=str(error))
            raise EventLogUnavailable(
                "the event log did not acknowledge in time. Send it again with the same ids: "
                "what was stored after all still counts once",
                retry_after_s=1,
            ) from error
        except BaseException:
            self._breaker.gave_up(admission)
            raise
        self._breaker.succeeded(admission)
        self._metrics.publish_ok.observe(self._clock.monotonic() - start)

    @property
    def waiting(self) -> int:
        """Events that wait for the brokers now."""
        return self._breaker.waiting

    def refuses(self) -> bool:
        """True while the circuit breaker is open."""
        return self._breaker.state(self._clock.monotonic()) is State.open


def _record(event: StoredEvent, key: str, identity: str, traceparent: str) -> NewRecord:
    value = event.to_json()
    if len(value) > MAX_EVENT_BYTES:
        raise EventTooLarge(
            f"the event takes {len(value)} bytes, at most {MAX_EVENT_BYTES} are stored; "
            "leave out prompt and completion, the recorded interaction has them"
        )
    headers = encode(
        event,
        source=SOURCE,
        event_id=identity,
        time=event.submitted_at,
        traceparent=traceparent,
    )
    return NewRecord(FEEDBACK, key, value, headers)


def _refused(refusal: Refusal) -> Busy | EventLogUnavailable:
    if refusal.busy:
        return Busy(
            "as many events as may wait are waiting for the event log; send it again in a moment",
            retry_after_s=refusal.retry_after_s,
        )
    return EventLogUnavailable(
        "the event log is unavailable; send it again after the time in Retry-After",
        retry_after_s=refusal.retry_after_s,
    )
