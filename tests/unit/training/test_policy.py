"""How far a dataset's answers are from the version that is trained."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from functools import partial

import pytest

from services.training.dataset import capped
from services.training.policy import (
    accounting,
    lineage,
    nearest,
    policy_of,
    settings_policies,
    weighted,
)
from services.training.sides import DatasetRules
from shared.contracts.events.base import utc
from shared.contracts.events.versions import ServedSettings, record_key, settings_key
from shared.registry.versions import Registry
from tests.support.rollouts import settings_record
from tests.unit.training.builders import NOW, pair, record

CHAIN = ("m-v1.2", "m-v1.1", "m-v1.0")


def row(chosen: str, rejected: str, days: float = 0) -> dict[str, object]:
    return {
        "meta": {
            "chosen_version": chosen,
            "rejected_version": rejected,
            "created_at": utc(NOW - timedelta(days=days)),
        }
    }


def test_share_lag_and_age() -> None:
    rows = [
        row("m-v1.2", "m-v1.2", 1),
        row("m-v1.2", "m-v1.0", 3),
        row("m-v1.1", "m-v1.1", 5),
        row("other", "m-v1.2", 7),
    ]
    assert accounting(rows, CHAIN, NOW) == pytest.approx(
        {"data_on_policy_share": 0.25, "data_policy_lag": 1.0, "data_age_days": 4.0}
    )


def test_what_nobody_knows_has_no_figure() -> None:
    assert accounting([{"meta": {}}, {}], CHAIN, NOW) == {}
    assert accounting([], (), NOW) == {}
    assert accounting([row("", "")], CHAIN, NOW) == {"data_age_days": 0.0}


def test_perplexity_is_of_the_newest_generations_that_have_rows_enough() -> None:
    own, mixed, old = row("m-v1.2", "m-v1.2"), row("m-v1.2", "m-v1.1"), row("m-v1.0", "m-v1.0")
    corrected, unknown = row("", "m-v1.2"), {"meta": {}}
    rows = [unknown, old, mixed, own, corrected, row("other", "m-v1.2")]
    assert nearest(rows, CHAIN, least=1) == [own, corrected]
    assert nearest(rows, CHAIN, least=2) == [own, corrected]
    assert nearest(rows, CHAIN, least=3) == [own, corrected, mixed], "a generation is read whole"
    assert nearest(rows, CHAIN, least=4) == [own, corrected, mixed, old]
    assert sorted(map(str, nearest(rows, CHAIN, least=5))) == sorted(map(str, rows))
    assert nearest(rows, (), least=1) == rows, "without a parent none is nearer"


def test_answers_of_settings_are_of_their_adapter_s_generation() -> None:
    cooler, old = row("cooler", "m-v1.2"), row("m-v1.0", "m-v1.0")
    policies = {"cooler": "m-v1.1"}
    found = nearest([old, cooler], CHAIN, lambda name: policies.get(name, name), least=1)
    assert found == [cooler]


def test_settings_over_an_adapter_are_its_policy_but_for_a_system_prompt() -> None:
    registry = Registry()
    registry.apply(record_key("m-v1.2"), record("m-v1.2").to_json())
    for version in (
        settings_record("cooler", adapter_of="m-v1.2", model="m"),
        settings_record("polite", ServedSettings(system="Be polite."), adapter_of="m-v1.2"),
        settings_record("base-alone", model="m"),
    ):
        registry.apply(settings_key(version.version), version.to_json())
    policy = partial(policy_of, registry=registry)
    rows = [row("cooler", "m-v1.2"), row("polite", "m-v1.2"), row("base-alone", "m-v1.2")]
    figures = accounting(rows, CHAIN, NOW, policy)
    assert figures["data_on_policy_share"] == pytest.approx(1 / 3)
    assert figures["data_policy_lag"] == 0.0
    assert policy("gone") == "gone"


def test_a_base_as_it_is_is_the_last_of_its_chain_s_policies() -> None:
    registry = Registry()
    registry.apply(record_key("m-v1.1"), record("m-v1.1").to_json())
    for version in (
        settings_record("bare", model="m"),
        settings_record("polite", ServedSettings(system="Be polite."), model="m"),
        settings_record("foreign", model="m", base="another"),
        settings_record("gone", model="m", adapter_of="m-v0.9"),
    ):
        registry.apply(settings_key(version.version), version.to_json())
    policy = partial(policy_of, registry=registry)
    bare, polite = row("bare", "bare"), row("polite", "polite")
    rows = [bare, polite, row("foreign", "bare"), row("gone", "bare")]

    begun = lineage("", registry, "base")
    figures = accounting(rows, begun, NOW, policy)
    assert (figures["data_on_policy_share"], figures["data_policy_lag"]) == (0.25, 0.0)
    assert nearest([polite, bare], begun, policy, least=1) == [bare]

    child = lineage("m-v1.1", registry, "base")
    figures = accounting(rows, child, NOW, policy)
    assert (figures["data_on_policy_share"], figures["data_policy_lag"]) == (0.0, 1.0)
    assert settings_policies(child, registry) == {"bare": begun[0]}


def test_a_lineage_ends_and_never_turns_in_a_circle() -> None:
    registry = Registry()
    for name, parent in (("a", "b"), ("b", "c"), ("c", "a")):
        registry.apply(record_key(name), record(name, parent=parent).to_json())
    assert lineage("a", registry) == ("a", "b", "c")
    assert lineage("", registry) == ()
    assert lineage("gone", registry) == ("gone",)


def test_rows_weigh_less_by_each_generation_and_unknown_writers_keep_theirs() -> None:
    rules = DatasetRules(lag_weight=0.5, lineage=("v3", "v2", "v1"))
    rows = [
        pair(number, meta={"chosen_version": version, "rejected_version": "v3"})
        for number, version in enumerate(["v3", "v2", "v1", "other"] * 500)
    ]
    kept = weighted(rows, rules)
    shares = Counter(row.meta["chosen_version"] for row in kept)
    assert shares["v3"] == shares["other"] == 500
    assert shares["v2"] / 500 == pytest.approx(0.5, abs=0.08)
    assert shares["v1"] / 500 == pytest.approx(0.25, abs=0.08)
    assert weighted(rows, rules) == kept, "a rebuild keeps the same rows"
    assert weighted(rows, DatasetRules()) == rows


def test_settings_over_an_older_adapter_weigh_as_it_does() -> None:
    registry = Registry()
    for name in ("v2", "v1", "stranger"):
        registry.apply(record_key(name), record(name).to_json())
    for version in (
        settings_record("cooler", adapter_of="v1"),
        settings_record("polite", ServedSettings(system="Be polite."), adapter_of="v1"),
        settings_record("foreign", adapter_of="stranger"),
    ):
        registry.apply(settings_key(version.version), version.to_json())
    policies = settings_policies(("v2", "v1"), registry)
    assert policies == {"cooler": "v1"}
    rules = DatasetRules(lag_weight=0.1, lineage=("v2", "v1"), policies=policies)
    rows = [
        pair(number, meta={"chosen_version": version, "rejected_version": version})
        for number, version in enumerate(["cooler", "polite"] * 300)
    ]
    kept = Counter(row.meta["chosen_version"] for row in weighted(rows, rules))
    assert kept["polite"] == 300
    assert kept["cooler"] / 300 == pytest.approx(0.1, abs=0.06)


def test_rows_that_weigh_less_are_counted_as_left_out() -> None:
    rules = DatasetRules(lag_weight=0.1, lineage=("v2", "v1"), rater_share=1)
    refused: Counter[str] = Counter()
    old = {"chosen_version": "v1", "rejected_version": "v1"}
    kept = capped([pair(number, meta=old) for number in range(200)], rules, refused)
    assert refused["off_policy"] == 200 - len(kept) > 150
