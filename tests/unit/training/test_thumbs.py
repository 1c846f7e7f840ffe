"""A judge from thumbs alone: good answers against bad ones, each in one pair at most."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.training.dataset_rows import JUDGE, PROMPTS, LabelledAnswer, canonical
from services.training.labelled import select_labelled
from services.training.sides import DatasetRules
from services.training.thumbs import paired_thumbs
from services.training.trigger import PairCounter
from tests.unit.training.builders import MODEL, example_event, pair, turns

RULES = DatasetRules(judge_share=0.3)


def thumb(number: int, *, label: bool, category: str = "") -> LabelledAnswer:
    return LabelledAnswer(
        f"t{number:04}",
        turns(f"question {number}"),
        f"an answer that somebody rated {number}.",
        label,
        raters=(f"rater-{number}",),
        meta={"source": "thumb", "category": category},
    )


thumbs = st.lists(st.tuples(st.booleans(), st.sampled_from(["", "billing", "travel"])), max_size=40)


@given(thumbs)
def test_each_answer_is_in_one_pair_and_as_many_pairs_as_there_can_be(found: Any) -> None:
    rows = [thumb(n, label=good, category=name).row() for n, (good, name) in enumerate(found)]
    pairs = paired_thumbs(rows)
    labels = Counter(good for good, _ in found)
    assert len(pairs) == min(labels[True], labels[False])
    used = [name for pair in pairs for name in pair["meta"]["pair_id"].split("/")]
    assert len(set(used)) == len(used)
    assert paired_thumbs(rows[::-1]) == pairs
    by_category = Counter(found)
    alike = sum(min(by_category[(True, c)], by_category[(False, c)]) for c in ("billing", "travel"))
    assert sum("category" in pair["meta"] for pair in pairs) == alike


def test_the_judge_of_a_product_without_votes_learns_from_thumbs_set_apart() -> None:
    rows = [thumb(n, label=n % 2 == 0) for n in range(400)]
    selection = select_labelled([], rows, RULES)
    judge = selection.files[JUDGE]
    assert len(judge) > 40
    trained = canonical(selection.files["train.jsonl"])
    for row in judge:
        assert row["messages"] != row["rejected_messages"]
        assert row["chosen"].encode() not in trained
        assert row["rejected"].encode() not in trained
    assert selection.files[PROMPTS]


def test_votes_judge_alone_where_there_are_any_and_older_datasets_have_no_such_judge() -> None:
    rows = [thumb(n, label=n % 2 == 0) for n in range(400)]
    votes = [pair(n, panel="judge") for n in range(1000, 1010)]
    voted = select_labelled(votes, rows, RULES).files[JUDGE]
    assert voted
    assert not any("rejected_messages" in row for row in voted)
    older = RULES.model_copy(update={"judge_from_thumbs": False})
    assert select_labelled([], rows, older).files[JUDGE] == []


def test_the_schedule_counts_the_pairs_that_thumbs_make() -> None:
    counter = PairCounter(MODEL, RULES, labelled=True)
    for number in range(200):
        event = replace_label(number)
        counter.apply(event, "preferences/0", number)
    rows = [thumb(n, label=n % 2 == 0) for n in range(200)]
    assert counter.judged > 10
    assert abs(counter.judged - len(select_labelled([], rows, RULES).files[JUDGE])) < 20
    none = PairCounter(MODEL, RULES.model_copy(update={"judge_from_thumbs": False}), labelled=True)
    none.apply(replace_label(1), "preferences/0", 1)
    assert none.judged == 0


def replace_label(number: int) -> Any:
    event = example_event(number)
    text = f"an answer that somebody rated {number}."
    return event.model_copy(
        update={"label": number % 2 == 0, "completion": text, "raters": (f"rater-{number}",)}
    )
