"""Erasure in the aggregator: texts and people go, counts and figures stay, in any order."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.aggregator.erasing import fold_erased
from services.aggregator.fold import FoldRules
from services.aggregator.join import fold_feedback, fold_interaction, fold_vote
from services.aggregator.rows import TraceRow
from shared.contracts.events.base import Context, Event
from shared.contracts.events.erasures import TraceErased
from shared.contracts.events.feedback import FeedbackSubmitted, FeedbackType
from shared.contracts.events.interactions import InteractionRecorded
from shared.contracts.events.preferences import ERASED, PreferenceRetracted, UnpairedExample
from shared.contracts.events.quality import ExampleJoined
from shared.contracts.events.rated import RatedAnswer
from shared.contracts.events.votes import VoteCast
from shared.contracts.subject import subject_of
from shared.contracts.topics import PREFERENCES
from tests.support.aggregator import DOWN, UP, at, feedback, interaction, vote
from tests.unit.aggregator.simulation import Simulation

RULES = FoldRules()
SECRET = "my mother's recipe"


def erased(
    user: str = "u1", trace: str = "t1", *, seconds: float = 50.0, **more: Any
) -> TraceErased:
    return TraceErased(
        erasure_id=f"e-{user}",
        trace_id=trace,
        tenant="acme",
        subjects=(subject_of("acme", user),),
        erased_at=at(seconds),
        **more,
    )


def asked(user: str = "u1", **more: Any) -> InteractionRecorded:
    made = interaction(
        user=user,
        prompt=SECRET,
        completion=f"about {SECRET}",
        context=Context(session_id="s-secret", category="creative", labels={"name": SECRET}),
        **more,
    )
    quoted = [one.model_copy(update={"error": f"bad input: {SECRET}"}) for one in made.attempts]
    return made.model_copy(update={"attempts": tuple(quoted)})


def folded(*events: Event) -> tuple[TraceRow, list[Event]]:
    """The row after some events, through its stored form, and all outputs."""
    row: TraceRow | None = None
    outputs: list[Event] = []
    for number, event in enumerate(events):
        ts_ms = number * 60_000
        match event:
            case InteractionRecorded():
                fold = fold_interaction(row, event, event.to_json(), ts_ms, RULES)
            case FeedbackSubmitted():
                fold = fold_feedback(row, event, ts_ms, RULES)
            case VoteCast():
                fold = fold_vote(row, event, ts_ms)
            case TraceErased():
                fold = fold_erased(row, event)
            case _:
                raise AssertionError(event)
        row = TraceRow.decode(fold.row.encode())
        outputs += [output.event for output in fold.outputs]
    assert row is not None
    return row, outputs


def said() -> FeedbackSubmitted:
    value = {"corrected": f"better: {SECRET}"}
    return feedback("f1", kind=FeedbackType.text_correction, value=value)


@pytest.mark.parametrize("order", ["before", "between", "late"])
def test_nothing_of_who_asked_is_left_whenever_the_interaction_comes(order: str) -> None:
    # A router that spooled while Kafka was away delivers after the erasure.
    events: list[Event] = [asked(), said(), erased(whole=order != "late")]
    if order == "between":
        events = [said(), asked(), erased()]
    elif order == "late":
        events = [said(), erased(), asked()]
    row, outputs = folded(*events)
    kept = row.encode()
    for private in (SECRET, "s-secret", '"u1"'):
        assert private.encode() not in kept
    assert row.entries["f1"].counted == "joined"
    newest = [one for one in outputs if isinstance(one, ExampleJoined)][-1]
    assert newest.messages == ()
    assert SECRET not in newest.model_dump_json()


def test_what_it_made_is_retracted_and_a_rating_taken_back() -> None:
    row, outputs = folded(asked(), feedback("f1", kind=UP), erased())
    made = {one.pair_id for one in outputs if isinstance(one, UnpairedExample)}
    taken = {
        one.pair_id
        for one in outputs
        if isinstance(one, PreferenceRetracted) and one.reason == ERASED
    }
    assert made
    assert made == taken
    given, back = [one for one in outputs if isinstance(one, RatedAnswer)]
    assert back.score is None
    assert back.revision > given.revision
    assert SECRET not in back.model_dump_json()
    assert row.entries["f1"].figures


def test_only_what_the_rater_said_goes_from_anothers_question() -> None:
    row, outputs = folded(
        asked("asker"),
        said(),
        feedback("f2", kind=DOWN, user="other"),
        erased("u1"),
    )
    assert SECRET.encode() in row.interaction
    assert row.entries["f1"].body is None
    assert row.entries["f2"].body is not None
    newest = [one for one in outputs if isinstance(one, ExampleJoined)][-1]
    assert [one.user_id for one in newest.feedback] == ["other"]


def test_a_vote_goes_with_its_texts() -> None:
    row, outputs = folded(vote("c1"), erased(trace="c1"))
    assert b"parcel" not in row.encode()
    assert isinstance(outputs[-1], PreferenceRetracted)


def test_feedback_received_after_the_erasure_counts_and_teaches_nothing_of_what_is_gone() -> None:
    before, _ = folded(asked(), erased())
    assert before.erased
    row, outputs = folded(asked(), erased(), feedback("f9", kind=UP, seconds=90.0))
    assert row.entries["f9"].counted == "joined"
    assert not [one for one in outputs if isinstance(one, UnpairedExample)]


def test_erasing_twice_is_erasing_once() -> None:
    once, _ = folded(asked(), said(), erased())
    twice, outputs = folded(asked(), said(), erased(), erased())
    assert twice.interaction == once.interaction
    assert {name: entry.body for name, entry in twice.entries.items()} == {"f1": None}
    assert len([one for one in outputs if isinstance(one, PreferenceRetracted)]) == 1


@given(kills=st.lists(st.integers(0, 12), max_size=12), batch=st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_kills_between_any_two_writes_leave_no_text_and_change_no_count(
    kills: list[int], batch: int
) -> None:
    events: list[Event] = [
        asked(),
        said(),
        feedback("f2", kind=UP, user="u1"),
        interaction("t2", user="u2"),
        feedback("f3", "t2", DOWN, user="u2"),
        erased(),
        erased(trace="t2"),
    ]
    calm, rough = Simulation(events), Simulation(events)
    counted = calm.run(batch=batch)
    assert rough.run(batch=batch, kill_after=kills).feedback == counted.feedback
    assert rough.standing() == calm.standing()
    assert all(SECRET.encode() not in value for value in rough.changelog.values())
    # What stands on the topic is the other person's alone.
    standing = {out.key for out in rough.outputs if out.topic == PREFERENCES} - {
        out.key for out in rough.outputs if isinstance(out.event, PreferenceRetracted)
    }
    assert len(standing) == 1
