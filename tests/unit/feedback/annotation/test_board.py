"""The annotation board: states, who may label what, and what counts."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given as each
from hypothesis import strategies as st

from services.feedback.annotation.board import AnnotationBoard, AnnotationItem, ItemState
from services.feedback.voting.annotation_rules import AnnotationRules
from shared.contracts.events.annotations import AnnotationItemAdded, AnnotationKind, AnnotatorRole
from tests.support.annotations import EPOCH, erasure, given, item

RULES = AnnotationRules(high_stakes=frozenset({"medical"}), adjudicators=frozenset({"ann"}))


def board(*events: object) -> AnnotationBoard:
    made = AnnotationBoard(RULES)
    for event in events:
        made.apply(event)  # type: ignore[arg-type]
    return made


def state(*events: object) -> ItemState:
    found = board(*events).get("default", "i1")
    assert found
    return found.state


@pytest.mark.parametrize(
    ("category", "labels", "expected"),
    [
        ("creative", "ll", ItemState.open),
        ("creative", "llr", ItemState.settled),
        ("creative", "lrt", ItemState.disputed),
        ("medical", "lll", ItemState.settled),
        ("medical", "llr", ItemState.disputed),
    ],
)
def test_an_item_is_settled_by_more_than_half_and_in_a_high_stakes_category_by_all(
    category: str, labels: str, expected: ItemState
) -> None:
    names = {"l": "left", "r": "right", "t": "tie"}
    said = [given(f"r{number}", names[label]) for number, label in enumerate(labels)]
    assert state(item(category=category), *said) is expected


@pytest.mark.parametrize(
    ("labels", "outcome"), [("45", "4"), ("455", "5"), ("355", "5"), ("135", ""), ("24", "")]
)
def test_ratings_that_differ_by_one_agree(labels: str, outcome: str) -> None:
    asked = item(kind=AnnotationKind.rating, raters=len(labels))
    said = [given(f"r{number}", label) for number, label in enumerate(labels)]
    found = board(asked, *said).get("default", "i1")
    assert found
    assert found.outcome == outcome


def test_agreement_takes_ratings_as_good_between_or_bad() -> None:
    asked = item(kind=AnnotationKind.rating)
    made = board(asked, given("a", "4"), given("b", "5"), given("c", "3"))
    assert [one.label for one in made.rater_labels()["default"]] == ["good", "good", "between"]


def test_a_model_never_fills_a_slot_of_a_high_stakes_item() -> None:
    by_model = [given(f"m{number}", "left", role=AnnotatorRole.model) for number in range(3)]
    assert state(item(category="creative"), *by_model) is ItemState.settled
    found = board(item(category="medical"), *by_model).get("default", "i1")
    assert found
    assert (found.state, found.missing, found.outcome) == (ItemState.open, 3, "")


def test_an_adjudicator_s_label_holds() -> None:
    disputed = [item(), given("a", "left"), given("b", "right"), given("c", "tie")]
    assert [one.added.item_id for one in board(*disputed).wanted_of("default", "ann")] == ["i1"]
    assert board(*disputed).wanted_of("default", "dora") == []
    settled = board(*disputed, given("ann", "right", role=AnnotatorRole.adjudicator))
    found = settled.get("default", "i1")
    assert found
    assert (found.state, found.outcome) == (ItemState.settled, "right")
    assert {one.rater for one in settled.rater_labels()["default"]} == {"a", "b", "c"}


def test_reading_the_board_counts_no_labels_again(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = [given(f"r{number}", "left") for number in range(3)]
    found = board(item("i0"), item(), *labels, item("i2"))
    monkeypatch.setattr(AnnotationItem, "_agreed", None)
    assert [one.added.item_id for one in found.wanted_of("default", "ann")] == ["i0", "i2"]
    assert [one.state.value for one in found.items("default")] == ["open", "settled", "open"]


def test_a_label_of_another_kind_changes_nothing() -> None:
    found = board(item(kind=AnnotationKind.rating), given("r0", "left"))
    assert found.rater_labels() == {"default": []}
    assert [one.added.item_id for one in found.wanted_of("default", "r0")] == ["i1"]


@pytest.mark.parametrize("erasure_first", [False, True])
def test_a_sampled_prompt_of_an_erased_person_leaves_the_queue(*, erasure_first: bool) -> None:
    asked = [
        item(name).model_copy(update={"asker": asker})
        for name, asker in (("i1", "u1"), ("i2", "u2"), ("i3", ""))
    ]
    events = [*asked, *(given(f"r{number}", "left") for number in range(3))]
    erased = erasure("u1")
    found = board(erased, *events) if erasure_first else board(*events, erased)
    assert [one.added.item_id for one in found.items("default")] == ["i2", "i3"]
    assert found.unsettled("default") == 2


def test_nobody_is_offered_an_item_twice_and_other_tenants_see_nothing() -> None:
    made = board(item(), given("a", "left"))
    assert made.wanted_of("default", "a") == []
    assert len(made.wanted_of("default", "b")) == 1
    assert made.wanted_of("acme", "b") == []


def test_high_stakes_come_first_then_what_was_begun_then_the_oldest() -> None:
    later = EPOCH + timedelta(hours=1)
    made = board(
        item("new", at=later),
        item("old"),
        item("begun", at=later),
        item("risky", at=later, category="medical"),
        given("a", "left", "begun"),
    )
    order = [one.added.item_id for one in made.wanted_of("default", "b")]
    assert order == ["risky", "begun", "old", "new"]


def test_settled_items_beyond_the_limit_are_forgotten_and_waiting_ones_never() -> None:
    made = AnnotationBoard(RULES, settled_kept=2)
    for number in range(5):
        made.apply(item(f"i{number}", raters=1))
    for number in range(4):
        made.apply(given("a", "left", f"i{number}"))
    assert [one.added.item_id for one in made.items("default")] == ["i2", "i3", "i4"]
    assert made.unsettled("default") == 1
    made.apply(given("b", "right", "i0"))
    assert made.get("default", "i0") is None


def test_texts_beyond_the_limit_push_settled_items_out_and_leave_no_room_for_more() -> None:
    size = len(item("i0").to_json())
    found = AnnotationBoard(RULES, max_bytes=3 * size)
    for number in range(3):
        found.apply(item(f"i{number}"))
    for name in ("ada", "ben", "cleo"):
        found.apply(given(name, "left", "i1"))
    assert found.get("default", "i1")
    assert not found.is_full_for("default")
    found.apply(item("i3"))
    assert [one.added.item_id for one in found.items("default")] == ["i0", "i2", "i3"]
    found.apply(item("i4"))
    assert found.is_full_for("default")
    found.apply(item("i4"))
    for name in ("ada", "ben", "cleo"):
        found.apply(given(name, "left", "i4"))
    assert not found.is_full_for("default")


@each(
    st.permutations([("a", "left"), ("b", "right"), ("c", "left"), ("a", "left"), ("b", "right")])
)
def test_labels_in_any_order_and_repeated_come_to_the_same(said: list[tuple[str, str]]) -> None:
    found = board(item(), *(given(*one) for one in said)).get("default", "i1")
    assert found
    assert (found.outcome, len(found.labels)) == ("left", 3)


def of_tenant(tenant: str, item_id: str) -> AnnotationItemAdded:
    return item(item_id, raters=1).model_copy(update={"tenant": tenant})


def test_a_tenant_that_fills_the_memory_takes_no_room_of_another() -> None:
    size = len(of_tenant("aa", "i0").to_json())
    found = AnnotationBoard(RULES, max_bytes=4 * size)
    for number in range(6):
        found.apply(of_tenant("aa", f"i{number}"))
    assert found.is_full_for("aa")
    assert not found.is_full_for("bb")
    found.apply(of_tenant("bb", "i0"))
    assert not found.is_full_for("bb")
    settled = given("ada", "left", "i0").model_copy(update={"tenant": "bb"})
    found.apply(settled)
    assert found.get("bb", "i0") is None  # nobody else had a settled item to forget
    for number in (0, 1):
        found.apply(of_tenant("bb", f"j{number}"))
    assert not found.is_full_for("bb")
    found.apply(of_tenant("bb", "j2"))
    assert found.is_full_for("bb")
    assert (found.unsettled("aa"), found.unsettled("bb")) == (6, 3)


def test_the_settled_items_of_who_has_most_go_first() -> None:
    size = len(of_tenant("aa", "i0").to_json())
    found = AnnotationBoard(RULES, max_bytes=5 * size)
    for tenant, names in (("bb", "i0"), ("aa", "i0 i1 i2 i3")):
        for name in names.split():
            found.apply(of_tenant(tenant, name))
            found.apply(given("ada", "left", name).model_copy(update={"tenant": tenant}))
    found.apply(of_tenant("bb", "i1"))
    assert [one.added.item_id for one in found.items("aa")] == ["i1", "i2", "i3"]
    assert [one.added.item_id for one in found.items("bb")] == ["i0", "i1"]


def test_items_of_before_a_moment_are_forgotten_whatever_their_state() -> None:
    found = board(
        item("old", raters=1), item("waits"), given("ada", "left", "old"),
        item("young", at=EPOCH + timedelta(days=1)),
    )  # fmt: skip
    found.forget_until(EPOCH + timedelta(hours=1))
    assert [one.added.item_id for one in found.items("default")] == ["young"]
    assert found.unsettled("default") == 1
    found.forget_until(EPOCH + timedelta(days=2))
    assert list(found.items("default")) == []
    assert not found.is_full_for("default")
