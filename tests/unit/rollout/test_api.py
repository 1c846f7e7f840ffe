"""The control API's own part: who may, what is told, how errors look."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from services.rollout import audit, routes
from services.rollout.audit import AuditLog
from services.rollout.counters import SCORE_COUNT, SCORE_SUM, CounterSeries
from services.rollout.errors import AuditUnavailable
from services.rollout.replay import Replay, SliceTable
from services.rollout.routes import MAX_BODY_BYTES
from shared.contracts.events.api_keys import ApiKeyIssued, Permission
from shared.contracts.events.base import utc
from shared.contracts.events.rollouts import LeaderElected
from shared.contracts.topics import ROLLOUTS
from shared.kafka.log import LogUnavailable, Position
from shared.keys import KeyRing, hash_key, new_key
from tests.support.fuzzing import Mutations
from tests.support.waiting import eventually
from tests.unit.rollout.conftest import client
from tests.unit.rollout.fakes import ControllerHarness, register


async def test_a_rollout_from_start_to_abort(
    harness: ControllerHarness, http: httpx.AsyncClient
) -> None:
    none = await http.get("/v1/rollouts/current", params={"model": "m"})
    assert (none.status_code, none.json()["code"]) == (404, "not_found")
    body = {
        "model": "m",
        "candidate": "v2",
        "strategy": "default",
        "on_behalf_of": "ann",
        "reason": "why",
    }
    begun = await http.post("/v1/rollouts", json=body)
    assert begun.status_code == 201
    rollout = begun.json()
    assert (rollout["strategy"], rollout["weight"], rollout["on_behalf_of"]) == (
        "default",
        0,
        "ann",
    )
    await harness.round()
    present = (await http.get("/v1/rollouts/current", params={"model": "m"})).json()
    assert (present["weight"], present["step_name"]) == (0, "shadow 5 % (200 answers)")
    shadow = present["shadow"]
    assert (shadow["share"], shadow["minimum"], shadow["answers"]["answered"]) == (500, 200, 0)
    await http.post(f"/v1/rollouts/{rollout['rollout_id']}/promote", json={"reason": "seen"})
    await harness.round()
    present = (await http.get("/v1/rollouts/current", params={"model": "m"})).json()
    assert (present["weight"], present["step_name"]) == (500, "pause 86400 s")
    path = f"/v1/rollouts/{rollout['rollout_id']}"
    ended = (
        await http.post(f"{path}/abort", json={"on_behalf_of": "bob", "reason": "enough"})
    ).json()
    assert (ended["phase"], ended["on_behalf_of"], ended["reason"]) == ("Degraded", "bob", "enough")
    assert ended["ended_at"]
    page = (await http.get(f"{path}/decisions", params={"limit": 4})).json()
    kinds = [one["kind"] for one in page["decisions"]]
    assert kinds == ["start", "weight", "promote", "weight"]
    rest = await http.get(f"{path}/decisions", params={"after": page["next"]})
    assert [one["kind"] for one in rest.json()["decisions"]] == ["abort"]
    assert rest.json()["next"] is None
    (stable_set,) = (await http.get("/v1/rollouts/m/decisions")).json()["decisions"]
    assert stable_set["kind"] == "stable_set"
    listed = (await http.get("/v1/rollouts", params={"model": "m"})).json()["rollouts"]
    assert [one["rollout_id"] for one in listed] == [rollout["rollout_id"]]


async def test_versions(http: httpx.AsyncClient) -> None:
    versions = (await http.get("/v1/versions", params={"model": "m"})).json()["versions"]
    assert [(one["version"], one["state"]) for one in versions] == [
        ("v1", "stable"),
        ("v2", "registered"),
    ]
    whole = (await http.get("/v1/versions/v1")).json()
    assert whole["record"]["adapter_sha256"] == "0" * 64
    (deployment,) = whole["deployments"]
    assert (deployment["role"], deployment["until"]) == ("stable", None)
    assert (await http.get("/v1/versions/v9")).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/v1/rollouts", {"model": "m"}, 422, "invalid"),
        ("POST", "/v1/rollouts", {"model": "m", "candidate": "v2", "x": 1}, 422, "invalid"),
        (
            "POST",
            "/v1/rollouts",
            {"model": "m", "candidate": "v2", "strategy": "../x"},
            422,
            "bad_strategy",
        ),
        (
            "POST",
            "/v1/rollouts",
            {"model": "m", "candidate": "v2", "strategy": {"name": "s", "steps": [{"shadow": 1}]}},
            422,
            "bad_strategy",
        ),
        ("POST", "/v1/rollouts", {"model": "m", "candidate": "v9"}, 404, "not_found"),
        ("POST", "/v1/rollouts", {"model": "m", "candidate": "v1"}, 409, "conflict"),
        ("POST", "/v1/rollouts/none/abort", {}, 404, "not_found"),
        ("POST", "/v1/rollouts/none/retry", {"reason": "mended"}, 404, "not_found"),
        ("POST", "/v1/rollouts/none/retry", {}, 422, "invalid"),
        ("POST", "/v1/rollouts/none/promote", {"full": True}, 422, "invalid"),
        ("POST", "/v1/rollouts", {"model": "m", "candidate": "v2", "again": True}, 422, "invalid"),
        ("POST", "/v1/rollouts", {"model": "m", "candidate": "v2", "actor": "x"}, 422, "invalid"),
        ("GET", "/v1/rollouts?limit=0", None, 422, "invalid"),
        ("GET", "/v1/nothing", None, 404, "not_found"),
        ("POST", "/v1/rollouts", {"reason": "x" * MAX_BODY_BYTES}, 413, "too_large"),
    ],
)
async def test_errors_have_one_shape(
    http: httpx.AsyncClient, method: str, path: str, body: object, status: int, code: str
) -> None:
    answer = await http.request(method, path, json=body)
    error = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, error["code"], error["status"]) == (status, code, status)
    assert set(error) - {"errors"} == {"type", "title", "status", "code", "detail"}
    assert error["detail"]


async def test_an_unknown_verb_says_which_there_are(http: httpx.AsyncClient) -> None:
    begun = (await http.post("/v1/rollouts", json={"model": "m", "candidate": "v2"})).json()
    answer = await http.post(f"/v1/rollouts/{begun['rollout_id']}/explode", json={})
    assert answer.status_code == 404
    assert "promote" in answer.json()["detail"]


async def test_without_the_lead_nothing_was_done_and_asking_again_is_safe(
    harness: ControllerHarness, http: httpx.AsyncClient
) -> None:
    await harness.leadership.resign()
    began = {"model": "m", "candidate": "v2"}
    # What this replica does not know, the leader may.
    asked = (("", began), ("/begun-elsewhere/retry", {"reason": "mended"}))
    for path, body in asked:
        lost = await http.post(f"/v1/rollouts{path}", json=body)
        assert (lost.status_code, lost.json()["code"]) == (503, "not_leading")
        assert lost.headers["retry-after"]
    assert harness.decision_log.histories("m") == []


async def test_without_the_logs_word_nobody_claims_that_nothing_was_done(
    harness: ControllerHarness, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = harness.log.publish

    async def delivered_late(*args: Any, **more: Any) -> Position:
        await publish(*args, **more)
        raise LogUnavailable("no acknowledgement within 5 s")

    monkeypatch.setattr(harness.log, "publish", delivered_late)
    away = await http.post("/v1/rollouts", json={"model": "m", "candidate": "v2"})
    error = away.json()
    assert (away.status_code, error["code"]) == (503, "log_unavailable")
    assert "nothing was done" not in error["detail"]
    assert "not known whether" in error["detail"]
    assert "ratchet rollout status" in error["detail"]
    # A client that asks again by itself could end two steps with one promote.
    assert "retry-after" not in away.headers
    await harness.caught_up()
    assert len(harness.decision_log.histories("m")) == 1


async def test_a_lead_lost_over_a_decision_leaves_its_outcome_unknown(
    harness: ControllerHarness, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = harness.log.publish

    async def overtaken(topic: str, **more: Any) -> Position:
        """Another is elected right after the decision, which therefore counts."""
        position = await publish(topic, **more)
        other = LeaderElected(holder="two", at=harness.clock.now())
        await publish(ROLLOUTS, key="two", event=other, event_id="two")
        await harness.caught_up()
        return position

    monkeypatch.setattr(harness.log, "publish", overtaken)
    lost = await http.post("/v1/rollouts", json={"model": "m", "candidate": "v2"})
    error = lost.json()
    assert (lost.status_code, error["code"]) == (503, "outcome_unknown")
    assert "not known whether" in error["detail"]
    assert len(harness.decision_log.histories("m")) == 1


async def test_a_supersede_that_loses_the_lead_between_its_decisions_was_not_nothing(
    harness: ControllerHarness, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await register(harness.log, "v3")
    await eventually(lambda: harness.versions.registry.get("v3"), "v3 is known")
    await http.post("/v1/rollouts", json={"model": "m", "candidate": "v2"})
    put = harness.view.put

    async def put_and_lose(state: Any) -> bool:
        other = LeaderElected(holder="two", at=harness.clock.now())
        await harness.log.publish(ROLLOUTS, key="two", event=other, event_id="two")
        await harness.caught_up()
        return await put(state)

    monkeypatch.setattr(harness.view, "put", put_and_lose)
    body = {"model": "m", "candidate": "v3", "supersede": True}
    lost = await http.post("/v1/rollouts", json=body)
    assert (lost.status_code, lost.json()["code"]) == (503, "outcome_unknown")
    assert harness.decision_log.unfinished_of("m") is None


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_over_the_limit_is_refused_before_it_is_read(
    http: httpx.AsyncClient, announced: bool
) -> None:
    """Also without a key, and also in chunks, which announce no length."""
    taken = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(1_000):
            taken += 64 * 1024
            yield b" " * 64 * 1024

    headers = {"content-type": "application/json"}
    if announced:
        headers["content-length"] = str(1_000 * 64 * 1024)
    answer = await http.post("/v1/rollouts", content=chunks(), headers=headers)
    error = answer.json()
    assert (answer.status_code, error["code"]) == (413, "too_large")
    assert set(error) == {"type", "title", "status", "code", "detail"}
    assert taken <= MAX_BODY_BYTES + 2 * 64 * 1024


async def test_a_chunked_body_within_the_limit_is_whole(http: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for part in (b'{"model": "m", ', b"", b'"candidate": "v2"}'):
            yield part

    headers = {"content-type": "application/json"}
    answer = await http.post("/v1/rollouts", content=chunks(), headers=headers)
    assert answer.status_code == 201, answer.text


def issue(keys: KeyRing, name: str, scope: Permission, *, approver: bool = False) -> str:
    key = new_key()
    issued = ApiKeyIssued(
        key_id=name,
        sha256=hash_key(key),
        tenant="default",
        scopes=(scope,),
        approver=approver,
        issued_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    keys.apply(name, issued.to_json())
    return key


async def test_only_an_approvers_key_passes_a_gate_that_asks_for_approval(
    harness: ControllerHarness,
) -> None:
    keys = KeyRing(required=True)
    operator = issue(keys, "ops", Permission.operate)
    approver = issue(keys, "boss", Permission.operate, approver=True)
    steps = [{"setWeight": 5}, {"analysis": {}}, {"pause": {"approval": True}}]
    strategy = {"name": "gated", "steps": [*steps, {"setWeight": 100}, {"pause": {"duration": 1}}]}
    async with client(harness, keys) as http:
        http.headers["authorization"] = f"Bearer {operator}"
        body = {"model": "m", "candidate": "v2", "strategy": strategy}
        path = f"/v1/rollouts/{(await http.post('/v1/rollouts', json=body)).json()['rollout_id']}"
        await harness.round()
        full = {"full": True, "reason": "now"}
        refused = await http.post(f"{path}/promote", json=full)
        assert refused.status_code == 409
        assert "ops is no approver's key" in refused.json()["detail"]
        http.headers["authorization"] = f"Bearer {approver}"
        assert (await http.post(f"{path}/promote", json=full)).json()["phase"] == "Healthy"


async def test_outside_the_local_profile_a_key_that_may_operate_is_needed(
    harness: ControllerHarness,
) -> None:
    keys = KeyRing(required=True)
    operator, voter = issue(keys, "ops", Permission.operate), issue(keys, "vote", Permission.vote)
    async with client(harness, keys) as http:
        assert (await http.get("/v1/rollouts")).status_code == 401
        refused = await http.get("/v1/rollouts", headers={"authorization": f"Bearer {voter}"})
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
        allowed = {"authorization": f"Bearer {operator}"}
        assert (await http.get("/v1/rollouts", headers=allowed)).status_code == 200
        body = {"model": "m", "candidate": "v2", "on_behalf_of": "ann"}
        begun = await http.post("/v1/rollouts", json=body, headers=allowed)
        assert (begun.json()["actor"], begun.json()["on_behalf_of"]) == ("ops", "ann")
        path = f"/v1/rollouts/{begun.json()['rollout_id']}/decisions"
        (decision,) = (await http.get(path, headers=allowed)).json()["decisions"]
        assert (decision["actor"], decision["on_behalf_of"]) == ("ops", "ann")
        assert (await http.get("/healthz")).status_code == 200
        assert begun.json()["started_at"] <= utc(harness.clock.now())[:-1] + "+00:00"


async def test_a_body_that_does_not_arrive_is_given_up(
    harness: ControllerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stalled() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    monkeypatch.setattr(routes, "BODY_TIMEOUT_S", 0.05)
    async with client(harness, KeyRing(required=False)) as http:
        answer = await http.post("/v1/rollouts", content=stalled())
    assert (answer.status_code, answer.json()["code"]) == (408, "too_slow")


async def test_without_a_key_no_body_is_read(harness: ControllerHarness) -> None:
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        read += 1
        yield b"{}"

    async with client(harness, KeyRing(required=True)) as http:
        refused = await http.post("/v1/rollouts", content=body())
    assert (refused.status_code, refused.json()["code"]) == (401, "unauthenticated")
    assert read == 0


async def test_a_strategy_is_explained_by_the_traffic_of_the_present_rollout(
    harness: ControllerHarness, http: httpx.AsyncClient
) -> None:
    body: dict[str, Any] = {"strategy": "default", "model": "m"}
    none = await http.post("/v1/strategies/explain", json=body)
    assert (none.status_code, none.json()["errors"][0]["field"]) == (409, "traffic")
    said = await http.post(
        "/v1/strategies/explain", json={**body, "traffic": {"requests_per_s": 10}}
    )
    steps = said.json()["steps"]
    assert (steps[0]["takes_s"], steps[0]["catches"]) == (3_600, [])
    assert steps[1]["catches"][0].startswith("30% errors in ")
    assert steps[2]["takes_s"] == 86_400
    wrong = await http.post("/v1/strategies/explain", json={"strategy": {"name": "s"}})
    assert wrong.status_code == 422
    schema = (await http.get("/v1/strategies/schema")).json()
    assert "steps" in schema["required"]


async def test_the_record_of_a_rollout_is_replayed_exported_and_told(
    harness: ControllerHarness, http: httpx.AsyncClient
) -> None:
    begun = (await http.post("/v1/rollouts", json={"model": "m", "candidate": "v2"})).json()
    await harness.round()
    path = f"/v1/rollouts/{begun['rollout_id']}"
    replayed = (await http.get(f"{path}/replay")).json()
    assert (replayed["agrees"], replayed["decisions"]) == (True, 2)
    text = (await http.get(f"{path}/slices")).text
    assert text.startswith("decision,at,look,segment,weight,arm,requests")
    told = (await http.get(f"{path}/decisions", params={"moves": True})).json()["decisions"]
    assert told[1]["sentence"] == "v2 went from 0 % to 5 % of the users: setWeight 5 %"
    assert (await http.get("/v1/rollouts/nothing/replay")).status_code == 404


@pytest.mark.parametrize(
    ("path", "name"), [("replay", (Replay, "add")), ("slices", (SliceTable, "rows"))]
)
async def test_the_controller_goes_on_while_a_record_is_read(
    harness: ControllerHarness,
    http: httpx.AsyncClient,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    name: tuple[type, str],
) -> None:
    begun = (await http.post("/v1/rollouts", json={"model": "m", "candidate": "v2"})).json()
    threads: list[threading.Thread] = []
    reading = getattr(*name)

    def noting(*given: Any) -> Any:
        threads.append(threading.current_thread())
        return reading(*given)

    monkeypatch.setattr(*name, noting)
    assert (await http.get(f"/v1/rollouts/{begun['rollout_id']}/{path}")).status_code == 200
    assert threads
    assert threads[0] is not threading.main_thread()


async def test_the_console_needs_no_key_and_allows_nothing_from_elsewhere(
    harness: ControllerHarness,
) -> None:
    async with client(harness, KeyRing(required=True)) as anyone:
        page = await anyone.get("/")
        assert page.status_code == 200
        policy = page.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'")
        assert "frame-ancestors 'none'" in policy
        for path in ("/console.js", "/look.css", "/console.css"):
            assert (await anyone.get(path)).status_code == 200
        assert "http://" not in page.text.replace("http://www.w3.org/2000/svg", "")
        for path in ("/v1/rollouts", "/openapi.json", "/docs", "/console.html"):
            assert (await anyone.get(path)).status_code == 401


async def test_a_rollout_tells_what_its_phase_allows(
    harness: ControllerHarness, http: httpx.AsyncClient
) -> None:
    begun = (await http.post("/v1/rollouts", json={"model": "m", "candidate": "v2"})).json()
    assert begun["actions"] == ["pause", "abort"]
    await harness.round()
    path = f"/v1/rollouts/{begun['rollout_id']}"
    assert (await http.get(path)).json()["actions"] == ["pause", "promote", "abort"]
    paused = (await http.post(f"{path}/pause", json={"reason": "r"})).json()
    assert paused["actions"] == ["resume", "promote", "abort"]
    ended = (await http.post(f"{path}/abort", json={"reason": "r"})).json()
    assert (ended["actions"], ended["result"]) == (
        ["retry"],
        "aborted by a person; everybody is on stable",
    )


async def test_each_sentence_of_what_a_person_did_names_who(
    harness: ControllerHarness, http: httpx.AsyncClient
) -> None:
    because = {"reason": "r", "on_behalf_of": "ann"}
    asked = {"model": "m", "candidate": "v2", **because}
    path = f"/v1/rollouts/{(await http.post('/v1/rollouts', json=asked)).json()['rollout_id']}"
    await harness.round()
    for action in ("pause", "resume", "promote", "abort"):
        assert (await http.post(f"{path}/{action}", json=because)).status_code == 200
    decisions = (await http.get(f"{path}/decisions")).json()["decisions"]
    by_hand = [one for one in decisions if one["actor"] != "controller"]
    assert {one["kind"] for one in by_hand} == {"start", "pause", "resume", "promote", "abort"}
    for one in by_hand:
        assert one["sentence"].startswith("ann (by "), one["sentence"]


async def test_so_many_rollouts_are_audited_at_a_time(
    harness: ControllerHarness, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = (await http.post("/v1/rollouts", json={"model": "m", "candidate": "v2"})).json()
    log = AuditLog(harness.log)
    reading = [log.batches(begun["rollout_id"]) for _ in range(audit.AUDITS_AT_A_TIME)]
    for one in reading:
        await anext(one)
    monkeypatch.setattr(audit, "READ_S", 0.05)
    with pytest.raises(AuditUnavailable, match="try again"):
        await anext(log.batches(begun["rollout_id"]))
    await reading[0].aclose()
    monkeypatch.setattr(audit, "READ_S", 30.0)
    assert await anext(log.batches(begun["rollout_id"])), "a reader that left makes room"


async def test_a_version_says_what_it_gained_over_the_stable_one(
    harness: ControllerHarness, http: httpx.AsyncClient
) -> None:
    begun = (await http.post("/v1/rollouts", json={"model": "m", "candidate": "v2"})).json()
    await harness.round()
    (none,) = (await http.get("/v1/versions/gain", params={"model": "m"})).json()["gains"]
    assert (none["version"], none["satisfaction"]) == ("v2", None)
    at = harness.clock.now().timestamp()
    for arm, version, total in (("candidate", "v2", 900.0), ("stable", "v1", 600.0)):
        labels = {"rollout": begun["rollout_id"], "arm": arm, "version": version, "partition": "0"}
        for name, value in ((SCORE_COUNT, 1_000.0), (SCORE_SUM, total)):
            sample = CounterSeries({**labels, "__name__": name}, ((at, value),))
            harness.prometheus.series.append(sample)
    await harness.round()
    (one,) = (await http.get("/v1/versions/gain", params={"model": "m"})).json()["gains"]
    assert (one["reference"], one["confidence"]) == ("v1", 0.99)
    gained = one["satisfaction"]
    assert gained["difference"] == 0.3
    assert 0 < gained["low"] < 0.3 < gained["high"] < 0.6
    promoted = await http.post(
        f"/v1/rollouts/{begun['rollout_id']}/promote", json={"full": True, "reason": "liked"}
    )
    assert promoted.status_code == 200
    await harness.round()
    await harness.round()
    version = (await http.get("/v1/versions/v2")).json()
    assert version["state"] == "stable"
    on_record = version["gain"]
    assert (on_record["over"], on_record["difference"]) == ("v1", 0.3)
    assert (on_record["low"], on_record["high"]) == (gained["low"], gained["high"])
    assert (on_record["confidence"], on_record["scores_over"]) == (0.99, 1_000)


async def test_no_request_breaks_the_control_api(http: httpx.AsyncClient) -> None:
    mutations = Mutations(seed=12)
    start: dict[str, Any] = {
        "model": "m",
        "candidate": "v2",
        "strategy": {"name": "s", "steps": [{"setWeight": 20}, {"pause": {"duration": "1m"}}]},
        "supersede": True,
        "on_behalf_of": "ann",
        "reason": "why",
    }
    command = {"on_behalf_of": "ann", "reason": "why", "full": False}
    for number in range(300):
        verb = mutations.rng.choice(("", "/none/pause", "/none/retry", "/%00/abort", "/x/fly"))
        body = mutations.body(command if verb else start)
        headers = [(b"content-type", b"application/json"), *mutations.headers()]
        answer = await http.post(f"/v1/rollouts{verb}", content=body, headers=headers)
        assert answer.status_code < 500, (verb, body[:500], headers, answer.text)
        if number % 50 == 0:
            assert (await http.get("/v1/rollouts")).status_code == 200
