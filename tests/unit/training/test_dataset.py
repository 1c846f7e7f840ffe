from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from typing import Any

import orjson
from hypothesis import assume, given
from hypothesis import strategies as st

from services.training.dataset import (
    demonstrations_of,
    select_demonstrations,
    select_pairs,
    unexpired,
)
from services.training.dataset_rows import (
    HELDOUT,
    JUDGE,
    PROMPTS,
    TRAIN,
    AskedPrompt,
    Demonstration,
    Pair,
    canonical,
    pair_of,
    prompt_of,
)
from services.training.preference_fold import PreferenceFold
from services.training.row_checks import clean_pairs, refusal
from services.training.sides import FEW_RATERS, DatasetRules, is_held_out
from shared.contracts.events.base import ContentPart, EncryptedTexts, Message, Tool, ToolCall, utc
from shared.contracts.events.preferences import PairSource, PreferencePair
from shared.contracts.prompt_key import normal_prompt
from tests.unit.training.builders import (
    MODEL,
    NOW,
    example_event,
    pair,
    pair_event,
    retraction,
    turns,
)

RULES = DatasetRules(heldout_share=0.2, prompts=50)
NO_HELDOUT = DatasetRules(heldout_share=0.0)

answers = st.sampled_from(
    ["short", "a longer answer", "A  longer ANSWER", "another long answer", "something else here"]
)
pairs = st.lists(
    st.builds(
        Pair,
        pair_id=st.uuids().map(str),
        messages=st.integers(0, 12).map(lambda n: turns(f"question {n}")),
        chosen=answers,
        rejected=answers,
        raters=st.integers(0, 10).map(lambda n: (f"r{n}",)),
    ),
    max_size=25,
    unique_by=lambda pair: pair.pair_id,
)


def keys(rows: list[dict]) -> set[str]:
    return {normal_prompt([Message(**turn) for turn in row["messages"]]) for row in rows}


@given(pairs, pairs, st.randoms(use_true_random=False))
def test_the_order_of_events_does_not_matter(
    some: list[Pair], judged: list[Pair], chance: random.Random
) -> None:
    first = select_pairs(some, judged, [], RULES)
    chance.shuffle(some)
    chance.shuffle(judged)
    second = select_pairs(some, judged, [], RULES)
    for name, rows in first.files.items():
        assert canonical(rows) == canonical(second.files[name])
    assert first.refused == second.refused


@given(pairs, pairs)
def test_no_prompt_is_trained_on_and_measured_on(some: list[Pair], judged: list[Pair]) -> None:
    chosen = select_pairs(some, judged, [pair(n) for n in range(40)], RULES)
    trained = keys(list(chosen.files[TRAIN]))
    for name in (HELDOUT, JUDGE, PROMPTS):
        assert not trained & keys(list(chosen.files[name])), name


@given(pairs, pairs)
def test_every_pair_is_kept_or_counted(some: list[Pair], judged: list[Pair]) -> None:
    chosen = select_pairs(some, judged, [], RULES)
    kept = sum(len(chosen.files[name]) for name in (TRAIN, HELDOUT, JUDGE))
    assert kept + sum(chosen.refused.values()) == len(some) + len(judged)


@given(pairs, pairs)
def test_the_judge_shares_no_rater_with_training(some: list[Pair], judged: list[Pair]) -> None:
    sound = [one for one in (*some, *judged) if refusal(one, RULES) is None]
    assume(len({rater for one in sound for rater in one.raters}) >= FEW_RATERS)
    chosen = select_pairs(some, judged, [], RULES)
    trained = {row["meta"]["pair_id"] for name in (TRAIN, HELDOUT) for row in chosen.files[name]}
    raters = {rater for one in some if one.pair_id in trained for rater in one.raters}
    kept = {row["meta"]["pair_id"] for row in chosen.files[JUDGE]}
    both = raters & {rater for one in judged if one.pair_id in kept for rater in one.raters}
    sound = [pair for pairs in (some, judged) for pair in clean_pairs(pairs, RULES, Counter())]
    assert not both or {rater for one in sound for rater in one.raters} == both


def test_rows_expire_by_their_distance_from_the_newest() -> None:
    def aged(number: int, days: int) -> Pair:
        return pair(number, meta={"created_at": utc(NOW - timedelta(days=days))})

    rows = [aged(1, 400), aged(2, 99), aged(3, 91), aged(4, 90), aged(5, 0), pair(6)]
    assert unexpired(rows, DatasetRules()) == (rows, 0)
    kept, expired = unexpired(rows, DatasetRules(max_age_days=90))
    assert [row.pair_id for row in kept] == ["pair-0004", "pair-0005", "pair-0006"]
    assert expired == 3


def test_contradictory_pairs_are_both_dropped() -> None:
    there = pair(1, chosen="first answer here", rejected="second answer here")
    back = pair(2, messages=there.messages, chosen="Second answer  here", rejected=there.chosen)
    chosen = select_pairs([there, back, pair(3)], [], [], NO_HELDOUT)
    assert [row["meta"]["pair_id"] for row in chosen.files[TRAIN]] == ["pair-0003"]
    assert chosen.refused == {"contradictory": 2}


def test_synthetic_pairs_train_by_setting_alone_and_never_judge() -> None:
    moderated = replace(pair(1), meta={"source": PairSource.synthetic.value})
    rest = [pair(2), pair(3)]
    chosen = select_pairs([moderated, *rest], [], [], NO_HELDOUT)
    assert (len(chosen.files[TRAIN]), chosen.refused) == (2, {"synthetic": 1})
    allowed = NO_HELDOUT.model_copy(update={"synthetic": True})
    assert len(select_pairs([moderated, *rest], [], [], allowed).files[TRAIN]) == 3
    judged = select_pairs(rest, [moderated], [], allowed)
    assert judged.files[JUDGE] == []


def test_the_same_judgement_twice_counts_once() -> None:
    chosen = select_pairs(
        [
            pair(1),
            pair(
                2, messages=turns("Question  1"), chosen=pair(1).chosen, rejected=pair(1).rejected
            ),
        ],
        [],
        [],
        NO_HELDOUT,
    )
    assert len(chosen.files[TRAIN]) == 1
    assert chosen.refused == {"duplicate": 1}


def test_reasons_of_refusal() -> None:
    assert refusal(pair(1), RULES) is None
    assert refusal(pair(1, chosen="0123456789"), RULES) == "too_short"
    assert refusal(pair(1, chosen="01234567890"), RULES) is None
    assert (
        refusal(pair(1, chosen="The same  text", rejected="the same text"), RULES) == "same_answers"
    )
    assert refusal(pair(1, messages=()), RULES) == "no_prompt"


def test_the_held_out_share_is_about_what_was_asked() -> None:
    held = sum(is_held_out(f"question {n}", RULES) for n in range(5000))
    assert 850 < held < 1150


def test_evaluation_prompts_come_from_held_out_pairs_first_and_are_bounded() -> None:
    some = [pair(n) for n in range(40)]
    chosen = select_pairs(
        some, [], [pair(n, messages=turns(f"other {n}")) for n in range(99)], RULES
    )
    prompts = list(chosen.files[PROMPTS])
    assert len(prompts) == RULES.prompts
    heldout = keys(list(chosen.files[HELDOUT]))
    assert keys(prompts[: len(heldout)]) == heldout


def test_evaluation_prompts_say_their_segment_unless_the_rules_are_older() -> None:
    some = [pair(n, meta={"segment": "new", "locale": "", "source": "vote"}) for n in range(40)]
    rows = select_pairs(some, [], [], RULES).files[PROMPTS]
    assert rows
    assert all(row["meta"] == {"segment": "new"} for row in rows)
    older = RULES.model_copy(update={"describe_prompts": False})
    assert not any("meta" in row for row in select_pairs(some, [], [], older).files[PROMPTS])


def test_the_fold_keeps_the_last_word_on_each_pair() -> None:
    fold = PreferenceFold(MODEL)
    for event in (
        pair_event(1),
        pair_event(2, model="another"),
        pair_event(3),
        example_event(1),
        example_event(2),
        retraction("pair-0001"),
        retraction("example-0001"),
        retraction("pair-9999"),
    ):
        fold.apply(event)
    assert [one.pair_id for one in fold.pairs] == ["pair-0003"]
    assert [answer.messages for answer in fold.answers] == [turns("thumbed question 2")]
    assert fold.retracted == 2


def test_a_pair_whose_key_is_destroyed_is_no_pair_of_empty_answers() -> None:
    fold = PreferenceFold(MODEL)
    closed = EncryptedTexts(keys=("k",), data="x")
    fold.apply(pair_event(1).model_copy(update={"encrypted": closed}))
    fold.apply(pair_event(2))
    assert [one.pair_id for one in fold.pairs] == ["pair-0002"]
    fold.apply(retraction("pair-0001"))
    assert fold.retracted == 1


def test_raters_stay_out_of_the_rows() -> None:
    fold = PreferenceFold(MODEL)
    fold.apply(pair_event(1))
    rows = select_pairs(fold.pairs, [], [], NO_HELDOUT).files[TRAIN]
    assert b"rater" not in canonical(rows)
    assert rows[0]["meta"]["category"] == "factual_qa"


def test_demonstrations_are_what_people_wrote() -> None:
    fold = PreferenceFold(MODEL)
    fold.apply(pair_event(1, source=PairSource.correction))
    fold.apply(pair_event(2, source=PairSource.vote))
    fold.apply(pair_event(3, source=PairSource.demonstration, panel="judge"))
    assert [row.answer for row in demonstrations_of(fold.pairs)] == ["a good answer 1"]


def test_demonstrations_are_cleaned() -> None:
    rows = [
        Demonstration("1", turns("one"), "a proper answer"),
        Demonstration("2", turns("ONE"), "a proper answer"),
        Demonstration("3", turns("two"), "no"),
        Demonstration("4", (), "a proper answer"),
    ]
    chosen = select_demonstrations(rows, NO_HELDOUT)
    assert [row["meta"]["row_id"] for row in chosen.files[TRAIN]] == ["1"]
    assert chosen.refused == {"duplicate": 1, "no_prompt": 1, "too_short": 1}


def test_canonical_lines_are_json_with_sorted_keys() -> None:
    data = canonical([{"b": "ü", "a": 1}])
    assert data == '{"a":1,"b":"ü"}\n'.encode()
    assert orjson.loads(data) == {"a": 1, "b": "ü"}


CALL = ToolCall(id="c1", name="get_weather", arguments='{"unit":"C","city":"Rome"}')
CALLED = Message(role="assistant", content="", tool_calls=(CALL,))
TOOLS = (Tool(name="get_weather", parameters='{"type":"object","properties":{}}'),)


def tool_pair(**fields: Any) -> PreferencePair:
    result = Message(role="tool", content="21 C", tool_call_id="c1")
    given = {
        "messages": (*turns("weather in Rome?"), CALLED, result),
        "tools": TOOLS,
        "rejected_turn": CALLED,
        **fields,
    }
    return pair_event(1, **given)


def test_tool_turns_in_history_are_in_the_row_in_the_order_of_their_keys() -> None:
    (line,) = canonical([pair_of(tool_pair()).row()]).splitlines()
    row = orjson.loads(line)
    call = {
        "id": "c1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": CALL.arguments},
    }
    question, called, result = row["messages"]
    assert question == {"role": "user", "content": "weather in Rome?"}
    assert called == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert result == {"role": "tool", "content": "21 C", "tool_call_id": "c1"}
    assert (row["rejected_turn"], "chosen_turn" in row) == (called, False)
    (tool,) = orjson.loads(row["tools"])
    assert list(tool["function"]["parameters"]) == ["type", "properties"]
    assert prompt_of(row) == AskedPrompt(pair_of(tool_pair()).messages, TOOLS)


def test_text_rows_are_what_they_were() -> None:
    assert pair(1, meta={"source": "vote"}).row() == {
        "messages": [{"role": "user", "content": "question 1"}],
        "chosen": "a good answer 1",
        "rejected": "a bad answer 1",
        "meta": {"pair_id": "pair-0001", "source": "vote"},
    }


def test_same_question_other_picture_is_left_out_and_counted() -> None:
    part = ContentPart(type="image", sha256="a" * 64)
    seen = Message(role="user", content="[image]", parts=(part,))
    fold = PreferenceFold(MODEL)
    for event in (
        pair_event(1),
        pair_event(2, untrainable=("media",)),
        pair_event(3, messages=(seen,)),  # a vote, whose event has no reasons
        pair_event(4, untrainable=("several_choices", "echo")),
        example_event(1).model_copy(update={"untrainable": ("media",)}),
        example_event(2),
    ):
        fold.apply(event)
    chosen = select_pairs(fold.pairs, [], fold.answers, NO_HELDOUT)
    assert [row["meta"]["pair_id"] for row in chosen.files[TRAIN]] == ["pair-0001"]
    assert chosen.refused == {"media": 2, "prompt_media": 1, "several_choices": 1}
    assert keys(list(chosen.files[PROMPTS])) == {"thumbed question 2"}
    demonstrated = demonstrations_of(fold.pairs[:2])
    assert select_demonstrations(demonstrated, NO_HELDOUT).refused == {}
    corrected = [replace(one, meta={"source": "correction"}) for one in fold.pairs]
    chosen = select_demonstrations(demonstrations_of(corrected), NO_HELDOUT)
    assert (len(chosen.files[TRAIN]), chosen.refused) == (1, {"media": 2, "several_choices": 1})
