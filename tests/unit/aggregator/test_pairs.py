"""Same-prompt pairs from ratings, and the prompt's identity."""

from __future__ import annotations

import orjson

from services.aggregator.contributions import Mark, OutcomeCounted
from services.aggregator.pairs import MAX_ANSWERS, PAIRS_PER_ANSWER, fold_rated
from services.aggregator.rows import MAX_VALUE_BYTES, PromptRow
from shared.contracts.events.base import Event, Message
from shared.contracts.events.preferences import PreferencePair, PreferenceRetracted
from shared.contracts.events.rated import RatedAnswer
from shared.contracts.prompt_key import prompt_key
from tests.support.aggregator import at


def rated(
    trace: str,
    score: float | None,
    *,
    revision: int = 0,
    text: str = "",
    model: str = "assistant",
    prompt: str = "Where is it?",
    cut: bool = False,
) -> RatedAnswer:
    return RatedAnswer(
        rated_id=f"{trace}:{revision}",
        prompt_key="p",
        tenant="acme",
        model=model,
        trace_id=trace,
        feedback_id=f"f-{trace}",
        revision=revision,
        messages=(Message(role="user", content=prompt),),
        completion=text or f"Answer {trace}.",
        cut=cut,
        version="v1",
        score=score,
        user_id=f"u-{trace}",
        created_at=at(1),
    )


def fold(*events: RatedAnswer) -> tuple[PromptRow, list[Event]]:
    row = None
    outputs: list[Event] = []
    for event in events:
        fold = fold_rated(row, event)
        row = PromptRow.decode(fold.row.encode())
        outputs += [output.event for output in fold.outputs]
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


def test_the_pair_says_which_answer_was_cut() -> None:
    for cut in ((True, False), (False, True)):
        _, (pair,) = fold(rated("a", 1.0, cut=cut[0]), rated("b", 0.0, cut=cut[1]))
        assert isinstance(pair, PreferencePair)
        assert (pair.chosen_cut, pair.rejected_cut) == cut


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


def test_a_long_prompt_takes_no_room_in_its_row() -> None:
    prompt = "long " * 19_000
    row, outputs = fold(
        *(rated(f"t{n}", float(n % 2), prompt=prompt) for n in range(MAX_ANSWERS + 5))
    )
    assert len(row.answers) == MAX_ANSWERS
    assert len(row.encode()) < MAX_VALUE_BYTES / 10
    made = [event for event in outputs if isinstance(event, PreferencePair)]
    assert made
    assert {event.messages[0].content for event in made} == {prompt}


def test_a_row_forgets_its_oldest_answers_before_it_outgrows_the_brokers() -> None:
    events = [rated(f"t{n}", float(n % 2), text=f"{n} " + "\x01" * 40_000) for n in range(9)]
    row, outputs = fold(*events)
    assert len(row.encode()) <= MAX_VALUE_BYTES
    assert [key.split("\x1f")[0] for key in row.answers] == ["t6", "t7", "t8"]
    assert fold(*events) == (row, outputs), "a replay forgets the same"


def test_what_a_batch_adds_to_a_row_does_not_decide_what_it_forgets() -> None:
    events = [rated(f"t{n}", 0.5, text=f"{n} " + "\x01" * 40_000) for n in range(4)]
    row, _ = fold(*events[:3])
    marked = PromptRow.decode(row.encode())
    marked.marks = [Mark("ratchet.rated.v1", offset, ()) for offset in range(500)]
    assert fold_rated(marked, events[3]).row.answers == fold_rated(row, events[3]).row.answers


def test_a_pair_that_the_brokers_would_refuse_is_not_made() -> None:
    prompt = "\x01" * 50_000
    row = None
    sizes: list[int] = []
    counted: list[object] = []
    for event in (
        rated("a", 1.0, prompt=prompt, text="a" * 90_000),
        rated("b", 0.0, prompt=prompt, text="\x01" * 90_000),
        rated("c", 0.0, prompt=prompt, text="short"),
    ):
        fold = fold_rated(row, event)
        row = fold.row
        sizes += [len(output.event.to_json()) for output in fold.outputs]
        counted += fold.contributions
    assert row is not None
    assert len(row.answers) == 3
    assert len(sizes) == 1
    assert max(sizes) <= MAX_VALUE_BYTES
    assert counted == [OutcomeCounted("pair_too_large")]


def test_a_row_from_before_prompts_were_left_out_is_read_and_shrinks() -> None:
    prompt = "long " * 1000
    first = rated("a", 1.0, prompt=prompt)
    answer = {"revision": 0, "score": 1.0, "pairs": [], "event": first.model_dump(mode="json")}
    stored = orjson.dumps([{"a\x1ff-a": answer}, at(1).timestamp(), []])
    row = PromptRow.decode(stored)
    fold = fold_rated(row, rated("b", 0.0, prompt=prompt))
    (pair,) = (output.event for output in fold.outputs)
    assert isinstance(pair, PreferencePair)
    assert (pair.chosen, pair.rejected) == ("Answer a.", "Answer b.")
    assert len(fold.row.encode()) < len(prompt)


def test_prompts_are_the_same_but_for_case_width_and_space() -> None:
    def key(text: str, tenant: str = "acme") -> str:
        return prompt_key(tenant, (Message(role="user", content=text),))

    assert key("Where is\n my  ORDER？") == key("where is my order?")
    assert key("where is my order?") != key("where is my parcel?")
    assert key("where is my order?") != key("where is my order?", "other")
