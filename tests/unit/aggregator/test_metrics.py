"""Ages of events are exposed as a histogram of the Prometheus client's would be."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.exposition import generate_latest

from services.aggregator.metrics import AGE_BUCKETS_S, EventAges

NOW = 1_000_000.0
AGES = {"a": [0.0, 0.1, 0.11, 3.0, 59.9, 100_000.0, -5.0], "b": [1.0]}


def exposed(registry: CollectorRegistry) -> list[str]:
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if "_created" not in line]


def test_ages_of_batches_are_exposed_as_a_histogram() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    ages = EventAges()
    ours.register(ages)
    histogram = Histogram(
        "ratchet_event_age_seconds",
        "From the time of an event until it is counted for good.",
        ("topic",),
        buckets=AGE_BUCKETS_S,
        registry=theirs,
    )
    for topic, found in AGES.items():
        for half in (found[:3], found[3:]):
            ages.observe(topic, [NOW - age_s for age_s in half], NOW)
        for age_s in found:
            histogram.labels(topic).observe(max(0.0, NOW - (NOW - age_s)))
    assert exposed(ours) == exposed(theirs)
