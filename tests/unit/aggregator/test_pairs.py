"""Same-prompt pairs from ratings, and the prompt's identity."""

from __future__ import annotations

from services.aggregator.pairs import MAX_ANSWERS, PAIRS_PER_ANSWER, fold_rated, prompt_key
from services.aggregator.rows import PromptRow
from shared.contracts.events import (
    Event,
    Message,
    PreferencePair,
    PreferenceRetracted,
    RatedAnswer,
)
from tests.support.aggregator import at


def rated(
    trace: str, score: float | None, *, revision: int = 0, text: str = "", model: str = "assistant"
) -> RatedAnswer:
    return RatedAnswer(
        rated_id=f"{trace}:{revision}",
        prompt_key="p",
        tenant="acme",
        model=model,
        trace_id=trace,
        feedback_id=f"f-{trace}",
        revision=revision,
        messages=(Message(role="user", content="Where is it?"),),
        completion=text or f"Answer {trace}.",
        version="v1",
        score=score,
        user_id=f"u-{trace}",
        created_at=at(1),
    )


def fold(*events: RatedAnswer) -> tuple[PromptRow, list[Event]]:
    row = None
    outputs: list[Event] = []
    for event in events:
        change = fold_rated(row, event)
        row = PromptRow.decode(change.row.encode())
        outputs += [output.event for output in change.outputs]
    assert row is not None
    return row, outputs


def pairs(outputs: list[Event]) -> list[tuple[str, str]]:
    return [(e.chosen, e.rejected) for e in outputs if isinstance(e, PreferencePair)]


def test_high_goes_over_low_in_either_order() -> None:
    for order in ((rated("a", 1.0), rated("b", 0.25)), (rated("b", 0.25), rated("a", 1.0))):
        _, outputs = fold(*order)
        assert pairs(outputs) == [("Answer a.", "Answer b.")]
        (pair,) = outputs
        assert isinstance(pair, PreferencePair)
        assert pair.causes == ("f-a:0", "f-b:0")
        assert pair.raters == ("u-a", "u-b")
        assert pair.pair_id == _id_of(rated("a", 1.0), rated("b", 0.25))


def _id_of(*events: RatedAnswer) -> str:
    _, (pair,) = fold(*events)
    assert isinstance(pair, PreferencePair)
    return pair.pair_id


def test_middling_equal_and_foreign_answers_make_no_pair() -> None:
    assert pairs(fold(rated("a", 1.0), rated("b", 0.5))[1]) == []
    assert pairs(fold(rated("a", 1.0), rated("b", 0.75))[1]) == []
    assert pairs(fold(rated("a", 1.0, text="x"), rated("b", 0.0, text=" x"))[1]) == []
    assert pairs(fold(rated("a", 1.0), rated("b", 0.0, model="other"))[1]) == []


def test_an_answer_makes_a_bounded_number_of_pairs() -> None:
    _, outputs = fold(*(rated(f"b{n}", 0.0) for n in range(5)), rated("a", 1.0))
    assert pairs(outputs) == [("Answer a.", f"Answer b{n}.") for n in (4, 3)][:PAIRS_PER_ANSWER]


def test_a_changed_rating_takes_its_pairs_back_and_makes_others() -> None:
    _, outputs = fold(
        rated("a", 1.0), rated("b", 0.0), rated("c", 1.0, text="C."), rated("a", 0.0, revision=1)
    )
    taken = [event.pair_id for event in outputs if isinstance(event, PreferenceRetracted)]
    assert taken == [_id_of(rated("a", 1.0), rated("b", 0.0))]
    assert pairs(outputs)[-1] == ("C.", "Answer a.")


def test_a_withdrawn_rating_leaves_nothing_standing() -> None:
    _, outputs = fold(rated("a", 1.0), rated("b", 0.0), rated("a", None, revision=1))
    made = {event.pair_id for event in outputs if isinstance(event, PreferencePair)}
    taken = {event.pair_id for event in outputs if isinstance(event, PreferenceRetracted)}
    assert made == taken


def test_repeats_and_lower_revisions_change_nothing() -> None:
    _, once = fold(rated("a", 1.0, revision=1), rated("b", 0.0))
    _, again = fold(rated("a", 1.0, revision=1), rated("b", 0.0), rated("a", 0.0), rated("b", 0.0))
    assert once == again


def test_a_prompt_keeps_a_bounded_number_of_answers() -> None:
    row, _ = fold(*(rated(f"t{n}", 0.5) for n in range(MAX_ANSWERS + 5)))
    assert len(row.answers) == MAX_ANSWERS


def test_prompts_are_the_same_but_for_case_width_and_space() -> None:
    def key(text: str, tenant: str = "acme") -> str:
        return prompt_key(tenant, (Message(role="user", content=text),))

    assert key("Where is\n my  ORDER？") == key("where is my order?")
    assert key("where is my order?") != key("where is my parcel?")
    assert key("where is my order?") != key("where is my order?", "other")
