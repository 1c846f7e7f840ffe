"""A person's last word on an answer: the rule as a model, against every order of arrival."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.aggregator import aggregates
from services.aggregator.contributions import OutcomeCounted
from services.aggregator.fold import FoldRules
from services.aggregator.join import fold_feedback
from services.aggregator.rows import FeedbackEntry
from services.feedback.submissions import (
    SubmissionRules,
    read_submission,
    read_withdrawal,
    submitted,
    withdrawn,
)
from shared.contracts.events.base import Event
from shared.contracts.events.feedback import FeedbackSubmitted, FeedbackType, FeedbackWithdrawn
from shared.contracts.events.rated import RatedAnswer
from shared.contracts.feedback_id import default_feedback_id
from shared.testing.clock import ManualClock
from shared.testing.log import MemoryLog
from tests.support.aggregator import UP, at, feedback, interaction
from tests.support.aggregator import withdrawn as withdrawn_event
from tests.support.feedback import feedback_service
from tests.unit.aggregator.simulation import Simulation, sums_of

ID = default_feedback_id("acme", "t1", "u1", FeedbackType.rating)
RATING = {"type": "rating"}
RATED_TYPE = FeedbackType.rating
Said = FeedbackSubmitted | FeedbackWithdrawn


def said(body: dict[str, Any], seconds: float) -> Said:
    """What the service makes of a body that it receives then; `undo` is a withdrawal."""
    time = at(seconds)
    if "undo" in body:
        taken = {"trace_id": "t1", "feedback_id": ID, "user_id": "u1"}
        if "revision" in body:
            taken["revision"] = body["revision"]
        return withdrawn(read_withdrawal(taken), tenant="acme", at=time)
    given = {"trace_id": "t1", "user_id": "u1", **body}
    return submitted(read_submission(given), tenant="acme", at=time, redact=str)


def last_word(events: list[Said]) -> Said | None:
    """The rule: of numbered revisions the highest, of others the last; of the two the later."""
    numbered = max(
        (event for event in events if not event.by_receipt),
        key=lambda event: (event.revision, -events.index(event)),
        default=None,
    )
    unnumbered = max(
        (event for event in events if event.by_receipt),
        key=lambda event: event.submitted_at,
        default=None,
    )
    left = [event for event in (unnumbered, numbered) if event is not None]
    return max(left, key=lambda event: event.submitted_at, default=None)


@dataclass(frozen=True)
class Standing:
    """What readers of the aggregator's topics see of one answer."""

    figures: dict[str, float]
    labels: list[str]
    score: float | None

    @classmethod
    def after(cls, events: list[Event], **run: Any) -> Standing:
        simulation = Simulation(events)
        sums = sums_of(simulation.run(**run), "1d")
        scores = [event.score for event in simulation.rated if isinstance(event, RatedAnswer)]
        return cls(
            {name: total for name, total in zip(aggregates.FIGURES, sums, strict=True) if total},
            sorted(label for _, _, label in simulation.standing()),
            scores[-1] if scores else None,
        )

    @classmethod
    def of(cls, event: Said | None) -> Standing:
        """What one feedback alone makes."""
        if not isinstance(event, FeedbackSubmitted) or event.score is None:
            return cls({"interactions": 1, "turns": 1, "sessions": 1}, [], None)
        figures = {"interactions": 1, "interactions_with_feedback": 1, "feedback": 1}
        figures |= {"turns": 1, "sessions": 1}
        figures |= {"score_sum": event.score, "score_count": 1}
        figures |= {"positive": event.score >= 0.75, "negative": event.score <= 0.25}
        figures = {name: float(value) for name, value in figures.items() if value}
        thumb = event.type is not FeedbackType.rating
        return cls(figures, [str(event.score == 1.0)] if thumb else [], event.score)


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([{"type": "thumbs_up"}, {"type": "thumbs_down"}], id="changed"),
        pytest.param([RATING | {"value": 2}, RATING | {"value": 5}], id="edited"),
        pytest.param([RATING | {"value": 5}, {"type": "thumbs_down"}], id="other type"),
        pytest.param([{"type": "thumbs_up"}, {"undo": 1}], id="undone"),
        pytest.param([{"type": "thumbs_up"}, {"undo": 1}, {"type": "thumbs_up"}], id="again"),
        pytest.param([{"type": "thumbs_up"}, {"type": "thumbs_up"}], id="twice"),
        pytest.param([{"type": "thumbs_up"}, RATING | {"value": 1, "revision": 1}], id="numbered"),
    ],
)
def test_the_last_step_counts_in_every_order_of_arrival(steps: list[dict[str, Any]]) -> None:
    """Case thumb-changed and its family."""
    events = [said(body, number + 1) for number, body in enumerate(steps)]
    expected = Standing.of(events[-1])
    for order in itertools.permutations([interaction(), *events]):
        assert Standing.after([*order, order[-1], events[0]]) == expected, order


OPINIONS = st.sampled_from(
    [{"type": "thumbs_up"}, {"type": "thumbs_down"}, {"undo": 1}]
    + [RATING | {"value": value} for value in range(1, 6)]
)
STEPS = st.tuples(OPINIONS, st.none() | st.integers(1, 4)).map(
    lambda step: step[0] | ({} if step[1] is None else {"revision": step[1]})
)


@given(
    steps=st.lists(STEPS, max_size=7),
    data=st.data(),
    kills=st.lists(st.integers(0, 12), max_size=6),
    batch=st.integers(1, 4),
)
@settings(max_examples=200, deadline=None)
def test_the_rule_holds_in_any_order_with_repeats_and_kills(
    steps: list[dict[str, Any]], data: st.DataObject, kills: list[int], batch: int
) -> None:
    sent = [said(body, number + 1) for number, body in enumerate(steps)]
    repeats = data.draw(st.lists(st.sampled_from(sent), max_size=3)) if sent else []
    arrived = data.draw(st.permutations([interaction(), *sent, *repeats]))
    told = [event for event in arrived if isinstance(event, Said)]
    found = Standing.after(arrived, batch=batch, kill_after=kills)
    assert found == Standing.of(last_word(told)), told


async def test_thumb_changed() -> None:
    """The case from request to counts: one feedback, negative, one example with label false."""
    async with feedback_service(MemoryLog()) as service:
        for kind in ("thumbs_up", "thumbs_down"):
            body = {"trace_id": "t1", "type": kind, "user_id": "u1"}
            assert (await service.post("/v1/feedback", body)).status_code == 202
            assert isinstance(service.clock, ManualClock)
            service.clock.advance(0.001)
        events = await service.stored("t1")
    found = Standing.after([interaction(tenant="default"), *events])
    assert (found.figures["feedback"], found.figures["negative"]) == (1, 1)
    assert "positive" not in found.figures
    assert found.labels == ["False"]


async def test_of_one_batch_the_last_item_counts() -> None:
    """Case thumb-changed, from an app that was offline."""
    kinds = ["thumbs_up", "thumbs_down"] * 20 + ["thumbs_up"]
    items = [{"trace_id": "t1", "type": kind, "user_id": "u1"} for kind in kinds]
    async with feedback_service(MemoryLog()) as service:
        assert (await service.post("/v1/feedback/batch", {"items": items})).status_code == 202
        events = await service.stored("t1")
    assert Standing.after([*reversed(events), interaction(tenant="default")]).labels == ["True"]


def test_feedback_stored_before_the_rule_folds_as_it_did() -> None:
    """Its events carry no order by receipt: the highest number counts, the first of a number."""
    old = [
        feedback(ID, kind=UP, revision=0, seconds=1),
        feedback(ID, kind=UP, revision=0, seconds=9),
        feedback(ID, kind=RATED_TYPE, value=1, revision=0, seconds=9),
    ]
    assert Standing.after([interaction(), *old]) == Standing.of(old[0])
    gone = withdrawn_event(ID, revision=200_000_000, seconds=3)
    late = feedback(ID, kind=UP, revision=7, seconds=9)
    assert Standing.after([interaction(), *old, gone]) == Standing.of(None)
    assert Standing.after([interaction(), *old, gone, late]) == Standing.of(None)
    again = said({"type": "thumbs_down"}, 10)
    assert Standing.after([interaction(), *old, gone, again]) == Standing.of(again)


@pytest.mark.parametrize("use_anonymous", [False, True])
async def test_feedback_without_user(use_anonymous: bool) -> None:
    """Case feedback-without-user: counted and visible, in neither judge nor datasets, by default."""
    rules = SubmissionRules(use_anonymous=use_anonymous)
    kinds = {"good": "thumbs_up", "bad": "thumbs_down"}
    async with feedback_service(MemoryLog(), rules=rules) as service:
        told: list[Event] = []
        for trace, kind in kinds.items():
            items = [
                {"trace_id": trace, "type": kind, "feedback_id": f"{trace}-{n}"} for n in range(5)
            ]
            answer = await service.post("/v1/feedback/batch", {"items": items})
            assert answer.status_code == 202
            told += await service.stored(trace)
        visible = service.value("ratchet_ingestion_anonymous_total", way="batch")
    shown = [interaction(trace, tenant="default", completion=trace) for trace in kinds]
    simulation = Simulation([*shown, *told])
    counts = simulation.run()
    assert sum(counts.feedback.values()) == 10
    if use_anonymous:
        assert (visible, bool(simulation.rated), bool(simulation.standing())) == (0, True, True)
    else:
        assert (visible, simulation.rated, simulation.standing()) == (10, [], set())
        assert not counts.scores


def test_a_body_stored_before_a_field_came_is_the_same_body() -> None:
    event = feedback()
    first = fold_feedback(None, event, 0, FoldRules()).row
    body = first.entries["f1"].body
    assert body is not None
    del body["by_receipt"], body["given_at"]
    second = fold_feedback(first, event, 0, FoldRules())
    assert [item.outcome for item in second.contributions if isinstance(item, OutcomeCounted)] == [
        "duplicate"
    ]


def test_a_copied_entry_has_every_field() -> None:
    entry = fold_feedback(None, feedback(), 0, FoldRules()).row.entries["f1"]
    for place, field in enumerate(fields(FeedbackEntry)):
        setattr(entry, field.name, f"value {place}")
    copy = entry.copy()
    assert copy is not entry
    assert copy == entry
