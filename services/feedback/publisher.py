"""Publisher: writes events to the feedback topic with a bounded queue and a circuit breaker."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from services.feedback.circuit_breaker import CircuitBreaker, Refusal, State
from services.feedback.errors import Busy, EventLogUnavailable, EventTooLarge
from services.feedback.metrics import FeedbackMetrics
from services.feedback.submissions import event_id
from shared.clock import Clock
from shared.contracts.events.feedback import FeedbackSubmitted, FeedbackWithdrawn
from shared.contracts.events.signals import SignalObserved
from shared.contracts.events.votes import VoteCast
from shared.contracts.topics import FEEDBACK
from shared.kafka.log import (
    EventLog,
    LogUnavailable,
    NewRecord,
    RecordRefused,
    event_record,
    record_bytes,
)
from shared.observability.events import Unavailable

log = structlog.get_logger(__name__)

SOURCE = "/ratchet/feedback"
StoredEvent = FeedbackSubmitted | SignalObserved | FeedbackWithdrawn | VoteCast
MAX_RECORD_BYTES = 900_000
"""Largest key, headers and value together; brokers refuse records of 1 MiB by default."""
MIN_WAIT_S = 0.1
"""Least time for an append that follows a refused one."""


def feedback_record(
    event: FeedbackSubmitted | SignalObserved | FeedbackWithdrawn, *, traceparent: str = ""
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
        metrics: FeedbackMetrics,
        clock: Clock,
        *,
        timeout_s: float,
    ) -> None:
        self._log = log
        self._breaker = breaker
        self._metrics = metrics
        self._clock = clock
        self._timeout_s = timeout_s

    async def store(self, record: NewRecord) -> None:
        """Return once the brokers acknowledged the record.

        Raises:
            EventTooLarge: the brokers refuse it for good.
            Busy, EventLogUnavailable: as for `store_batch`.

        """
        for refused in (await self.store_batch([record])).values():
            raise refused

    async def store_batch(self, records: Sequence[NewRecord]) -> dict[int, EventTooLarge]:
        """Return once the brokers acknowledged every record, or refused it for good.

        A refused record is an error of its own (by index) and no failure of the log: the circuit
        breaker stays as it is.

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
            refused = await self._append(records, start)
        except LogUnavailable as error:
            now = self._clock.monotonic()
            self._breaker.failed(admission, now)
            self._metrics.publish_failed.observe(now - start)
            log.warning(Unavailable.kafka, during="publish", events=len(records), error=str(error))
            raise EventLogUnavailable(
                "the event log did not acknowledge in time; send it again with the same ids: "
                "what was stored after all still counts once",
                retry_after_s=1,
            ) from error
        except BaseException:
            self._breaker.gave_up(admission)
            raise
        if refused:
            self._breaker.gave_up(admission)
        else:
            self._breaker.succeeded(admission)
            self._metrics.publish_ok.observe(self._clock.monotonic() - start)
        return refused

    async def _append(self, records: Sequence[NewRecord], start: float) -> dict[int, EventTooLarge]:
        """Append records together, or each for itself where the brokers refuse one of them for good.

        Raises:
            LogUnavailable: not all were acknowledged.

        """
        try:
            await self._log.append_many(records, timeout_s=self._timeout_s)
        except RecordRefused as error:
            if len(records) == 1:
                return {0: _refused_record(records[0], error)}
        else:
            return {}
        left_s = max(self._timeout_s - (self._clock.monotonic() - start), MIN_WAIT_S)
        alone = (self._log.append_many((record,), timeout_s=left_s) for record in records)
        results = await asyncio.gather(*alone, return_exceptions=True)
        refused: dict[int, EventTooLarge] = {}
        for index, result in enumerate(results):
            if isinstance(result, RecordRefused):
                refused[index] = _refused_record(records[index], result)
            elif isinstance(result, BaseException):
                raise result
        return refused

    @property
    def waiting(self) -> int:
        """Events that wait for the brokers now."""
        return self._breaker.waiting

    def refuses(self) -> bool:
        """True while the circuit breaker is open."""
        return self._breaker.state(self._clock.monotonic()) is State.open


def _record(event: StoredEvent, key: str, identity: str, traceparent: str) -> NewRecord:
    record = event_record(
        FEEDBACK,
        event,
        key=key,
        source=SOURCE,
        event_id=identity,
        time=event.submitted_at,
        traceparent=traceparent,
    )
    if (size := record_bytes(record)) > MAX_RECORD_BYTES:
        raise _too_large(size, f"at most {MAX_RECORD_BYTES} are stored")
    return record


def _refused_record(record: NewRecord, error: RecordRefused) -> EventTooLarge:
    log.warning("publish.record_refused", key=record.key, error=str(error))
    return _too_large(record_bytes(record), "more than the brokers take")


def _too_large(size: int, rule: str) -> EventTooLarge:
    return EventTooLarge(
        f"the event takes {size} bytes with its key and headers, {rule}; "
        "leave out prompt and completion, the recorded interaction has them, and shorten the rest"
    )


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
