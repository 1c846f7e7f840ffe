"""Caps: no rater, tenant or label has more than its share of what is trained on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import timedelta

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.training.caps import balance, cap_shares
from services.training.dataset import select_pairs
from services.training.dataset_manifest import MOST_VALUES, OTHERS
from services.training.dataset_rows import TRAIN, LabelledAnswer, LeftOut, canonical
from services.training.labelled import select_labelled
from services.training.sides import DatasetRules
from services.training.snapshot import take_snapshot
from shared.contracts.events.base import Context
from shared.contracts.events.preferences import PairSource, PreferencePair
from shared.contracts.events.training import TrainingMethod
from shared.contracts.topics import PREFERENCES
from shared.testing.log import MemoryLog
from tests.unit.training.builders import MODEL, NOW, pair, pair_event, turns

RULES = DatasetRules(heldout_share=0.0, judge_share=0.0)


@given(st.lists(st.integers(0, 60), min_size=1, max_size=80), st.integers(0, 30))
def test_no_rater_has_more_than_the_share_and_no_row_goes_without_need(
    counts: list[int], free: int
) -> None:
    rows = [(f"r{who}", n) for who, many in enumerate(counts) for n in range(many)]
    rows += [("", n) for n in range(free)]
    kept = cap_shares(rows, lambda row: (row[0],) if row[0] else (), str, 0.02)
    had = Counter(rater for rater, _ in kept if rater)
    raters = sum(many > 0 for many in counts)
    if had:
        most = max(had.values())
        assert most == 1 or most <= max(0.02, 2 / raters) * len(kept) + 1e-9
        for who, many in enumerate(counts):
            assert had[f"r{who}"] == min(many, most)
    assert sum(not rater for rater, _ in kept) == free


def test_what_one_rater_has_too_much_is_counted_and_the_same_each_time() -> None:
    loud = [pair(n, raters=("loud",)) for n in range(60)]
    others = [pair(100 + n, raters=(f"r{n}",)) for n in range(99)]
    made = [select_pairs([*loud, *others], [], [], RULES) for _ in range(2)]
    first, second = (replace(one, files={}) for one in made)
    assert first == second
    for name, rows in made[0].files.items():
        assert canonical(rows) == canonical(made[1].files[name])
    assert made[0].refused == {"rater_cap": 58}
    assert len(made[0].files[TRAIN]) == 101
    assert not select_pairs(
        [*loud, *others], [], [], RULES.model_copy(update={"rater_share": 1.0})
    ).refused


def test_a_tenant_has_its_share_at_most() -> None:
    pairs = [
        pair(n, tenant="big" if n < 80 else f"t{n % 10}", raters=(f"r{n}",)) for n in range(120)
    ]
    rules = RULES.model_copy(update={"tenant_share": 0.25})
    selection = select_pairs(pairs, [], [], rules)
    kept = 120 - selection.refused["tenant_cap"]
    big = kept - 40
    assert big <= 0.25 * kept < big + 1


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 20), st.sampled_from([0.5, 0.6, 0.8]))
def test_neither_label_has_more_than_its_share(
    good: int, bad: int, both: int, share: float
) -> None:
    rows = [(True, n) for n in range(good)] + [(False, n) for n in range(bad)]
    rows += [(None, n) for n in range(both)]
    rules = DatasetRules(label_share=share)
    kept = Counter(label for label, _ in balance(rows, lambda row: row[0], str, rules))
    larger, smaller = max(kept[True], kept[False]), min(kept[True], kept[False])
    assert (kept[None], smaller) == (both, min(good, bad))
    whole = larger + smaller + 2 * both
    assert larger + both <= share * whole + 1e-6 or larger == smaller or not larger
    if larger < max(good, bad):
        assert larger + 1 + both > share * (whole + 1) - 1e-6


def test_good_answers_beyond_the_share_are_left_out_and_counted() -> None:
    answers = [
        LabelledAnswer(
            f"a{n}", turns(f"question {n}"), f"some answer {n}", n >= 10, raters=(f"r{n}",)
        )
        for n in range(40)
    ]
    rules = RULES.model_copy(update={"label_share": 0.5})
    selection = select_labelled([], answers, rules)
    assert selection.refused == {"unbalanced": 20}
    assert Counter(row["label"] for row in selection.files[TRAIN]) == {True: 10, False: 10}
    assert not select_labelled([], answers, RULES).refused


async def test_suspicious_votes_are_left_out_of_the_dataset_and_stay_in_the_log() -> None:
    log = MemoryLog()
    burst = [
        pair_event(n, raters=("fast",), created_at=NOW + timedelta(seconds=n)) for n in range(25)
    ]
    slow = [
        pair_event(100 + n, created_at=NOW + timedelta(hours=n), chosen_side="left")
        for n in range(20)
    ]
    for event in (*burst, *slow):
        await log.publish(PREFERENCES, key=event.pair_id, event=event, event_id=event.pair_id)
    dataset = await take_snapshot(log, model=MODEL, method=TrainingMethod.dpo, rules=RULES)
    assert dataset.manifest.refused == {"burst": 25}
    assert dataset.manifest.files[TRAIN].rows == 20
    assert isinstance(burst[0], PreferencePair)
    assert len(log.all(PREFERENCES)) == 45


@pytest.mark.parametrize(
    "method", [TrainingMethod.sft, TrainingMethod.dpo], ids=lambda method: method.value
)
@pytest.mark.parametrize("labelled", [False, True], ids=["pairs", "labelled"])
async def test_the_record_has_each_tenants_rows_and_a_majority(
    method: TrainingMethod, labelled: bool
) -> None:
    log = MemoryLog()
    for number in range(10):
        event = pair_event(
            number, tenant="acme" if number < 7 else "globex", source=PairSource.correction
        )
        await log.publish(PREFERENCES, key=event.pair_id, event=event, event_id=event.pair_id)
    dataset = await take_snapshot(log, model=MODEL, method=method, rules=RULES, labelled=labelled)
    each = 2 if labelled and method is TrainingMethod.dpo else 1
    reference = dataset.reference("file:///d")
    assert reference.tenants == {"acme": 7 * each, "globex": 3 * each}
    assert reference.majority == ("acme", 0.7)
    rows = [orjson.loads(line) for line in dataset.files[TRAIN].splitlines()]
    left_out = [
        LeftOut(file=TRAIN, line=line, reason="too_long", detail="")
        for line, row in enumerate(rows, start=1)
        if row["meta"]["tenant"] == "acme"
    ][: 4 * each]
    left = dataset.without(left_out).reference("file:///d")
    assert (left.tenants, left.majority) == ({"acme": 3 * each, "globex": 3 * each}, None)


async def test_the_record_has_the_cards_most_frequent_values_splits_and_rules() -> None:
    log = MemoryLog()
    for number in range(MOST_VALUES + 20):
        context = Context(segment="common" if number < 10 else f"segment {number}")
        event = pair_event(number, context=context)
        await log.publish(PREFERENCES, key=event.pair_id, event=event, event_id=event.pair_id)
    dataset = await take_snapshot(log, model=MODEL, method=TrainingMethod.dpo, rules=RULES)
    reference = dataset.reference("file:///d")
    whole, shown = dataset.manifest.card["segment"], reference.card["segment"]
    assert len(whole) > MOST_VALUES + 1 == len(shown)
    assert max(shown, key=lambda name: shown[name]) in ("common", OTHERS)
    assert sum(shown.values()) == sum(whole.values())
    assert reference.card["source"] == dataset.manifest.card["source"]
    assert reference.splits["train"] == reference.rows
    assert reference.splits.keys() == {"train", "heldout", "judge", "prompts", "left_out"}
    assert reference.rules == dataset.manifest.rules.model_dump(mode="json")


async def test_one_tenants_dataset_has_no_majority_and_an_older_rule_no_tenants() -> None:
    log = MemoryLog()
    for number in range(4):
        event = pair_event(number, tenant="acme" if number else "globex")
        await log.publish(PREFERENCES, key=event.pair_id, event=event, event_id=event.pair_id)
    older = RULES.model_copy(update={"describe_tenants": False})
    dataset = await take_snapshot(log, model=MODEL, method=TrainingMethod.dpo, rules=older)
    assert dataset.reference("").tenants == {}
    assert b"acme" not in dataset.files[TRAIN]
    gone = [LeftOut(file=TRAIN, line=1, reason="too_long", detail="")]
    whole = await take_snapshot(log, model=MODEL, method=TrainingMethod.dpo, rules=RULES)
    assert whole.reference("").majority == ("acme", 0.75)
    assert whole.without(gone).reference("").tenants == {}
