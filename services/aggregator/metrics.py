"""Metrics of the aggregator. What is counted comes from confirmed checkpoints alone.

A scrape decodes the newest confirmed checkpoint of each partition this worker owns, so a figure
that a crash could take back is never shown.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from services.aggregator.aggregates import PAIRED, RATIOS, Aggregates, Part, VoterScores
from services.aggregator.checkpoint import SHOWN, decode_checkpoint
from shared.voters import VoterLabels

AGE_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 30, 60, 300, 3600, 86_400)


class PartitionGauges(NamedTuple):
    """What a partition holds beside its checkpoint."""

    pending: int
    """Feedbacks that wait for their interaction."""
    unknown: int
    """How many of them wait longer than any interaction takes."""
    rows: int
    row_bytes: int
    """Of traces, as they are written."""
    tenants_over: int
    """Tenants whose rows take more than their budget."""


class EventAges(Collector):
    """Histogram of the events' ages by topic, observed by the batch: a tenth of what each alone takes."""

    def __init__(self) -> None:
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}

    def observe(self, topic: str, times_s: Sequence[float], now_s: float) -> None:
        """Take the times of events that are counted for good now; a time to come is no age."""
        counts = self._counts.setdefault(topic, [0] * (len(AGE_BUCKETS_S) + 1))
        ages = [max(0.0, now_s - at_s) for at_s in times_s]
        for age_s in ages:
            counts[bisect_left(AGE_BUCKETS_S, age_s)] += 1
        self._sums[topic] = self._sums.get(topic, 0.0) + sum(ages)

    def describe(self) -> Iterator[Metric]:
        """No fixed description, as of the other collector."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """The family of design section 10."""
        family = HistogramMetricFamily(
            "ratchet_event_age_seconds",
            "From the time of an event until it is counted for good.",
            labels=("topic",),
        )
        edges = [*(str(float(edge)) for edge in AGE_BUCKETS_S), "+Inf"]
        for topic, counts in self._counts.items():
            buckets = list(zip(edges, accumulate(counts), strict=True))
            family.add_metric((topic,), buckets, self._sums[topic])
        yield family


class CheckpointCollector(Collector):
    """Counters and gauges of the partitions owned now."""

    def __init__(self) -> None:
        self._heads: dict[int, bytes] = {}
        self._parts: dict[int, dict[Part, bytes]] = {}
        self._gauges: dict[int, PartitionGauges] = {}

    def show(
        self,
        partition: int,
        head: bytes,
        changed: Mapping[Part, bytes | None],
        gauges: PartitionGauges,
    ) -> None:
        """Make a confirmed checkpoint what scrapes see of its partition.

        Args:
            partition: Its number.
            head: The checkpoint's head.
            changed: Its parts that are not those of the checkpoint shown before; None is one that is gone.
            gauges: What the partition holds beside it.

        """
        parts = self._parts.setdefault(partition, {})
        for part, value in changed.items():
            if value is None:
                parts.pop(part, None)
            elif part.kind in SHOWN:
                parts[part] = value
        self._heads[partition] = head
        self._gauges[partition] = gauges

    def hide(self) -> None:
        """Show no partition: none is owned until recovery has ended."""
        self._heads.clear()
        self._parts.clear()
        self._gauges.clear()

    def describe(self) -> Iterator[Metric]:
        """No fixed description: registering must not scrape."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """The families of design section 10, by partition."""
        feedback = CounterMetricFamily(
            "ratchet_feedback",
            "Feedback counted, once each, by the version it is about.",
            labels=("version", "type", "partition"),
        )
        score_labels = ("version", "arm", "rollout", "segment", "partition")
        score_sum = CounterMetricFamily(
            "ratchet_satisfaction_sum",
            "Sum of first satisfaction scores in [0, 1] on randomly assigned traffic.",
            labels=score_labels,
        )
        score_count = CounterMetricFamily(
            "ratchet_satisfaction_count",
            "How many scores are in ratchet_satisfaction_sum_total.",
            labels=score_labels,
        )
        voter_labels = ("version", "arm", "rollout", "by", "voter", "partition")
        voter_sum = CounterMetricFamily(
            "ratchet_satisfaction_voter_sum",
            "Sum of the scores of a rollout by tenant and API key, hashed; the ninth on share labels.",
            labels=voter_labels,
        )
        voter_count = CounterMetricFamily(
            "ratchet_satisfaction_voter_count",
            "How many scores are in ratchet_satisfaction_voter_sum_total.",
            labels=voter_labels,
        )
        votes = CounterMetricFamily(
            "ratchet_votes",
            "Votes on blind comparisons: chosen over rejected, or tie and both_bad.",
            labels=("chosen", "rejected", "result", "partition"),
        )
        outcomes = CounterMetricFamily(
            "ratchet_feedback_outcomes",
            "What became of feedback records: accepted, edited, withdrawn, duplicate, conflict …",
            labels=("outcome", "partition"),
        )
        audience = {
            "requests": CounterMetricFamily(
                "ratchet_audience_requests",
                "Requests on live traffic by category, locale or segment.",
                labels=("dimension", "value", "partition"),
            ),
            "feedback": CounterMetricFamily(
                "ratchet_audience_feedback",
                "Feedback on live traffic by category, locale or segment of its request.",
                labels=("dimension", "value", "partition"),
            ),
        }
        paired = GaugeMetricFamily(
            "ratchet_implied_satisfaction_sums",
            "Of answers with implied (x) and explicit (y) satisfaction: how many, and sums of both.",
            labels=("version", "window", "sum", "partition"),
        )
        pending = GaugeMetricFamily(
            "ratchet_feedback_pending",
            "Feedback that waits for its interaction.",
            labels=("partition",),
        )
        unknown = GaugeMetricFamily(
            "ratchet_feedback_unknown_trace",
            "Feedback that waits so long for its interaction that no router can have made its trace.",
            labels=("partition",),
        )
        rows = GaugeMetricFamily(
            "ratchet_aggregator_rows",
            "Rows held: traces, prompts with ratings, users with scores of a day.",
            labels=("partition",),
        )
        row_bytes = GaugeMetricFamily(
            "ratchet_aggregator_row_bytes",
            "Bytes of the traces' rows held, before compression.",
            labels=("partition",),
        )
        tenants_over = GaugeMetricFamily(
            "ratchet_aggregator_tenants_over_budget",
            "Tenants whose rows take more than RATCHET_AGGREGATOR_TENANT_MAX_MIB in a partition's share.",
            labels=("partition",),
        )
        held = (pending, unknown, rows, row_bytes, tenants_over)
        quality_labels = ("version", "window", "figure", "partition")
        numerator = GaugeMetricFamily(
            "ratchet_quality_numerator",
            "Numerator of a live quality figure.",
            labels=quality_labels,
        )
        denominator = GaugeMetricFamily(
            "ratchet_quality_denominator",
            "Denominator of a live quality figure.",
            labels=quality_labels,
        )
        for number, head in sorted(self._heads.items()):
            partition, parts = str(number), self._parts[number]
            aggregates = decode_checkpoint(head, lambda part, _, held=parts: held.get(part), SHOWN)
            for (version, kind), count in aggregates.feedback.items():
                feedback.add_metric((version, kind, partition), count)
            for series, (total, count, _) in aggregates.scores.items():
                score_sum.add_metric((*series, partition), total)
                score_count.add_metric((*series, partition), count)
            for voter, (total, count) in by_bounded_voter(aggregates).items():
                voter_sum.add_metric((*voter, partition), total)
                voter_count.add_metric((*voter, partition), count)
            for vote, count in aggregates.votes.items():
                votes.add_metric((*vote, partition), count)
            for outcome, count in aggregates.outcomes.items():
                outcomes.add_metric((outcome, partition), count)
            for (what, dimension, value), count in aggregates.audience.items():
                audience[what].add_metric((dimension, value, partition), count)
            for gauge, count in zip(held, self._gauges[number], strict=True):
                gauge.add_metric((partition,), count)
            for (version, window), sums in aggregates.live().items():
                for figure, (above, below) in RATIOS.items():
                    labels = (version, window, figure, partition)
                    numerator.add_metric(labels, sum(sums[index] for index in above))
                    denominator.add_metric(labels, sum(sums[index] for index in below))
                for name, index in zip(("n", "x", "y", "xx", "yy", "xy"), PAIRED, strict=True):
                    paired.add_metric((version, window, name, partition), sums[index])
        yield from (feedback, score_sum, score_count, voter_sum, voter_count, votes, outcomes)
        yield from (*held, numerator, denominator, paired, *audience.values())


def by_bounded_voter(aggregates: Aggregates) -> dict[VoterScores, tuple[float, float]]:
    """Sum and count of the scores by voter; each rollout has a bounded set of labels."""
    labels: dict[str, VoterLabels] = {}
    found: dict[VoterScores, tuple[float, float]] = {}
    for (version, arm, rollout, kind, voter), (score, more, _) in aggregates.voter_scores.items():
        bounded = labels.setdefault(rollout, VoterLabels()).bounded(kind, voter)
        series = (version, arm, rollout, kind, bounded)
        total, count = found.get(series, (0.0, 0.0))
        found[series] = (total + score, count + more)
    return found


class AggregatorMetrics:
    """The service's registry and what the worker itself observes."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.checkpoints = CheckpointCollector()
        self.registry.register(self.checkpoints)
        self.event_ages = EventAges()
        self.registry.register(self.event_ages)
        self.events = Counter(
            "ratchet_aggregator_events_total",
            "Events read, by topic; replays after a crash included.",
            ("topic",),
            registry=self.registry,
        )
        self.batches = Histogram(
            "ratchet_aggregator_batch_write_seconds",
            "Writing one batch: outputs, rows and checkpoints until the brokers confirmed them.",
            registry=self.registry,
        )
        self.owned = Gauge(
            "ratchet_aggregator_partitions",
            "Partitions owned and recovered.",
            registry=self.registry,
        )
        self.offset_gaps = Counter(
            "ratchet_aggregator_offset_gaps_total",
            "Offsets that the log skipped, by topic; retention explains it after long absence.",
            ("topic",),
            registry=self.registry,
        )
        self._state_bytes = Gauge(
            "ratchet_aggregator_state_bytes",
            "Rows and their indexes on disk.",
            registry=self.registry,
        )

    def watch_state(self, disk_bytes: Callable[[], int]) -> None:
        """Measure the rows on disk at each scrape."""
        self._state_bytes.set_function(disk_bytes)
