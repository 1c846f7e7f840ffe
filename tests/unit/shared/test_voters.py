"""Labels of voters are bounded, and the same on every process but for those that share one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shared.voters import MAX_OWN, SHARED, VoterLabels, shared_label, voter_label


@given(st.lists(st.text(max_size=8), max_size=100))
def test_labels_are_bounded_whatever_keys_are_issued(names: list[str]) -> None:
    labels = VoterLabels()
    given_labels = {labels.label("key", name) for name in names}
    assert len(given_labels) <= MAX_OWN + SHARED
    assert [labels.label("key", name) for name in names] == [
        labels.label("key", name) for name in names
    ]


def test_each_kind_has_room_of_its_own_and_the_rest_share_by_hash() -> None:
    labels = VoterLabels()
    for number in range(MAX_OWN):
        labels.label("tenant", f"t{number}")
    late = labels.label("tenant", "late")
    assert late == shared_label(voter_label("late"))
    assert labels.label("key", "late") == voter_label("late")
    assert labels.label("tenant", "t3") == voter_label("t3")
    assert shared_label(late) == ""
    assert labels.bounded("tenant", voter_label("t3")) == voter_label("t3")
