"""A partition's log with offset gaps, handed out by somebody who jumps ahead."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.aggregator.offset_gaps import Gap, OffsetGaps

T = ("t", 0)


def meet(gaps: OffsetGaps, offset: int, *, expected: int = 3, now_s: float = 0.0) -> Gap:
    return gaps.meet(*T, offset, expected=expected, now_s=now_s)


def test_what_was_handed_out_too_early_is_read_again() -> None:
    gaps = OffsetGaps()
    assert meet(gaps, 7) is Gap.seek
    assert meet(gaps, 8) is Gap.wait
    assert meet(gaps, 5) is Gap.seek, "an earlier one: the first seek was not early enough"
    assert meet(gaps, 5) is Gap.absent
    assert meet(gaps, 8) is Gap.seek, "another gap"


def test_places_and_assignments_are_apart() -> None:
    gaps = OffsetGaps()
    assert gaps.meet("t", 0, 7, expected=3, now_s=0.0) is Gap.seek
    assert gaps.meet("t", 1, 7, expected=3, now_s=0.0) is Gap.seek
    gaps.clear()
    assert gaps.meet("t", 0, 7, expected=3, now_s=0.0) is Gap.seek


def test_a_seek_that_brought_nothing_is_repeated_until_its_event_comes() -> None:
    gaps = OffsetGaps()
    assert meet(gaps, 7, expected=3, now_s=10.0) is Gap.seek
    assert gaps.overdue(10.5) == []
    assert gaps.overdue(11.0) == [(*T, 3)]
    assert gaps.overdue(11.5) == [], "each seek has its time"
    assert gaps.overdue(12.0) == [(*T, 3)]
    gaps.close(*T)
    assert gaps.overdue(99.0) == []


def test_a_gap_after_a_seek_that_succeeded_is_met_anew() -> None:
    """Else a real gap further on would be waited for without an end."""
    gaps = OffsetGaps()
    assert meet(gaps, 7, expected=3) is Gap.seek
    gaps.close(*T)
    assert meet(gaps, 20, expected=12) is Gap.seek
    assert meet(gaps, 20, expected=12) is Gap.absent


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
            gap = gaps.meet(*T, offset, expected=expected, now_s=0.0)
            if gap is Gap.seek:
                at = expected
            if gap is not Gap.absent:
                continue
        else:
            gaps.close(*T)
        taken.append(offset)
        expected = offset + 1
    assert taken == sorted(set(taken))
    # What is left out twice at the same place looks like an offset gap; what is read whole is all there.
    if not jumps:
        assert taken == stored
