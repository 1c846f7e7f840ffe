"""A partition's log with offset gaps, handed out by somebody who jumps ahead."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.aggregator.offset_gaps import Gap, OffsetGaps

T = ("t", 0)


def test_what_was_handed_out_too_early_is_read_again() -> None:
    gaps = OffsetGaps()
    assert gaps.meet(*T, 7) is Gap.seek
    assert gaps.meet(*T, 8) is Gap.wait
    assert gaps.meet(*T, 5) is Gap.seek, "an earlier one: the first seek was not early enough"
    assert gaps.meet(*T, 5) is Gap.absent
    assert gaps.meet(*T, 8) is Gap.seek, "another gap"


def test_places_and_assignments_are_apart() -> None:
    gaps = OffsetGaps()
    assert gaps.meet("t", 0, 7) is Gap.seek
    assert gaps.meet("t", 1, 7) is Gap.seek
    gaps.clear()
    assert gaps.meet("t", 0, 7) is Gap.seek


@given(
    stored=st.sets(st.integers(0, 40), min_size=1).map(sorted),
    jumps=st.lists(st.integers(0, 12), max_size=8),
)
def test_every_stored_event_is_taken_once_and_in_order(stored: list[int], jumps: list[int]) -> None:
    """`jumps`: how many events are left out at the next places where the reader starts anew."""
    gaps, taken, expected = OffsetGaps(), [], 0
    at, left_out = 0, list(jumps)
    for _ in range(1000):
        rest = [offset for offset in stored if offset >= at]
        if not rest:
            break
        skip = left_out.pop() if left_out else 0
        offset = rest[min(skip, len(rest) - 1)]
        at = offset + 1
        if offset < expected:
            continue
        if offset > expected:
            gap = gaps.meet(*T, offset)
            if gap is Gap.seek:
                at = expected
            if gap is not Gap.absent:
                continue
        taken.append(offset)
        expected = offset + 1
    assert taken == sorted(set(taken))
    # What is left out twice at the same place looks like an offset gap; what is read whole is all there.
    if not jumps:
        assert taken == stored
