"""The `ratchet` command as a process of its own against real Kafka and Redis."""

from __future__ import annotations

import asyncio
import getpass
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from services.cli.errors import Exit
from shared.contracts.events.api_keys import Permission
from shared.contracts.events.feedback import FeedbackType
from shared.contracts.events.preferences import (
    PreferenceRetracted,
)
from shared.contracts.events.rollouts import Decision, DecisionKind, LeaderElected, Phase
from shared.contracts.events.training import (
    RunPhase,
    TrainingMethod,
    TrainingProgress,
    TrainingRequested,
)
from shared.contracts.events.versions import record_key
from shared.contracts.topics import (
    API_KEYS,
    FEEDBACK,
    PREFERENCES,
    ROLLOUTS,
    TRAINING_JOBS,
    TRAINING_RUNS,
    VERSIONS,
    intake_topic,
)
from shared.kafka.deadletters import DeadLetters
from shared.kafka.envelope import decode, models_by_type
from shared.kafka.log import EventLog, Record, read_to_end
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from shared.kafka.topics import TopicsRefused, apply_topics
from shared.keys import KeyRing
from shared.registry.view import RoutingView
from tests.support.aggregator import vote, withdrawn
from tests.support.command import Ran, ratchet
from tests.support.rollouts import publish_pairs
from tests.unit.training import builders

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def env(kafka: str, redis_server: str) -> dict[str, str]:
    return {
        "RATCHET_KAFKA_BOOTSTRAP": kafka,
        "RATCHET_REDIS_URL": redis_server.removesuffix("/0") + "/7",
        **{
            f"RATCHET_{service}_URL": "http://127.0.0.1:9"
            for service in ("ROUTER", "FEEDBACK", "ROLLOUT", "INFERENCE", "AGGREGATOR", "TRAINING")
        },
    }


@pytest.fixture
async def log(kafka: str) -> AsyncIterator[EventLog]:
    real = KafkaLog(KafkaConnection(kafka), source="/ratchet/test")
    await real.start()
    yield real
    await real.stop()


async def run(*arguments: str, env: dict[str, str]) -> Ran:
    return await asyncio.to_thread(ratchet, *arguments, env=env)


async def test_topics_apply_creates_once_and_diff_says_what_is_missing(
    env: dict[str, str], unique: str
) -> None:
    env |= {"RATCHET_TENANTS": unique}
    name = intake_topic(unique)
    missing = await run("topics", "diff", "--json", env=env)
    assert missing.status == Exit.failed
    assert missing.json["missing"] == [name]
    waited = await run("topics", "wait", "--timeout", "1", env=env)
    assert (waited.status, name in waited.err) == (Exit.failed, True)
    created = await run("topics", "apply", env=env)
    assert created.status == 0, created.err
    assert name in created.out
    again = await run("topics", "diff", "--json", env=env)
    assert (again.status, again.json["missing"], again.json["drift"]) == (0, [], [])
    env |= {"RATCHET_KAFKA_JOIN_PARTITIONS": "5"}
    # A topic that differs is no reason to wait.
    assert (await run("topics", "wait", "--timeout", "1", env=env)).status == 0
    drifted = await run("topics", "apply", "--strict", "--json", env=env)
    assert drifted.status == Exit.failed
    assert any("4 partitions, declared 5" in line for line in drifted.json["drift"])
    # One broker, and topics that are there already: more replicas are asked for than there are.
    env |= {"RATCHET_KAFKA_REPLICATION": "3"}
    lonely = await run("topics", "diff", "--json", env=env)
    assert f"{name}: 1 replicas, declared 3" in lonely.json["drift"]


async def test_topics_apply_refused_shows_the_brokers_reason(
    env: dict[str, str], kafka: str, unique: str
) -> None:
    env |= {"RATCHET_TENANTS": unique, "RATCHET_KAFKA_REPLICATION": "3"}
    name = intake_topic(unique)
    refused = await run("topics", "apply", "--json", env=env)
    assert refused.status == Exit.refused
    assert refused.json["created"] == []
    assert refused.json["refused"].keys() == {name}
    assert refused.json["refused"][name].startswith("INVALID_REPLICATION_FACTOR: ")
    for_people = await run("topics", "apply", env=env)
    assert for_people.status == Exit.refused
    assert "refused: INVALID_REPLICATION_FACTOR" in for_people.out
    with pytest.raises(TopicsRefused):
        await apply_topics(KafkaConnection(kafka), tenants=(unique,), partitions=4, replication=3)
    missing = await run("topics", "diff", "--json", env=env | {"RATCHET_KAFKA_REPLICATION": "1"})
    assert missing.json["missing"] == [name]


async def test_keys_are_issued_listed_and_revoked(env: dict[str, str], log: EventLog) -> None:
    created = await run(
        "keys", "create", "--scope", "feedback", "--scope", "vote", "--tenant", "acme", "--json",
        env=env,
    )  # fmt: skip
    assert created.status == 0, created.err
    key, key_id = created.json["key"], created.json["key_id"]

    async def ring() -> KeyRing:
        keys = KeyRing(required=True)
        for record in await read_to_end(log, API_KEYS, timeout_s=60):
            assert key.encode() not in (record.value or b""), "only the hash is kept"
            keys.apply(record.key, record.value)
        return keys

    found = (await ring()).authenticate(f"Bearer {key}", Permission.vote)
    assert (found.key_id, found.tenant) == (key_id, "acme")
    assert key_id in (await run("keys", "list", env=env)).out
    assert (await run("keys", "revoke", key_id, env=env)).status == 0
    with pytest.raises(Exception, match="unknown"):
        (await ring()).authenticate(f"Bearer {key}", Permission.vote)
    assert (await run("keys", "revoke", key_id, env=env)).status == Exit.refused


async def test_a_rotated_key_overlaps_the_old_one_and_each_action_is_audited(
    env: dict[str, str], log: EventLog
) -> None:
    created = await run(
        "keys", "create", "--scope", "infer", "--name", "shop", "--max-tokens", "9", "--json",
        env=env,
    )  # fmt: skip
    old = created.json
    rotated = await run(
        "keys", "rotate", old["key_id"], "--reason", "a leak", "--overlap-hours", "1", "--json",
        env=env,
    )  # fmt: skip
    assert rotated.status == 0, rotated.err
    new = rotated.json
    for hours, keys in ((0, (old, new)), (2, (new,))):
        at = time.time() + hours * 3600
        ring = KeyRing(required=True, now=lambda at=at: at)
        for record in await read_to_end(log, API_KEYS, timeout_s=60):
            ring.apply(record.key, record.value)
        for key in (old, new):
            if key in keys:
                found = ring.authenticate(f"Bearer {key['key']}", Permission.infer)
                assert found.limits.max_tokens == 9
            else:
                with pytest.raises(Exception, match="expired"):
                    ring.authenticate(f"Bearer {key['key']}", Permission.infer)
    await run("keys", "revoke", new["key_id"], "--reason", "shop closed", env=env)
    ran = await run("keys", "audit", "--json", env=env)
    mine = {old["key_id"], new["key_id"]}
    lines = [one for one in ran.json if one["subject"] in mine]
    assert [(one["action"], one["subject"], one["reason"]) for one in lines] == [
        ("key.issued", old["key_id"], ""),
        ("key.rotated", old["key_id"], "a leak"),
        ("key.issued", new["key_id"], "a leak"),
        ("key.revoked", new["key_id"], "shop closed"),
    ]
    assert {one["actor"] for one in lines} == {f"local:{getpass.getuser()}"}


async def test_train_waits_for_the_end_of_its_run(env: dict[str, str], log: EventLog) -> None:
    models = models_by_type(TrainingRequested)
    tail = log.tail(TRAINING_JOBS, since="latest")

    async def trainer() -> TrainingRequested:
        """Accepts the first job asked for, reports progress and refuses it."""
        async for record in tail:
            job = decode(record.headers, record.value, models)
            assert isinstance(job, TrainingRequested)
            for phase, progress in ((RunPhase.training, 0.5), (RunPhase.rejected, 1.0)):
                event = TrainingProgress(
                    job_id=job.job_id,
                    model=job.model,
                    method=job.method,
                    version="assistant-v1.1",
                    phase=phase,
                    progress=progress,
                    message="the gate said no" if phase is RunPhase.rejected else "",
                    at=datetime.now(UTC),
                )
                await log.publish(
                    TRAINING_RUNS, key=job.job_id, event=event, event_id=f"{job.job_id}-{phase}"
                )
            await tail.close()
            return job
        raise AssertionError("no job came")

    first = "assistant-v1.0"
    await log.publish(
        VERSIONS, key=record_key(first), event=builders.record(first), event_id="registered"
    )
    training = asyncio.create_task(trainer())
    await tail.caught_up(60)  # A job asked for earlier would be none of the latest.
    ran = await run(
        "train", "--method", "dpo", "--parent", "assistant-v1.0", "--set", "beta=0.2",
        "--override-gate", "--reason", "a drill", "--on-behalf-of", "joe", "--wait",
        "--timeout", "120", env=env,
    )  # fmt: skip
    assert ran.status == Exit.failed, f"a rejected version is no success: {ran.err}"
    job = await asyncio.wait_for(training, 60)
    assert "50%" in ran.out
    assert "the gate said no" in ran.out
    assert (job.method, job.parent) == (TrainingMethod.dpo, "assistant-v1.0")
    assert (job.actor, job.on_behalf_of) == (f"local:{getpass.getuser()}", "joe")
    assert job.hyperparameters == {"beta": 0.2}
    assert (job.override_gate, job.reason) == (True, "a drill")


async def test_dead_letters_are_listed_and_replayed(
    env: dict[str, str], log: EventLog, unique: str
) -> None:
    topic = intake_topic(unique)
    assert (await run("topics", "apply", env=env | {"RATCHET_TENANTS": unique})).status == 0
    letters = DeadLetters(log, service="test", redact=str, metrics=CollectorRegistry())
    bad = Record(topic, 0, 3, "k", b'{"type":"applause"}', (("ce_type", b"x"),), 0)
    await letters.put(bad, "schema", "type: not a known type")
    listed = await run("dead-letters", "list", "--topic", topic, "--json", env=env)
    (letter,) = listed.json
    assert (letter["reason"], letter["source_offset"]) == ("schema", 3)
    assert "not a known type" in (await run("dead-letters", "list", "--topic", topic, env=env)).out
    replayed = await run("dead-letters", "replay", "--topic", topic, "--json", env=env)
    assert replayed.json == {"replayed": 1, "of": 1}
    (record,) = await read_to_end(log, topic, timeout_s=60)
    assert (record.key, record.value) == ("k", bad.value)


async def test_state_rebuild_fills_redis_from_the_log(
    env: dict[str, str], log: EventLog, unique: str
) -> None:
    model, now = f"model-{unique}", datetime.now(UTC)
    elected = LeaderElected(holder="test", at=now)
    position = await log.publish(ROLLOUTS, key="leader", event=elected, event_id=unique)
    decision = Decision(
        token=position.offset,
        seq=0,
        kind=DecisionKind.stable_set,
        model=model,
        rollout_id="",
        stable=f"{model}-v1.0",
        phase=Phase.healthy,
        actor="test",
        reason="first",
        at=now,
    )
    await log.publish(ROLLOUTS, key=model, event=decision, event_id=f"{unique}-d")
    async with Redis.from_url(env["RATCHET_REDIS_URL"]) as redis:
        await redis.flushdb()
        ran = await run("state", "rebuild", "--json", env=env)
        assert ran.status == 0, ran.err
        assert ran.json["states"] >= 1
        states = {state.model: state for state in await RoutingView(redis).all()}
    assert states[model].stable == f"{model}-v1.0"
    status = await run("status", "--json", env=env)
    assert status.status == Exit.failed, "nothing runs, so all is not well"
    assert model in {state["model"] for state in status.json["routing"]}
    assert not status.json["services"]["router"]["ready"]
    assert f"{model}-v1.0" in (await run("status", env=env)).out


@pytest.mark.parametrize(
    ("arguments", "variable"),
    [
        (("dead-letters", "list"), "RATCHET_KAFKA_BOOTSTRAP"),
        (("topics", "diff"), "RATCHET_KAFKA_BOOTSTRAP"),
        (("keys", "create", "--scope", "vote"), "RATCHET_KAFKA_BOOTSTRAP"),
    ],
)
async def test_without_kafka_it_says_so_in_time(
    env: dict[str, str], arguments: tuple[str, ...], variable: str
) -> None:
    start = time.monotonic()
    ran = await run(*arguments, env=env | {"RATCHET_KAFKA_BOOTSTRAP": "127.0.0.1:9"})
    assert ran.status == Exit.unreachable, ran.err
    assert variable in ran.err
    assert "Traceback" not in ran.err
    assert time.monotonic() - start < 30


async def test_without_redis_it_says_so(env: dict[str, str]) -> None:
    ran = await run("state", "rebuild", env=env | {"RATCHET_REDIS_URL": "redis://127.0.0.1:9/0"})
    assert ran.status == Exit.unreachable
    assert "RATCHET_REDIS_URL" in ran.err


async def test_the_weekly_report_counts_pairs_and_leaves_out_what_was_taken_back(
    env: dict[str, str], log: EventLog, unique: str
) -> None:
    now = datetime.now(UTC)
    await publish_pairs(log, unique, count=2, at=now, prefix=f"{unique}-")
    back = PreferenceRetracted(
        pair_id=f"{unique}-1", tenant="default", reason="withdrawn", created_at=now
    )
    await log.publish(PREFERENCES, key=back.pair_id, event=back, event_id=f"{unique}-back")
    # Prometheus is away, and the report says so instead of failing.
    env |= {"RATCHET_PROMETHEUS_URL": "http://127.0.0.1:9"}
    ran = await run("report", "weekly", "--model", unique, "--json", env=env)
    assert ran.status == 0, ran.err
    pairs = ran.json["preferences"]
    assert sum(pairs["per_day"].values()) == 1
    assert pairs["retracted"] == 1
    assert [(one["version"], one["wins"]) for one in pairs["duels"]] == [("v1", 0), ("v2", 1)]
    assert "Prometheus at http://127.0.0.1:9 gave no answer" in ran.json["missing"]
    page = await run("report", "weekly", "--model", unique, env=env)
    assert "1 pairs of 100" in page.out


async def test_versions_are_ranked_by_the_votes_that_stand(
    env: dict[str, str], log: EventLog, unique: str
) -> None:
    model = {"model": unique, "tenant": unique}
    for number in range(6):
        name = f"{unique}-{number}"
        cast = vote(name).model_copy(update=model)
        await log.publish(FEEDBACK, key=name, event=cast, event_id=f"{name}:0")
    undone = withdrawn(f"{unique}-0", f"{unique}-0", FeedbackType.preference, tenant=unique)
    await log.publish(FEEDBACK, key=f"{unique}-0", event=undone, event_id=f"{unique}-0:1")
    asked = ("feedback", "ranking", "--model", unique, "--bootstraps", "50")
    ranked = (await run(*asked, "--json", env=env)).json
    assert ranked["votes"] == 5
    assert [one["version"] for one in ranked["standings"]] == ["assistant-v1.1", "assistant-v1.0"]
    assert [one["check"] for one in ranked["findings"]] == ["order_unresolved"]
    shown = (await run(*asked, env=env)).out
    assert "without side and length" in shown
    assert "order_unresolved: votes do not tell 1 of 1 neighbours apart" in shown
    nothing = await run("feedback", "ranking", "--model", f"{unique}-none", env=env)
    assert nothing.status == Exit.failed
    assert "no votes between versions" in nothing.err


async def test_the_doctor_sees_what_runs_and_what_does_not(
    env: dict[str, str], prometheus: str
) -> None:
    await run("topics", "apply", env=env)
    ran = await run("doctor", "--json", env=env | {"RATCHET_PROMETHEUS_URL": prometheus})
    assert ran.status == Exit.failed, "no service runs"
    states = {(one["what"], one["state"]) for one in ran.json["findings"]}
    assert {("kafka", "ok"), ("prometheus", "ok"), ("clock", "ok")} <= states
    assert ("router", "wrong") in states
    assert ("topics", "wrong") not in states
    assert ("lag", "wrong") not in states
