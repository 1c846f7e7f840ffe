"""A million interactions held: memory and start-up time are those of a tenth of them."""

from __future__ import annotations

import pytest

from benchmarks.aggregator_history import READY_GOAL_S, is_flat, measure

pytestmark = [pytest.mark.verify, pytest.mark.timeout(5400)]

HELD = 1_000_000


def test_memory_and_start_up_time_do_not_grow_with_history(
    record_property: pytest.RecordProperty,
) -> None:
    found = measure(HELD, share=0.08)
    for row in found:
        record_property(f"rss_mib_{row.held}", str(row.rss_mib))
        record_property(f"ready_s_{row.held}", str(row.ready_s))
        record_property(f"state_mib_{row.held}", str(row.state_mib))
        record_property(f"events_per_cpu_s_{row.held}", str(row.events_per_cpu_s))
    assert all(row.exact for row in found)
    assert is_flat(found)
    assert max(row.ready_s for row in found) <= READY_GOAL_S
