"""What `ratchet kafka acls` allows, and what it does not."""

from __future__ import annotations

import json

import pytest

from services.aggregator.settings import AggregatorSettings
from services.feedback.erasure import eraser
from services.feedback.intake import handler
from services.inference.batch_consumer import group_of
from shared.contracts.topics import FEEDBACK, ROLLOUTS, intake_topic
from shared.kafka.acls import CONSUMER_GROUPS, GROUP_PREFIXES, REPLAYING, required_acls
from tests.support.command import ratchet_here


def test_a_tenants_products_may_write_their_intake_and_nothing_else() -> None:
    rules = set(required_acls(("acme", "umbrella"), prefix="r-"))
    assert {
        (one.operation, one.resource, one.name, one.pattern)
        for one in rules
        if one.principal == "User:r-tenant-acme"
    } == {
        ("Write", "topic", intake_topic("acme"), "literal"),
        ("Describe", "topic", intake_topic("acme"), "literal"),
    }


def test_a_service_writes_only_what_its_topics_declare() -> None:
    rules = set(required_acls(("acme",), prefix=""))
    writers = {one.principal for one in rules if (one.operation, one.name) == ("Write", FEEDBACK)}
    assert writers == {"User:feedback", *(f"User:{one}" for one in REPLAYING)}
    assert not [one for one in rules if one.principal == "User:products"]
    decided = {one.principal for one in rules if (one.operation, one.name) == ("Write", ROLLOUTS)}
    assert decided == {"User:rollout"}, "no replay of dead letters reaches decisions"


def test_every_service_sees_all_topics_for_which_it_waits() -> None:
    rules = set(required_acls(("acme",), prefix=""))
    see_all = {
        one.principal for one in rules if one[1:] == ("Describe", "topic", "ratchet.", "prefixed")
    }
    assert see_all == {one.principal for one in rules} - {"User:tenant-acme"}


def test_consumer_groups_are_those_that_the_services_join() -> None:
    assert CONSUMER_GROUPS["feedback"] == (handler.GROUP, eraser.GROUP)
    assert CONSUMER_GROUPS["aggregator"] == (AggregatorSettings().app_id,)
    assert group_of("a base").startswith(GROUP_PREFIXES["inference"])
    rule = ("User:inference", "Read", "group", GROUP_PREFIXES["inference"], "prefixed")
    assert rule in set(required_acls(("acme",), prefix=""))


def test_rules_are_printed_for_people_programs_and_kafkas_own_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RATCHET_TENANTS", "acme")

    def run(*options: str) -> str:
        return ratchet_here("kafka", "acls", *options, monkeypatch=monkeypatch, capsys=capsys).out

    lines = run("--arguments").splitlines()
    assert len(lines) == len(json.loads(run("--json"))) == len(set(lines))
    assert (
        "--add --allow-principal User:ratchet-tenant-acme --operation Write "
        "--topic ratchet.feedback-intake.acme.v1 --resource-pattern-type literal"
    ) in lines
    assert "User:ratchet-tenant-acme" in run()
