"""Design section 10: what each attempt changes, and what a scrape says."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from services.router.metrics import Histogram, RolloutSeries, RouterMetrics
from services.router.settings import MAX_SEGMENTS
from shared.contracts.events.interactions import Outcome

KEY = ("m", "m-v1.1", "candidate", "r1", "")


def scrape(metrics):
    registry = CollectorRegistry()
    registry.register(metrics)
    text = generate_latest(registry).decode()
    return [s for family in text_string_to_metric_families(text) for s in family.samples]


def value(metrics, name, **labels):
    found = [
        sample.value
        for sample in scrape(metrics)
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    assert found, f"no sample {name} {labels}"
    return sum(found)


@pytest.mark.parametrize(
    ("outcome", "waited_s", "duration_s", "counted", "slow"),
    [
        (Outcome.ok, 0.3, 0.3, True, False),
        (Outcome.ok, 2.1, 2.1, True, True),
        (Outcome.ok, 0.3, 9.0, True, False),
        (Outcome.server_error, 0.1, 0.1, True, False),
        (Outcome.timeout, 30.0, 30.0, True, True),
        (Outcome.crash, 0.0, 0.0, True, False),
        (Outcome.client_error, 0.1, 0.1, False, False),
        (Outcome.cancelled, 1.9, 1.9, False, False),
        (Outcome.cancelled, 2.5, 2.5, True, True),
        (Outcome.cancelled, 0.3, 2.5, True, False),
    ],
)
def test_what_counts_for_error_rate_and_slow_share(outcome, waited_s, duration_s, counted, slow):
    metrics = RouterMetrics()
    metrics.attempt(KEY, outcome, waited_s, duration_s=duration_s, slow_after_s=2.0)
    name = "ratchet_router_request_duration_seconds"
    assert value(metrics, "ratchet_router_requests_total", outcome=outcome.value) == 1
    count = value(metrics, f"{name}_count", version="m-v1.1")
    assert count == int(counted)
    assert value(metrics, "ratchet_router_slow_requests_total", version="m-v1.1") == int(slow)


def test_a_limit_is_an_edge_of_the_waits_and_ends_early_cancels():
    metrics = RouterMetrics(limits=(30.0, 0.7))
    metrics.attempt(KEY, Outcome.ok, 0.6, duration_s=0.6, slow_after_s=0.7)
    metrics.attempt(KEY, Outcome.ok, 12.0, duration_s=12.0, slow_after_s=30.0)
    metrics.attempt(KEY, Outcome.cancelled, 12.0, duration_s=12.0, slow_after_s=30.0)
    metrics.attempt(KEY, Outcome.ok, 0.8, duration_s=0.8, slow_after_s=0.7)
    name = "ratchet_router_request_duration_seconds"
    assert value(metrics, f"{name}_bucket", le="0.7") == 1
    assert value(metrics, f"{name}_bucket", le="30.0") == 3
    assert value(metrics, "ratchet_router_slow_requests_total") == 1


def test_an_open_rollout_has_every_series_at_zero():
    metrics = RouterMetrics(("gold", "free"))
    metrics.open_rollout(RolloutSeries("m", "r1", "m-v1.0", "m-v1.1"))
    got = {
        (s.labels["arm"], s.labels["version"], s.labels["segment"], s.labels["outcome"])
        for s in scrape(metrics)
        if s.name == "ratchet_router_requests_total"
    }
    arms = {("stable", "m-v1.0"), ("candidate", "m-v1.1"), ("fallback", "m-v1.0")}
    expected = {
        (*arm, segment, outcome.value)
        for arm, segment, outcome in product(arms, ("", "gold", "free", "other"), Outcome)
    }
    assert got == expected
    assert value(metrics, "ratchet_router_requests_total") == 0
    for name in ("time_to_first_token", "token_gap", "overhead"):
        assert value(metrics, f"ratchet_router_{name}_seconds_count", rollout="r1") == 0


def test_opening_again_keeps_what_was_counted():
    metrics = RouterMetrics()
    series = RolloutSeries("m", "r1", "m-v1.0", "m-v1.1")
    metrics.open_rollout(series)
    metrics.attempt(KEY, "ok", 0.1, duration_s=0.1, slow_after_s=2.0)
    metrics.open_rollout(series)
    assert value(metrics, "ratchet_router_requests_total", outcome="ok") == 1


@given(st.lists(st.text(max_size=10), max_size=300))
def test_clients_cannot_make_up_segments(given_segments):
    metrics = RouterMetrics(("gold",))
    assert {metrics.segment(one) for one in given_segments} <= {"", "gold", "other"}


def test_a_router_has_at_most_2000_series_with_all_segments_on_every_arm_of_a_rollout():
    segments = tuple(f"segment-{number}" for number in range(MAX_SEGMENTS))
    metrics = RouterMetrics(segments, router="r")
    metrics.open_rollout(RolloutSeries("m", "r1", "m-v1.0", "m-v1.1"))
    for segment in ("", *segments, "other"):
        metrics.attempt(
            ("m", "m-v1.0", "", "", segment), "ok", 0.1, duration_s=0.1, slow_after_s=2.0
        )
    metrics.path(("m", "m-v1.0", "", ""))
    metrics.refused("client_error")
    for number in range(500):
        for version, arm in (("m-v1.0", "stable"), ("m-v1.1", "candidate")):
            path = ("m", version, arm, "r1")
            metrics.voters.add(path, tenant=f"t{number}", key=f"k{number}", figures=("requests",))
    assert len(scrape(metrics)) <= 2_000


def test_figures_without_labels_are_read_at_the_scrape():
    metrics = RouterMetrics()
    figures = {"spool": 1.0, "lost": 2.0, "age": 3.0}
    metrics.read_at_scrape(
        spool_bytes=lambda: figures["spool"],
        events_lost=lambda: figures["lost"],
        events_recovered=lambda: {"spool": 4, "unchecked": 0},
        state_age_s=lambda: figures["age"],
    )
    figures["spool"] = 7.0
    assert value(metrics, "ratchet_router_spool_bytes") == 7
    assert value(metrics, "ratchet_router_events_lost_total") == 2
    assert value(metrics, "ratchet_router_events_recovered_total", folder="spool") == 4
    assert value(metrics, "ratchet_router_events_recovered_total", folder="unchecked") == 0
    assert value(metrics, "ratchet_router_state_age_seconds") == 3


@given(st.lists(st.floats(0, 100), max_size=50))
def test_histogram_buckets_are_cumulative_and_include_their_edge(values):
    edges = (0.5, 2.0, 10.0)
    histogram = Histogram(edges)
    for one in values:
        histogram.observe(one)
    for edge, count in histogram.buckets():
        limit = float("inf") if edge == "+Inf" else float(edge)
        assert count == sum(one <= limit for one in values)
