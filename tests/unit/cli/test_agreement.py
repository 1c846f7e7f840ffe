"""Labels of raters: last words of named people, comparisons by what they show."""

from __future__ import annotations

from services.cli.agreement import labels_of
from shared.agreement import RaterLabel
from shared.contracts.events.feedback import FeedbackType
from shared.contracts.events.votes import Choice
from tests.support.aggregator import DOWN, UP, feedback, vote, withdrawn


def test_the_last_word_of_each_named_rater_is_its_label() -> None:
    events = [
        feedback("f1", kind=UP, user="u1", seconds=1),
        feedback("f1", kind=DOWN, user="u1", seconds=2),
        feedback("f2", kind=FeedbackType.rating, value=3, user="u2"),
        feedback("f3", kind=UP, user="u3"),
        withdrawn("f3", kind=UP, seconds=9),
        feedback("f4", kind=UP, user="", anonymous=True),
        feedback("f5", kind=FeedbackType.comment, value="So.", user="u5"),
    ]
    assert list(labels_of(events)) == [
        RaterLabel("acme/t1", "u1", "bad"), RaterLabel("acme/t1", "u2", "between"),
    ]  # fmt: skip
    assert list(labels_of(events, "other")) == []


def test_the_same_two_answers_are_one_comparison_on_whichever_sides() -> None:
    one = vote("c1", Choice.left, user="u1")
    swapped = vote("c2", Choice.right, user="u2").model_copy(
        update={"left": one.right, "right": one.left}
    )
    tie = vote("c3", Choice.tie, user="u3").model_copy(
        update={"left": one.left, "right": one.right}
    )
    found = list(labels_of([one, swapped, tie]))
    assert {label.item for label in found} == {"acme/c1-l+c1-r"}
    assert [label.label for label in found] == ["c1-l", "c1-l", "tie"]
