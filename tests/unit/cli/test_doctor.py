"""What the doctor says of what it finds."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from services.cli.doctor_kafka import (
    groups_of_bases,
    key_findings,
    lag_findings,
    topic_findings,
)
from services.cli.doctor_prometheus import (
    MAX_ALERTS,
    RULE,
    alert_findings,
    clock_findings,
    disk_findings,
    rule_findings,
    scrape_findings,
)
from services.cli.doctor_services import detector_finding, engine_findings, service_finding
from services.cli.errors import Exit
from services.cli.prometheus import Alert, Sample
from shared.contracts.events.api_keys import ApiKeyIssued, Permission
from shared.kafka.topics import TopicReport
from tests.support.command import ratchet_here

NOW = datetime(2026, 11, 25, tzinfo=UTC)


def key(key_id: str, days: float | None = None) -> ApiKeyIssued:
    return ApiKeyIssued(
        key_id=key_id,
        sha256="0" * 64,
        tenant="acme",
        scopes=(Permission.infer,),
        issued_at=NOW - timedelta(days=90),
        expires_at=None if days is None else NOW + timedelta(days=days),
    )


def test_alerts_that_fire_are_named_with_their_runbooks() -> None:
    alerts = [Alert("RatchetLate", "2 behind", ""), Alert("RatchetDown", "gone", "http://r#down")]
    found = [(one.state, one.detail, one.remedy) for one in alert_findings(alerts)]
    assert found == [
        ("look", "RatchetDown fires: gone", "http://r#down"),
        ("look", "RatchetLate fires: 2 behind", "docs/runbooks.md, section RatchetLate"),
    ]
    many = [Alert(f"Ratchet{number:03}", "", "") for number in range(MAX_ALERTS + 3)]
    found = alert_findings(many)
    assert (len(found), found[-1].detail) == (MAX_ALERTS + 1, "3 more fire")
    assert alert_findings([]) == []


def test_missing_topics_are_wrong_and_others_only_differ() -> None:
    report = TopicReport(created=["a"], unchanged=["c"], drift=["b: 1 partitions, declared 4"])
    states = {(one.what, one.state) for one in topic_findings(report, "kafka:9092")}
    assert states == {("kafka", "ok"), ("topics", "wrong"), ("topics", "look")}
    (_, fine) = topic_findings(TopicReport(unchanged=["c"]), "kafka:9092")
    assert (fine.state, fine.remedy) == ("ok", "")


def test_lag_is_looked_at_where_it_is_large() -> None:
    found = {one.what: one.state for one in lag_findings({"g": 10_000, "h": 10_001})}
    assert found == {"lag of g": "ok", "lag of h": "look"}
    assert [(one.what, one.state) for one in lag_findings({})] == [("lag", "look")]


async def test_groups_of_bases_are_those_in_which_a_worker_consumes() -> None:
    """One of a base that no engine serves any more stands still, which is no lag."""
    served, left, other = "ratchet.inference.a", "ratchet.inference.b", "ratchet.training"

    class Admin:
        async def list_consumer_groups(self) -> list[tuple[str, str]]:
            return [(name, "consumer") for name in (served, left, other)]

        async def describe_consumer_groups(self, names: list[str]) -> list[SimpleNamespace]:
            found = [
                (0, name, "", "consumer", "range", ["one"] if name == served else [])
                for name in names
            ]
            return [SimpleNamespace(groups=found)]

    assert await groups_of_bases(Admin()) == [served]


@pytest.mark.parametrize(
    ("keys", "profile", "states"),
    [
        ([], "local", ["ok"]),
        ([], "production", ["wrong"]),
        ([key("k", -1)], "production", ["wrong"]),
        ([key("k")], "production", ["ok"]),
        ([key("k"), key("soon", 3), key("later", 30)], "production", ["look"]),
    ],
)
def test_keys(keys: list[ApiKeyIssued], profile: str, states: list[str]) -> None:
    found = key_findings(keys, profile, NOW.timestamp())
    assert [one.state for one in found] == states
    if states == ["look"]:
        assert found[0].remedy == "ratchet keys rotate soon"


@pytest.mark.parametrize(
    ("theirs", "state"), [(100, "ok"), (104.9, "ok"), (96, "ok"), (106.1, "wrong"), (94, "wrong")]
)
def test_the_clock_may_be_five_seconds_off(theirs: float, state: str) -> None:
    assert [one.state for one in clock_findings(theirs, 100, 101)] == [state]


@pytest.mark.parametrize(("ages", "state"), [([], "wrong"), ([3, 31], "wrong"), ([3, 30], "ok")])
def test_scrapes_must_be_young_for_the_judge(ages: list[float], state: str) -> None:
    assert [one.state for one in scrape_findings(ages)] == [state]


def room(job: str, directory: str, share: float) -> Sample:
    return Sample({"job": job, "instance": f"{job}:1", "directory": directory}, share)


def test_a_volume_that_fills_up_is_named_whichever_service_has_it() -> None:
    enough = [room("aggregator", "data", 0.15), room("router", "data", 0.5)]
    (fine,) = disk_findings(enough)
    assert fine.state == "ok"
    assert fine.detail == (
        "aggregator, router: all have room; least has aggregator at aggregator:1, data, 15%"
    )
    full = [room("training", "temporary", 0.149), room("feedback", "data", 0.0)]
    assert [(one.state, one.detail) for one in disk_findings([*enough, *full])] == [
        ("wrong", "feedback at feedback:1, data has 0.0% left"),
        ("wrong", "training at training:1, temporary has 14.9% left"),
    ]
    (unknown,) = disk_findings([])
    assert unknown.state == "look"
    assert unknown.remedy


def test_the_rule_it_looks_for_exists() -> None:
    assert rule_findings({RULE})[0].state == "ok"
    assert rule_findings({"other"})[0].state == "look"


def test_a_service_says_by_its_checks_what_is_wrong() -> None:
    ready = service_finding("router", "http://r", 200, '{"checks": {"kafka": "ok"}}')
    assert ready.state == "ok"
    away = service_finding(
        "router", "http://r", 503, '{"checks": {"kafka": "away", "redis": "ok"}}'
    )
    assert (away.state, away.detail) == ("wrong", "kafka: away")
    assert service_finding("router", "http://r", 500, "oops").detail == "answer: status 500"


def test_engines_name_what_is_refused_and_that_they_crash() -> None:
    adapters = [
        {"version": "v1", "state": "ready"},
        {"version": "v2", "state": "refused", "reason": "mismatch"},
        {"version": "v3", "state": "loading"},
    ]
    metrics = (
        'ratchet_inference_engine_ends_total{cause="exit"} 3.0\n'
        'ratchet_inference_engine_ends_total{cause="asked"} 9.0\n'
    )
    found = {one.what: one.state for one in engine_findings(adapters, metrics)}
    assert found == {"adapter v2": "wrong", "adapter v3": "look", "engine": "wrong"}
    assert engine_findings(adapters[:1], metrics.replace("3.0", "2.0")) == []


def test_nothing_runs_and_everything_is_named_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RATCHET_PORT_BASE", "1")  # nobody listens there
    ran = ratchet_here("doctor", "--json", monkeypatch=monkeypatch, capsys=capsys)
    assert ran.status == Exit.failed
    found = ran.json["findings"]
    wrong = {one["what"] for one in found if one["state"] == "wrong"}
    assert {"kafka", "redis", "prometheus", "router", "inference"} <= wrong
    assert all(one["remedy"] for one in found if one["state"] != "ok")


def test_a_detector_is_asked_for_what_it_must_find() -> None:
    name = {"entity_type": "PERSON", "start": 0, "end": 11, "score": 0.85}
    assert detector_finding("en", 200, json.dumps([[name]])).state == "ok"
    assert detector_finding("en", 200, "[[]]").state == "look"
    for status, text in ((0, "refused"), (500, "no language"), (200, "<html>"), (200, "[]")):
        found = detector_finding("de", status, text)
        assert (found.what, found.state) == ("detector, de", "wrong")
        assert "RATCHET_DETECTOR_URL" in found.remedy
