"""A partition's log with offset gaps, handed out by somebody who jumps ahead."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from services.aggregator.offset_gaps import (
    LAG_READS,
    LAG_S,
    MAX_LAG_S,
    Gap,
    Lags,
    OffsetGaps,
    ReadPlace,
    SourcePosition,
)

T = ("t", 0)


def meet(gaps: OffsetGaps, offset: int) -> Gap:
    return gaps.meet(*T, offset)


def test_what_was_handed_out_too_early_is_read_again() -> None:
    gaps = OffsetGaps()
    assert meet(gaps, 7) is Gap.seek
    assert meet(gaps, 8) is Gap.wait
    assert meet(gaps, 5) is Gap.seek, "an earlier one: the first seek was not early enough"
    assert meet(gaps, 5) is Gap.absent
    assert meet(gaps, 8) is Gap.seek, "another gap"


def test_places_and_assignments_are_apart() -> None:
    gaps = OffsetGaps()
    assert gaps.meet("t", 0, 7) is Gap.seek
    assert gaps.meet("t", 1, 7) is Gap.seek
    gaps.clear()
    assert gaps.meet("t", 0, 7) is Gap.seek


def test_what_the_log_has_and_does_not_come_is_sought_rarer_and_rarer() -> None:
    """Faust dropped the last event of its log, or the seek: no other event shows the gap."""
    lags, missing = Lags(), SourcePosition(*T, 3, ReadPlace(4, 4))
    assert lags.overdue([missing], 0.0, 0) == [], "it may be on its way"
    sought = [now_s for now_s in range(1, 1000) if lags.overdue([missing], float(now_s), 2 * now_s)]
    assert sought[:4] == [LAG_S, 3 * LAG_S, 7 * LAG_S, 15 * LAG_S]
    pauses = [after - before for before, after in pairwise(sought)]
    assert pauses == sorted(pauses)
    assert max(pauses) == MAX_LAG_S


def test_a_place_that_moves_on_or_is_at_its_end_is_not_sought() -> None:
    lags = Lags()
    for now_s in range(100):
        moving = SourcePosition(*T, now_s, ReadPlace(1000, 1000))
        done = SourcePosition("t", 1, 7, ReadPlace(7, 7))
        assert lags.overdue([moving, done], float(now_s), 9 * now_s) == []


def test_what_the_client_still_has_to_hand_out_is_not_sought() -> None:
    """A seek would throw it away, and a worker short of CPU would fetch it again and again."""
    lags, fetched = Lags(), SourcePosition(*T, 3, ReadPlace(3, 90))
    assert not any(lags.overdue([fetched], float(now_s), 9 * now_s) for now_s in range(100))


def test_what_is_on_its_way_from_the_client_is_not_sought_however_long_it_takes() -> None:
    lags, on_its_way = Lags(), SourcePosition(*T, 3, ReadPlace(4, 90))
    read = LAG_READS - 1
    assert not any(lags.overdue([on_its_way], float(now_s), read) for now_s in range(100))
    assert lags.overdue([on_its_way], 100.0, 1 + read) == []
    assert lags.overdue([on_its_way], 101.0, 1 + read + LAG_READS) == [on_its_way]


def test_an_assignment_gives_each_place_its_time_anew() -> None:
    lags, missing = Lags(), SourcePosition(*T, 3, ReadPlace(4, 4))
    assert lags.overdue([missing], 0.0, 0) == []
    lags.clear()
    assert lags.overdue([missing], LAG_S, 2) == []
    assert lags.overdue([missing], 2 * LAG_S, 4) == [missing]


def test_a_gap_after_a_seek_that_succeeded_is_met_anew() -> None:
    """Else a real gap further on would be waited for without an end."""
    gaps = OffsetGaps()
    assert meet(gaps, 7) is Gap.seek
    gaps.close(*T)
    assert meet(gaps, 20) is Gap.seek
    assert meet(gaps, 20) is Gap.absent


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
        else:
            gaps.close(*T)
        taken.append(offset)
        expected = offset + 1
    assert taken == sorted(set(taken))
    # What is left out twice at the same place looks like an offset gap; what is read whole is all there.
    if not jumps:
        assert taken == stored
