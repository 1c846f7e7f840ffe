"""Upgrade from the previous release under load: nothing lost or counted twice, no request failed.

The release's state is a fixture (tests/fixtures/upgrade). Its services stopped in the middle of their
work; the present ones take over its topics, rows, spools and Redis while users go on, and each is
restarted once as a rolling update does it. Users have no retries: any failed call fails the test.
"""

from __future__ import annotations

import asyncio
import json
import tarfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from demo.counts import exported
from demo.recount import LogRecount, read, recount
from deploy.local.stack import Stack
from services.training.dataset_store import MANIFEST, DatasetStore
from services.training.rebuild import differences, rebuild
from shared.contracts.topics import DEAD_LETTERS, intake_topic, load_topics
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from tests.support.aggregator_process import series_of, total
from tests.support.command import ratchet
from tests.support.upgrade.make import FIXTURE
from tests.support.upgrade.replicas import (
    CANDIDATE,
    FEEDBACKS,
    ROUTERS,
    STABLE,
    WORKERS,
    serving_agent,
    upgrade_stack,
)
from tests.support.upgrade.users import UpgradeTally, UpgradeUsers
from tests.support.waiting import eventually

pytestmark = [pytest.mark.verify, pytest.mark.timeout(900)]

SEED = 6
SETTLE_S = 180.0
GATED = 2000
"""The candidate's weight at the gate where the release stopped."""


@pytest.fixture
def expected() -> dict[str, Any]:
    """What the release left."""
    return json.loads((FIXTURE / "expected.json").read_text())


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    """The release's topics, Redis and data folders, before any service."""
    with tarfile.open(FIXTURE / "state.tar.xz") as state:
        state.extractall(tmp_path, filter="data")
    async with serving_agent() as agent:
        started = ["topics", "redis", "prometheus", "engine"]
        stack = upgrade_stack(tmp_path, agent, started, keeps=True)
        try:
            await asyncio.to_thread(stack.up)
            await keep_forever(stack.address("kafka"))
            brought = ratchet("backup", "restore", f"{tmp_path}/backup", env=stack.environment())
            assert brought.status == 0, brought.err
            addresses = [stack.address(name) for name in (*ROUTERS, "aggregator")]
            stack.scrape("router", addresses[:2])
            stack.scrape("aggregator", addresses[2:])
            yield stack
        finally:
            await asyncio.to_thread(stack.down, delete_data=True)


async def keep_forever(bootstrap: str) -> None:
    """Set no retention: the fixture's records are older than some topics keep any."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.alter_configs(
        [
            ConfigResource(ConfigResourceType.TOPIC, one.name, {**one.config, "retention.ms": "-1"})
            for topic in load_topics()
            for one in topic.for_tenants(("default",))
            if "retention.ms" in topic.config
        ]
    )
    await admin.close()


@asynccontextmanager
async def acting(users: UpgradeUsers) -> AsyncIterator[None]:
    """Users act while the block runs; all that they began has ended after it."""
    stop = asyncio.Event()
    running = asyncio.create_task(users.keep_acting(stop))
    try:
        yield
    finally:
        stop.set()
        await running


async def restart_replica(stack: Stack, users: UpgradeUsers, name: str) -> None:
    """Take a replica out of service, restart it, and put it into service when it is ready."""
    users.out.add(name)
    await asyncio.to_thread(stack.restart, name)
    users.out.discard(name)


def by_name(counts: Mapping[tuple[str, str], int]) -> Counter[str]:
    """Feedback without the votes, by "version type"."""
    return Counter({f"{one} {kind}": n for (one, kind), n in counts.items() if kind != "vote"})


def votes_of(counts: Mapping[tuple[str, str, str], int]) -> dict[str, int]:
    """Votes by whether they name a better answer."""
    found: Counter[str] = Counter()
    for (_, _, choice), count in counts.items():
        found[choice] += count
    return dict(found)


async def agreed(stack: Stack, tally: UpgradeTally) -> LogRecount:
    """The recount, once the log has every answer and the aggregator has counted what the log has."""
    seen: list[object] = []

    async def whole() -> LogRecount | None:
        truth = await recount(stack.address("kafka"))
        async with httpx.AsyncClient() as http:
            text = (await http.get(f"{stack.url('aggregator')}/metrics")).text
        metrics = exported("", text)
        seen[:] = [truth, metrics]
        logged = sum(truth.requests.values()) >= sum(tally.answers.values())
        same = metrics.feedback == truth.feedback and metrics.votes == truth.votes
        return truth if logged and same and not truth.unjoined else None

    try:
        truth = await eventually(whole, "log and metrics agree", SETTLE_S)
    except AssertionError as error:
        raise AssertionError(f"{error}: {seen} {tally}") from None
    assert truth is not None
    return truth


async def test_an_upgrade_under_load_loses_nothing_and_fails_no_request(
    stack: Stack, expected: dict[str, Any], record_property: Callable[[str, object], None]
) -> None:
    tally = UpgradeTally.of(expected["tally"])
    before = sum(tally.answers.values())
    for name in (*ROUTERS, *FEEDBACKS):
        await asyncio.to_thread(stack.start, name)
    urls = {name: stack.url(name) for name in (*ROUTERS, *FEEDBACKS)}
    async with UpgradeUsers(urls, expected["key"], seed=SEED, tally=tally) as users:
        async with acting(users):
            for name in WORKERS:
                await asyncio.to_thread(stack.start, name)
            for name in (*ROUTERS, *FEEDBACKS):
                await restart_replica(stack, users, name)
            for name in WORKERS:
                await asyncio.to_thread(stack.restart, name)
            await goes_on(stack, expected["rollout"])
            candidate = tally.answers[CANDIDATE]
            await eventually(lambda: tally.answers[CANDIDATE] > candidate, "it still answers")
        assert users.problems == []
    truth = await agreed(stack, tally)
    assert truth.requests == {(one, "ok"): n for one, n in tally.answers.items()}
    assert by_name(truth.feedback) == tally.feedback
    chosen = {"chosen": tally.votes["left"] + tally.votes["right"], "tie": tally.votes["tie"]}
    assert votes_of(truth.votes) == chosen
    outcomes = (await series_of(stack.ports["aggregator"]))["ratchet_feedback_outcomes_total"]
    assert total(outcomes, outcome="withdrawn") == tally.withdrawn
    letters = [one.body for one in await read(stack.address("kafka"), DEAD_LETTERS)]
    assert {one["source_topic"] for one in letters} == {intake_topic("default")}
    places = {(one["source_partition"], one["source_offset"]) for one in letters}
    assert len(letters) == len(places) == expected["malformed"]
    await same_registry(stack, expected)
    record_property("answers_before", before)
    record_property("answers", sum(tally.answers.values()))
    record_property("feedback", sum(tally.feedback.values()))


async def goes_on(stack: Stack, rollout: str) -> None:
    """The rollout stands at its gate; a person lets it on, then promotes the candidate."""
    async with httpx.AsyncClient(base_url=stack.url("rollout"), timeout=60) as http:

        async def stands() -> dict[str, Any]:
            return (await http.get(f"/v1/rollouts/{rollout}")).json()

        async def told(verb: str, phase: str, **more: bool) -> None:
            body = {"reason": "upgraded", **more}
            answer = await http.post(f"/v1/rollouts/{rollout}/{verb}", json=body)
            assert answer.status_code == 200, answer.text

            async def moved() -> bool:
                return (await stands())["phase"] == phase

            await eventually(moved, f"after {verb} the phase is {phase}")

        found = await stands()
        assert (found["phase"], found["weight"]) == ("Paused", GATED)
        assert (found["stable"], found["candidate"]) == (STABLE, CANDIDATE)
        await told("resume", "Progressing")
        assert (await stands())["weight"] == GATED
        await told("promote", "Healthy", full=True)


async def same_registry(stack: Stack, expected: dict[str, Any]) -> None:
    """The candidate is stable in the registry, and the dataset is made again from the same offsets."""
    env = stack.environment()
    listed = ratchet("versions", "list", "--json", env=env)
    states = {row["version"]: row["state"] for row in listed.json["versions"]}
    assert states.keys() == {STABLE, CANDIDATE}
    assert states[CANDIDATE] == "stable"
    stored = DatasetStore(env["RATCHET_DATASETS_URI"]).read(expected["dataset"])
    assert stored is not None
    manifest = stack.run_dir / "data/datasets" / expected["dataset"] / MANIFEST
    # As it was written: read, it has the rules that came since, too.
    assert sha256(manifest.read_bytes()).hexdigest() == expected["dataset_sha256"]
    log = KafkaLog(KafkaConnection(stack.address("kafka")), source="/ratchet/test")
    await log.start()
    assert differences(stored, await rebuild(log, stored, ())) == []
    await log.stop()
