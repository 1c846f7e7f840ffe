"""Outputs become records that go on with the trace of the answer they are about."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from services.aggregator.codec import write_of
from services.aggregator.fold import Output
from shared.contracts.events.preferences import PairSource, PreferencePair, PreferenceRetracted
from shared.contracts.topics import PREFERENCES
from shared.kafka.envelope import header
from shared.observability.tracing import parse_traceparent

NOW = datetime(2026, 11, 25, tzinfo=UTC)
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def pair(*traces: str) -> PreferencePair:
    return PreferencePair(
        pair_id="p",
        tenant="default",
        model="assistant",
        messages=(),
        chosen="yes",
        rejected="no",
        source=PairSource.vote,
        causes=("f:0",),
        traces=traces,
        created_at=NOW,
    )


def traceparent(event: PreferencePair | PreferenceRetracted, event_id: str = "e") -> str:
    return header(write_of(Output(PREFERENCES, "p", event, event_id, NOW)).headers, "traceparent")


def test_an_output_keeps_the_trace_and_a_repeat_is_the_same_record() -> None:
    first = traceparent(pair(TRACE, "0" * 31 + "1"))
    assert parse_traceparent(first) == TRACE
    assert traceparent(pair(TRACE)) == first
    assert traceparent(pair(TRACE), "another") != first


@pytest.mark.parametrize("made_by_a_client", ["my-trace", "x" * 32, "0" * 32])
def test_an_id_that_is_no_trace_gets_no_header(made_by_a_client: str) -> None:
    assert traceparent(pair(made_by_a_client)) == ""
    retracted = PreferenceRetracted(pair_id="p", tenant="t", reason="withdrawn", created_at=NOW)
    assert traceparent(retracted) == ""
