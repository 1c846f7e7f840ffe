"""The console's API beside rollouts: what operators see of the log, and what they write to it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from services.rollout.console import operator_actions, operator_views
from services.rollout.console.files import PAGES
from services.rollout.console.quality import daily_figures
from shared.contracts.events.api_keys import ApiKeyIssued, Permission
from shared.contracts.events.audit import ActionAudited
from shared.contracts.events.erasures import ErasureCompleted, ErasureRequested
from shared.contracts.events.preferences import PreferenceRetracted
from shared.contracts.events.quality import QualityWindow
from shared.contracts.events.training import (
    RunPhase,
    TrainingCancelled,
    TrainingMethod,
    TrainingProgress,
    TrainingRequested,
)
from shared.contracts.events.versions import VersionMarks, marks_key
from shared.contracts.subject import subject_of
from shared.contracts.topics import (
    API_KEYS,
    AUDIT,
    ERASURES,
    FEEDBACK,
    PREFERENCES,
    QUALITY,
    TRAINING_JOBS,
    TRAINING_RUNS,
    VERSIONS,
)
from shared.kafka.deadletters import DeadLetters
from shared.kafka.log import LogUnavailable, Record, read_events
from shared.keys import KeyRing, hash_key, new_key
from shared.pseudonyms import UserPseudonyms
from tests.support.rollouts import publish_pairs
from tests.support.waiting import eventually
from tests.unit.rollout.conftest import client
from tests.unit.rollout.fakes import ControllerHarness, register, until_known

WHY = {"reason": "a drill", "on_behalf_of": "ann"}
NOW = datetime(2026, 1, 1, tzinfo=UTC)
PATIENCE_S = 60.0


def audited(harness: ControllerHarness) -> list[tuple[str, str, str, str]]:
    """Action, actor, person and reason of each record on the audit topic, sorted."""
    found = [ActionAudited.model_validate_json(one.value or b"") for one in harness.log.all(AUDIT)]
    return sorted((one.action, one.actor, one.on_behalf_of, one.reason) for one in found)


async def put_jobs(harness: ControllerHarness) -> None:
    for job_id in ("runs", "ended"):
        job = TrainingRequested(
            job_id=job_id, model="m", method=TrainingMethod.dpo, actor="ann", requested_at=NOW
        )
        await harness.log.publish(TRAINING_JOBS, key=job_id, event=job, event_id=job_id)
    for minute, (job_id, phase, done) in enumerate(
        [
            ("runs", RunPhase.accepted, 0.0),
            ("runs", RunPhase.training, 0.25),
            ("ended", RunPhase.rejected, 1.0),
        ]
    ):
        told = TrainingProgress(
            job_id=job_id,
            model="m",
            method=TrainingMethod.dpo,
            phase=phase,
            progress=done,
            at=NOW + timedelta(minutes=minute),
        )
        await harness.log.publish(TRAINING_RUNS, key=job_id, event=told, event_id=f"{minute}")


async def test_a_key_is_shown_once_works_and_is_on_record(
    harness: ControllerHarness, http: httpx.AsyncClient
) -> None:
    body = {"scopes": ["infer", "feedback"], "tenant": "acme", "name": "shop", "days": 30, **WHY}
    answer = await http.post("/v1/keys", json=body)
    assert (answer.status_code, answer.headers["cache-control"]) == (201, "no-store")
    issued = answer.json()
    ring = KeyRing(required=True, now=lambda: harness.clock.now().timestamp())
    for record in harness.log.all(API_KEYS):
        assert issued["key"].encode() not in (record.value or b""), "only the hash is kept"
        ring.apply(record.key, record.value)
    key = ring.authenticate(f"Bearer {issued['key']}", Permission.feedback)
    assert (key.key_id, key.tenant) == (issued["key_id"], "acme")
    (listed,) = (await http.get("/v1/keys")).json()["keys"]
    assert (listed["name"], listed["state"]) == ("shop", "valid")
    assert "sha256" not in listed
    assert audited(harness) == [("key.issued", "local", "ann", "a drill")]


async def test_a_rotated_key_overlaps_and_a_revoked_one_is_gone(
    harness: ControllerHarness, http: httpx.AsyncClient
) -> None:
    old = (await http.post("/v1/keys", json={"scopes": ["infer"], **WHY})).json()["key_id"]
    rotated = await http.post(f"/v1/keys/{old}/rotate", json={"overlap_hours": 2, **WHY})
    assert rotated.status_code == 201
    keys = {one["key_id"]: one for one in (await http.get("/v1/keys")).json()["keys"]}
    end = datetime.fromisoformat(keys[old]["expires_at"])
    assert end == harness.clock.now() + timedelta(hours=2)
    assert keys[rotated.json()["key_id"]]["expires_at"] is None
    assert (await http.post(f"/v1/keys/{old}/revoke", json=WHY)).json() == {"revoked": old}
    assert old not in {one["key_id"] for one in (await http.get("/v1/keys")).json()["keys"]}
    gone = await http.post(f"/v1/keys/{old}/revoke", json=WHY)
    assert (gone.status_code, gone.json()["code"]) == (404, "not_found")
    assert [one[0] for one in audited(harness)] == [
        "key.issued", "key.issued", "key.revoked", "key.rotated",
    ]  # fmt: skip


async def test_no_operator_gets_a_second_identity(harness: ControllerHarness) -> None:
    """A gate with four eyes compares keys, so nobody may come by another operator's."""
    secrets = {name: new_key() for name in ("ann", "bob")}
    keys = KeyRing(required=True)
    for name, secret in secrets.items():
        issued = ApiKeyIssued(
            key_id=name,
            sha256=hash_key(secret),
            tenant="t",
            scopes=(Permission.operate,),
            issued_at=NOW,
        )
        keys.apply(name, issued.to_json())
        await harness.log.publish(API_KEYS, key=name, event=issued, event_id=name)
    async with client(harness, keys) as http:
        http.headers["authorization"] = f"Bearer {secrets['ann']}"
        new = await http.post("/v1/keys", json={"scopes": ["operate"], **WHY})
        others = await http.post("/v1/keys/bob/rotate", json=WHY)
        own = await http.post("/v1/keys/ann/rotate", json=WHY)
    assert [one.status_code for one in (new, others, own)] == [403, 403, 201]
    assert "command line" in new.json()["detail"]
    assert {one[1] for one in audited(harness)} == {"ann"}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/keys", {"scopes": ["infer"]}, 422),
        ("/v1/keys", {"scopes": [], **WHY}, 422),
        ("/v1/keys", {"scopes": ["infer"], "approver": True, **WHY}, 422),
        ("/v1/keys/none/rotate", {"overlap_hours": -1, **WHY}, 422),
        ("/v1/keys/none/revoke", {"reason": ""}, 422),
        ("/v1/training/jobs/none/cancel", WHY, 404),
        ("/v1/training/jobs", {"model": "m"}, 422),
        ("/v1/training/jobs", {"model": "m", "recipe": "method: guess", **WHY}, 422),
        ("/v1/training/jobs", {"model": "m", "recipe": "hyperparameters: {betta: 1}", **WHY}, 422),
        ("/v1/erasures", {"user_id": "ann"}, 422),
        ("/v1/erasures", {"user_id": "", **WHY}, 422),
        ("/v1/dead-letters/replay", {"topic": "ratchet.none.v1", **WHY}, 404),
    ],
)
async def test_what_is_refused_leaves_no_trace(
    harness: ControllerHarness,
    http: httpx.AsyncClient,
    path: str,
    body: dict[str, Any],
    status: int,
) -> None:
    assert (await http.post(path, json=body)).status_code == status
    assert [harness.log.all(topic) for topic in (AUDIT, TRAINING_JOBS, ERASURES)] == [[], [], []]


async def test_jobs_have_their_time_left_and_a_running_one_is_cancelled(
    harness: ControllerHarness, http: httpx.AsyncClient
) -> None:
    await put_jobs(harness)
    jobs = {one["job_id"]: one for one in (await http.get("/v1/training/jobs")).json()["jobs"]}
    assert (jobs["runs"]["cancellable"], jobs["runs"]["seconds_left"]) == (True, 180.0)
    assert (jobs["ended"]["cancellable"], jobs["ended"]["phase"]) == (False, "rejected")
    assert (await http.post("/v1/training/jobs/ended/cancel", json=WHY)).status_code == 409
    assert (await http.post("/v1/training/jobs/runs/cancel", json=WHY)).status_code == 200
    (event,) = await read_events(
        harness.log, (TRAINING_JOBS,), TrainingCancelled, timeout_s=PATIENCE_S
    )
    assert (event.job_id, event.actor, event.reason) == ("runs", "local", "a drill")


async def test_a_training_is_asked_for_as_the_command_does(
    harness: ControllerHarness, http: httpx.AsyncClient
) -> None:
    recipe = "method: dpo\nseed: 7\nhyperparameters: {beta: 0.2}\n"
    body = {"model": "m", "method": "kto", "recipe": recipe, "override_gate": "true", **WHY}
    answer = await http.post("/v1/training/jobs", json=body)
    assert answer.status_code == 202
    (job,) = await read_events(
        harness.log, (TRAINING_JOBS,), TrainingRequested, timeout_s=PATIENCE_S
    )
    assert (job.job_id, job.recipe_method, job.seed) == (answer.json()["job_id"], "kto", 7)
    assert (job.hyperparameters, job.override_gate) == ({"beta": 0.2}, True)
    assert (job.actor, job.on_behalf_of, job.reason) == ("local", "ann", "a drill")
    refused = await http.post("/v1/training/jobs", json=body | {"method": "guess"})
    assert "method" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("body", "recipe", "field", "rule", "remedy"),
    [
        ({}, "parent: v9", "parent", "v9 is no version of m", "ratchet versions list has them"),
        ({}, "base: newer", "base", "newer is not base, on which v1 is served", "leave it out"),
        ({"version": "v1"}, "", "version", "v1 exists and names are never reused", "take another"),
        ({"model": "n"}, "", "base", "n has no stable version", "give a hub id or path"),
        ({}, "parent: a b", "parent", "a name has letters, digits", "choose another"),
    ],
)
async def test_a_training_that_cannot_be_done_is_refused_as_by_the_command(
    harness: ControllerHarness,
    http: httpx.AsyncClient,
    body: dict[str, Any],
    recipe: str,
    field: str,
    rule: str,
    remedy: str,
) -> None:
    asked = {"model": "m", "recipe": recipe and f"method: dpo\n{recipe}", **WHY, **body}
    refused = await http.post("/v1/training/jobs", json=asked)
    assert refused.status_code in {409, 422}, refused.text
    (error,) = refused.json()["errors"]
    assert error["field"] == field
    assert rule in error["rule"]
    assert remedy in error["remedy"]
    assert harness.log.all(TRAINING_JOBS) == []


async def test_a_training_waits_for_what_a_running_one_may_make(
    harness: ControllerHarness, http: httpx.AsyncClient
) -> None:
    await put_jobs(harness)
    asked = {"model": "m", "recipe": "{method: dpo, parent: v9}", **WHY}
    assert (await http.post("/v1/training/jobs", json=asked)).status_code == 202


async def test_an_erasure_names_the_person_of_the_keys_tenant_by_both_hashes(
    harness: ControllerHarness,
) -> None:
    pseudonyms = UserPseudonyms(b"s" * 32)
    async with client(harness, KeyRing(required=False), pseudonyms) as http:
        answer = await http.post("/v1/erasures", json={"user_id": "eve", **WHY})
    assert answer.status_code == 202
    (asked,) = await read_events(harness.log, (ERASURES,), ErasureRequested, timeout_s=PATIENCE_S)
    stored = pseudonyms.of("default", "eve")
    assert asked.subjects == tuple(subject_of("default", one) for one in (stored, "eve"))
    assert (asked.erasure_id, asked.tenant) == (answer.json()["erasure_id"], "default")
    assert (asked.actor, asked.on_behalf_of, asked.reason) == ("local", "ann", "a drill")
    assert b"eve" not in (harness.log.all(ERASURES)[0].value or b"")


async def put_pairs(harness: ControllerHarness, *, count: int) -> None:
    """Pairs of the harness's week in which v2 won, and the first of them taken back."""
    await publish_pairs(harness.log, "m", count=count, at=harness.clock.now())
    gone = PreferenceRetracted(
        pair_id="p0", tenant="default", reason="withdrawn", created_at=harness.clock.now()
    )
    await harness.log.publish(PREFERENCES, key="p0", event=gone, event_id="p0:gone")


async def test_the_weeks_report_counts_what_the_week_brought(
    harness: ControllerHarness, http: httpx.AsyncClient
) -> None:
    await put_pairs(harness, count=4)
    day = window(0, interactions=100, interactions_with_feedback=2)
    this_week = day.model_copy(update={"start": harness.clock.now()})
    await harness.log.publish(QUALITY, key="v1", event=this_week, event_id="v1")
    report = (await http.get("/v1/reports/weekly", params={"target": 10})).json()
    pairs = report["preferences"]
    assert (sum(pairs["per_day"].values()), pairs["retracted"], report["target"]) == (3, 1, 10)
    assert [(one["version"], one["wins"]) for one in pairs["duels"]] == [("v1", 0), ("v2", 3)]
    assert report["figures"] == {"v1": {"feedback_rate": 0.02}}
    assert [one["version"] for one in report["versions"]] == ["v1", "v2"]
    assert report["actions"][0] == (
        "Collect 7 more pairs: 3 of 10, about 3 by its end at this pace."
    )
    assert report["whole"]
    before = await http.get("/v1/reports/weekly", params={"week": "2020-01-01"})
    assert sum(before.json()["preferences"]["per_day"].values()) == 0
    wrong = await http.get("/v1/reports/weekly", params={"week": "last"})
    assert (wrong.status_code, wrong.json()["errors"][0]["field"]) == (422, "week")


async def test_a_report_says_where_the_week_has_more_than_a_look_reads(
    harness: ControllerHarness, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operator_views, "NEWEST", 1)
    await put_pairs(harness, count=20)
    assert not (await http.get("/v1/reports/weekly")).json()["whole"]


async def test_one_dead_letter_is_replayed_and_the_other_stays(
    harness: ControllerHarness, http: httpx.AsyncClient
) -> None:
    letters = DeadLetters(harness.log, service="t", redact=str, metrics=CollectorRegistry())
    for offset in (3, 4):
        bad = Record(FEEDBACK, 0, offset, "k", b'{"n":%d}' % offset, (("ce_type", b"x"),), 0)
        await letters.put(bad, "schema", "type: not a known type")
    listed = (await http.get("/v1/dead-letters")).json()["dead_letters"]
    assert {one["place"] for one in listed} == {f"{FEEDBACK}/0/3", f"{FEEDBACK}/0/4"}
    body = {"topic": FEEDBACK, "partition": 0, "offset": 4, **WHY}
    assert (await http.post("/v1/dead-letters/replay", json=body)).json() == {"replayed": 1}
    (record,) = harness.log.all(FEEDBACK)
    assert (record.key, record.value) == ("k", b'{"n":4}')
    assert audited(harness) == [("letters.replayed", "local", "ann", "a drill")]
    told = {
        one["source_offset"]: one
        for one in (await http.get("/v1/dead-letters")).json()["dead_letters"]
    }
    assert told[3]["replayed_at"] is None
    assert told[4]["replayed_at"] is not None
    assert not told[4]["unreadable_again"]


async def test_all_letters_of_a_topic_are_replayed_a_few_at_a_time(
    harness: ControllerHarness, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operator_actions, "REPLAYED_AT_A_TIME", 2)
    letters = DeadLetters(harness.log, service="t", redact=str, metrics=CollectorRegistry())
    for offset in (0, 1, 2, 3, 4, 4):
        bad = Record(FEEDBACK, 0, offset, "k", b"x" * 10_000, (("ce_type", b"x"),), 0)
        await letters.put(bad, "schema", "type: not a known type")
    listed = (await http.get("/v1/dead-letters")).json()["dead_letters"]
    assert [len(one["body"]) for one in listed] == [operator_views.MAX_BODY] * 5
    replayed = await http.post("/v1/dead-letters/replay", json={"topic": FEEDBACK, **WHY})
    assert replayed.json() == {"replayed": 5}
    assert len(harness.log.all(FEEDBACK)) == 5
    assert len(audited(harness)) == 3, "each batch is on record"


async def test_a_replay_that_cannot_be_recorded_puts_nothing(
    harness: ControllerHarness, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = DeadLetters(harness.log, service="t", redact=str, metrics=CollectorRegistry())
    await letters.put(Record(FEEDBACK, 0, 3, "k", b"{}", (), 0), "schema", "type: missing")

    async def away(*_: object, **__: object) -> None:
        raise LogUnavailable("away")

    monkeypatch.setattr("shared.kafka.deadletters.audit_action", away)
    answer = await http.post("/v1/dead-letters/replay", json={"topic": FEEDBACK, **WHY})
    assert answer.status_code == 503
    assert harness.log.all(FEEDBACK) == []


async def test_a_letter_that_names_a_topic_without_dead_letters_is_not_followed(
    harness: ControllerHarness, http: httpx.AsyncClient
) -> None:
    """Whoever may write dead letters would else issue keys by the hand of whoever replays them."""
    letters = DeadLetters(harness.log, service="t", redact=str, metrics=CollectorRegistry())
    made_up = Record(API_KEYS, 0, 3, "key-1", b'{"scopes":["operate"]}', (), 0)
    await letters.put(made_up, "schema", "made up")
    answer = await http.post("/v1/dead-letters/replay", json={"topic": API_KEYS, **WHY})
    assert (answer.status_code, answer.json()["code"]) == (422, "not_replayable")
    assert harness.log.all(API_KEYS) == []
    assert audited(harness) == []


async def test_an_erasure_is_requested_until_its_proof_is_there(
    harness: ControllerHarness, http: httpx.AsyncClient
) -> None:
    who = {"erasure_id": "e-1", "tenant": "t", "subjects": ("0" * 64,), "requested_at": NOW}
    asked = ErasureRequested.model_validate({**who, "actor": "key-1"})
    await harness.log.publish(ERASURES, key="0" * 64, event=asked, event_id="1")
    (shown,) = (await http.get("/v1/erasures")).json()["erasures"]
    assert (shown["state"], shown["proof"]) == ("requested", {})
    figures = {"traces": 2, "examples": 1, "products": 3, "completed_at": NOW}
    done = ErasureCompleted.model_validate({**who, **figures})
    await harness.log.publish(ERASURES, key="0" * 64, event=done, event_id="2")
    (shown,) = (await http.get("/v1/erasures")).json()["erasures"]
    assert (shown["state"], shown["proof"]["products"]) == ("completed", 3)


async def test_datasets_and_differences_are_those_of_the_versions(http: httpx.AsyncClient) -> None:
    (dataset,) = (await http.get("/v1/datasets")).json()["datasets"]
    assert dataset["used_by"] == ["v1", "v2"]
    assert "card" not in dataset, "a list of them stays small"
    found = await http.get("/v1/versions/differences", params={"first": "v1", "second": "v2"})
    assert "version" not in {one["field"] for one in found.json()["differences"]}
    params = {"first": "v1", "second": "v9"}
    assert (await http.get("/v1/versions/differences", params=params)).status_code == 404


async def test_a_dataset_has_its_card_and_what_was_trained_on_it(
    harness: ControllerHarness, http: httpx.AsyncClient
) -> None:
    card = {"counts": {"rows": 9, "raters": 3, "prompts": 8}, "category": {"creative": 9}}
    known = {
        "dataset_id": "d2",
        "splits": {"train": 9, "heldout": 1},
        "card": card,
        "rules": {"min_chars": 10},
        "refused": {"similar_answers": 2},
    }
    figures = {"data_on_policy_share": 0.5, "data_policy_lag": 1.5, "win_rate": 0.6}
    await register(harness.log, "v3", dataset=known, metrics=figures)
    await register(harness.log, "v4", dataset=known)
    mark = VersionMarks(version="v3", erased_rows=2, at=NOW)
    await harness.log.publish(VERSIONS, key=marks_key("v3"), event=mark, event_id="v3:erased")
    await until_known(harness, "v4")
    await eventually(
        lambda: (found := harness.versions.registry.get("v3")) and found.marks, "the mark is known"
    )
    shown = (await http.get("/v1/datasets/d2")).json()
    assert {name: shown[name] for name in known} == known
    assert (shown["model"], shown["erased_rows"]) == ("m", 2)
    lag = {"data_on_policy_share": 0.5, "data_policy_lag": 1.5, "data_age_days": None}
    assert shown["used_by"] == [
        {"name": "v3", "kind": "version", **lag},
        {"name": "v4", "kind": "version", **dict.fromkeys(lag)},
    ]
    older = (await http.get("/v1/datasets/d")).json()
    assert (older["card"], older["splits"], len(older["used_by"])) == ({}, {}, 2)
    unknown = await http.get("/v1/datasets/none")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "not_found")


def window(partition: int, version: str = "v1", **figures: float) -> QualityWindow:
    sums = dict.fromkeys(QualityWindow.model_fields, 0)
    place = {"version": version, "window": "1d", "start": NOW, "partition": partition}
    return QualityWindow.model_validate({**sums, **place, **figures})


def test_quality_sums_the_newest_window_of_each_partition() -> None:
    stale = window(0, interactions=50)
    newest = window(0, interactions=100, interactions_with_feedback=8, positive=3, negative=1)
    other = window(1, interactions=100, errors=1)
    (day,) = daily_figures([stale, newest, other])
    assert (day["requests"], day["errors"]) == (200, 0.005)
    assert day["figures"] == {
        "feedback_rate": 0.04,
        "positive_ratio": 0.75,
        "correction_rate": None,
        "satisfaction": None,
    }


async def test_quality_is_read_from_the_log(
    harness: ControllerHarness, http: httpx.AsyncClient
) -> None:
    day = window(0, interactions=10)
    hour = day.model_copy(update={"window": "1h"})
    for one in (day, hour):
        await harness.log.publish(QUALITY, key=one.window, event=one, event_id=one.window)
    await harness.log.append(QUALITY, key="bad", value=b'{"window":"1d"}')
    answer = (await http.get("/v1/quality")).json()
    assert [one["requests"] for one in answer["days"]] == [10]
    assert answer["targets"][0]["figure"] == "feedback_rate"


async def test_without_the_log_reads_and_actions_say_so(
    harness: ControllerHarness, http: httpx.AsyncClient
) -> None:
    await http.post("/v1/keys", json={"scopes": ["infer"], **WHY})
    harness.log.available = False
    failed = await http.post("/v1/keys", json={"scopes": ["infer"], **WHY})
    assert (failed.status_code, failed.json()["code"]) == (503, "log_unavailable")


async def test_each_page_is_there_without_a_key(harness: ControllerHarness) -> None:
    async with client(harness, KeyRing(required=True)) as anyone:
        for page in PAGES:
            answer = await anyone.get(f"/{page}")
            assert answer.status_code == 200
            assert answer.headers["content-security-policy"].startswith("default-src 'none'")
            assert f'href="{page}"' in answer.text, "the navigation names it"
        for path in (
            "keys",
            "dead-letters",
            "erasures",
            "datasets",
            "quality",
            "training/jobs",
            "reports/weekly",
        ):
            assert (await anyone.get(f"/v1/{path}")).status_code == 401
