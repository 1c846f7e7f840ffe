"""Rows that machines made: within their shares, never held out, never against people."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.training.dataset import select_demonstrations, select_pairs
from services.training.dataset_rows import (
    HELDOUT,
    JUDGE,
    PROMPTS,
    TRAIN,
    Demonstration,
    Pair,
    canonical,
)
from services.training.errors import BadDataset
from services.training.importing import read_pairs
from services.training.labelled import select_labelled
from services.training.policy import accounting
from services.training.row_checks import clean_pairs
from services.training.sides import DatasetRules, is_held_out, is_prompt_of_judge, set_apart
from tests.unit.training.builders import NOW, pair, turns

RULES = DatasetRules(rater_share=1.0, similarity=1.0)
NO_SIDES = RULES.model_copy(update={"heldout_share": 0.0, "judge_share": 0.0})


def made(number: int, source: str, **meta: str) -> Pair:
    return pair(number, meta={"source": source, **meta})


def sources(rows: Any) -> Counter[str]:
    return Counter(row["meta"].get("source", "people") for row in rows)


@pytest.mark.parametrize("source", ["ai", "augmented", "synthetic"])
def test_what_is_held_out_or_judged_by_is_people_s_alone(source: str) -> None:
    rules = RULES.model_copy(update={"ai_share": 1.0, "synthetic": True})
    rows = [pair(n) for n in range(200)] + [made(n, source) for n in range(200, 400)]
    files = select_pairs(*set_apart(rows, rules), [], rules).files
    assert set(sources(files[HELDOUT])) | set(sources(files[JUDGE])) == {"people"}
    assert sources(files[TRAIN])[source] > 0
    trained = {row["messages"][0]["content"] for row in files[TRAIN]}
    assert not trained & {row["messages"][0]["content"] for row in files[PROMPTS]}
    labelled = select_labelled(rows, [], rules).files
    assert source not in sources(labelled[HELDOUT]) | sources(labelled[JUDGE])
    assert sources(labelled[TRAIN])[source] > 0


@given(
    st.integers(0, 60),
    st.integers(0, 60),
    st.integers(0, 60),
    st.floats(0, 1),
    st.floats(0, 0.2),
)
def test_no_machine_s_share_is_above_its_limit(
    people: int, labelled: int, varied: int, ai_share: float, augmented_share: float
) -> None:
    limits = {"ai_share": ai_share, "augmented_share": augmented_share}
    rules = NO_SIDES.model_copy(update=limits)
    rows = [pair(n) for n in range(people)]
    rows += [made(100 + n, "ai") for n in range(labelled)]
    rows += [made(200 + n, "augmented") for n in range(varied)]
    train = select_pairs(rows, [], [], rules).files[TRAIN]
    found = sources(train)
    assert found["people"] == people, "people's rows never go"
    assert found["augmented"] <= augmented_share * len(train) + 1e-6
    assert found["ai"] <= ai_share * (found["ai"] + people) + 1e-6


def test_the_same_rows_go_beyond_a_share_whatever_their_order() -> None:
    rows = [pair(n) for n in range(30)] + [made(100 + n, "ai") for n in range(90)]
    one, other = (select_pairs(order, [], [], NO_SIDES) for order in (rows, rows[::-1]))
    assert canonical(one.files[TRAIN]) == canonical(other.files[TRAIN])
    assert one.refused == {"ai_share": 60}


def test_a_varied_prompt_goes_where_its_original_is_held_out() -> None:
    originals = [f"question {n}" for n in range(300)]
    set_aside = [
        text for text in originals if is_held_out(text, RULES) or is_prompt_of_judge(text, RULES)
    ]
    rows = [pair(n) for n in range(2000, 4000)]
    rows += [made(n, "augmented", origin=text) for n, text in enumerate(originals)]
    trained = select_pairs(rows, [], [], RULES).files[TRAIN]
    origins = {row["meta"].get("origin") for row in trained}
    assert set_aside
    assert not origins & set(set_aside)
    assert len(origins) > 100


def test_people_are_right_where_a_machine_says_otherwise() -> None:
    human = pair(5, messages=turns("which?"))
    machine = pair(
        1,
        messages=turns("which?"),
        chosen=human.rejected,
        rejected=human.chosen,
        meta={"source": "ai"},
    )
    refused: Counter[str] = Counter()
    assert clean_pairs([machine, human], RULES, refused) == [human]
    assert refused == {"against_people": 1}


def test_machines_that_contradict_each_other_are_contradictory_and_not_against_people() -> None:
    one = pair(1, messages=turns("which?"), meta={"source": "ai"})
    other = pair(
        2,
        messages=turns("which?"),
        chosen=one.rejected,
        rejected=one.chosen,
        meta={"source": "ai"},
    )
    refused: Counter[str] = Counter()
    assert clean_pairs([one, other], RULES, refused) == []
    assert refused == {"contradictory": 2}


def test_high_stakes_are_people_s_alone() -> None:
    rows = [
        made(1, "ai", category="medical"),
        pair(2, meta={"source": "vote", "category": "medical"}),
        made(3, "ai", category="billing"),
    ]
    chosen = select_pairs(rows, [], [], NO_SIDES)
    assert sources(chosen.files[TRAIN]) == {"vote": 1, "ai": 1}
    assert chosen.refused == {"people_only": 1}


def test_demonstrations_of_a_machine_train_and_are_never_held_out() -> None:
    rows = [
        Demonstration(f"d{n}", turns(f"ask {n}"), "an answer to it", {"source": source})
        for n, source in enumerate(["import", "ai"] * 100)
    ]
    files = select_demonstrations(rows, RULES).files
    assert set(sources(files[HELDOUT])) == {"import"}
    assert sources(files[TRAIN])["ai"] > 0


def test_an_import_keeps_the_mark_of_a_machine_and_no_other_source() -> None:
    def row(meta: dict[str, str], **more: Any) -> dict[str, Any]:
        asked = [{"role": "user", "content": "ask"}]
        return {"messages": asked, "chosen": "good one", "rejected": "bad one", "meta": meta} | more

    rows = [
        row({"source": "ai", "labeller": "judge-1"}),
        row({"source": "vote"}),
        row({"source": "augmented"}, origin=[{"role": "user", "content": "the original"}]),
    ]
    labelled, voted, varied = read_pairs(canonical(rows).splitlines())
    assert labelled.meta == {"source": "ai", "labeller": "judge-1"}
    assert voted.meta == {"source": "import"}
    assert varied.meta == {"source": "augmented", "origin": "the original"}
    assert read_pairs([canonical([varied.row()])])[0].meta == varied.meta
    with pytest.raises(BadDataset, match=r"line 1: origin: an augmented row must have"):
        read_pairs([canonical([row({"source": "augmented"})])])


def test_a_version_s_figures_say_how_much_machines_made() -> None:
    rows = [one.row() for one in (pair(1), made(2, "ai"), made(3, "ai"), made(4, "augmented"))]
    figures = accounting(rows, (), NOW)
    assert figures == {"data_ai_share": 0.5, "data_augmented_share": 0.25}
