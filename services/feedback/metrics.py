"""Metrics of the feedback service. Every label takes its values from a closed set."""

from __future__ import annotations

from collections import Counter as Counting
from collections.abc import Iterable
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.feedback.errors import Reason
from shared.contracts.events.feedback import FeedbackSubmitted, FeedbackType, FeedbackWithdrawn
from shared.contracts.events.signals import SignalObserved, SignalType
from shared.contracts.events.votes import Choice

Way = Literal["single", "batch", "intake", "withdrawal", "vote", "comparison"]
WAYS: tuple[Way, ...] = ("single", "batch", "intake", "withdrawal", "vote", "comparison")
PUBLISH_EDGES_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
INTAKE_EDGES_S = (0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0, 21_600.0, 86_400.0)
COMPARISON_EDGES_S = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class FeedbackMetrics:
    """All time series of the service, created at 0, so that no traffic differs from no data."""

    def __init__(self, registry: CollectorRegistry) -> None:
        accepted = Counter(
            "ratchet_ingestion_accepted_total",
            "Feedback acknowledged by the brokers, by type and way in.",
            ("type", "way"),
            registry=registry,
        )
        self._accepted: dict[tuple[str, Way], Counter] = {
            (kind, way): accepted.labels(kind.value, way)
            for kind in (*FeedbackType, *SignalType)
            for way in WAYS
            if way not in ("vote", "comparison")
        }
        rejected = Counter(
            "ratchet_ingestion_rejected_total",
            "Feedback, votes and comparisons refused, by reason and way in.",
            ("reason", "way"),
            registry=registry,
        )
        self._rejected = {
            (reason, way): rejected.labels(reason.value, way) for reason in Reason for way in WAYS
        }
        anonymous = Counter(
            "ratchet_ingestion_anonymous_total",
            "Accepted feedback that names no user: it counts, but neither judges nor teaches.",
            ("way",),
            registry=registry,
        )
        self._anonymous = {way: anonymous.labels(way) for way in ("single", "batch", "intake")}
        publish = Histogram(
            "ratchet_ingestion_publish_duration_seconds",
            "From a checked event to the brokers' acknowledgement, or to giving up.",
            ("outcome",),
            buckets=PUBLISH_EDGES_S,
            registry=registry,
        )
        self.publish_ok = publish.labels("ok")
        self.publish_failed = publish.labels("failed")
        self.intake_age = Histogram(
            "ratchet_intake_age_seconds",
            "From the time of a record of an intake topic until it was stored as feedback.",
            buckets=INTAKE_EDGES_S,
            registry=registry,
        )
        self.waiting = Gauge(
            "ratchet_ingestion_waiting_events",
            "Events that wait for the brokers' acknowledgement.",
            registry=registry,
        )
        self.comparison_seconds = Histogram(
            "ratchet_comparison_duration_seconds",
            "From the request to two answers side by side.",
            buckets=COMPARISON_EDGES_S,
            registry=registry,
        )
        pairs = Counter(
            "ratchet_comparison_pairs_total",
            "Comparisons whose answers a reward model was to choose, by whether it did.",
            ("outcome",),
            registry=registry,
        )
        self.pairs_chosen, self.pairs_drawn = pairs.labels("chosen"), pairs.labels("drawn")
        votes = Counter(
            "ratchet_comparison_votes_total",
            "Votes acknowledged by the brokers, by choice.",
            ("choice",),
            registry=registry,
        )
        self.votes = {choice: votes.labels(choice.value) for choice in Choice}

    def accepted(
        self, event: FeedbackSubmitted | SignalObserved | FeedbackWithdrawn, way: Way
    ) -> None:
        """Count feedback, a signal or a withdrawal that was stored."""
        self._accepted[event.type, way].inc()
        if not isinstance(event, FeedbackWithdrawn) and event.anonymous:
            self._anonymous[way].inc()

    def accepted_batch(self, kinds: Iterable[str], *, anonymous: int) -> None:
        """Count what of a batch was stored, each series once: an increment takes a lock."""
        for kind, count in Counting(kinds).items():
            self._accepted[kind, "batch"].inc(count)
        self._anonymous["batch"].inc(anonymous)

    def rejected(self, reason: Reason, way: Way) -> None:
        """Count one refusal."""
        self._rejected[reason, way].inc()
