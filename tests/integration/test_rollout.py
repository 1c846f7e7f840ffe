"""The rollout service on real Kafka, Redis and Prometheus; routers and engine are stand-ins."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from deploy.local.ports import free_ports
from deploy.local.stack import Stack
from tests.support.rollout_harness import RolloutHarness, StandInAgent, VersionBehaviour, weights
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(600)  # the stack starts within the first test's time

QUICK_PAUSE_S = 2
QUICK = {
    "name": "quick",
    "steps": [
        {"setWeight": 5, "errorLimit": 0.05},
        {"pause": {"duration": QUICK_PAUSE_S}},
        {"analysis": {"minimum": {"requests": 5}}},
        {"setWeight": 50, "errorLimit": 0.02},
        {"pause": {"duration": "2s"}},
        {"analysis": {"minimum": {"requests": 40, "feedback": 5}}},
        {"setWeight": 100, "errorLimit": 0.02},
        {"pause": {"duration": "2s"}},
    ],
    "noDataAfter": "6s",
}
SLOW = {**QUICK, "name": "slow", "steps": [*QUICK["steps"]]}
SLOW["steps"][1] = {"pause": {"duration": "1h"}}
"""Stays at 5 % until somebody or something moves it."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Kafka, Redis, Prometheus and the service, not shared: tests here take them away."""
    run_dir = tmp_path_factory.mktemp("rollout")
    strategies = run_dir / "strategies"
    strategies.mkdir()
    for strategy in (QUICK, SLOW):
        path = strategies / f"{strategy['name']}.yaml"
        path.write_text(yaml.safe_dump(strategy))
    agent_port = free_ports(["agent"])["agent"]
    env = {
        "RATCHET_ROLLOUT_AGENTS": f"http://127.0.0.1:{agent_port}",
        "RATCHET_ROLLOUT_STRATEGY": str(strategies / "quick.yaml"),
        "RATCHET_ROLLOUT_AUTO_START": "false",
        "RATCHET_ROLLOUT_LOOK_INTERVAL_S": "0.5",
        # Far enough under the 5 s asserted here for a busy machine.
        "RATCHET_ROLLOUT_HOLD_INTERVAL_S": "2",
        "RATCHET_DATA_DIR": str(run_dir / "service-data"),
        "TEST_AGENT_PORT": str(agent_port),
    }
    standby = {
        "module": "services.rollout",
        "ports": {"rollout2": 18082},
        "env": {**env, "RATCHET_ROLLOUT_PORT": "${port.rollout2}"},
        "after": ["topics", "redis", "prometheus"],
        "ready": {"http": "${url.rollout2}/readyz"},
        "default": False,
    }
    with Stack(
        run_dir,
        services=["rollout"],
        processes={"rollout": {"env": env}, "rollout2": standby},
        ports="free",
        scrape_interval="1s",
        say=lambda _: None,
    ) as started:
        yield started


@pytest.fixture(scope="module")
def agent_port(stack: Stack) -> int:
    spec = stack._changes["rollout"]["env"]
    return int(spec["TEST_AGENT_PORT"])


@pytest.fixture
async def harness(stack: Stack, agent_port: int, unique: str) -> AsyncIterator[RolloutHarness]:
    """A model with v1.0 stable and v1.1 registered."""
    made = RolloutHarness(
        unique,
        kafka=stack.address("kafka"),
        redis_url=f"redis://{stack.address('redis')}/0",
        rollout_url=stack.url("rollout"),
        routers=2,
    )
    agent = StandInAgent()
    await made.open()
    await agent.open(agent_port)
    agent.harnesses.append(made)
    # As an operator of Prometheus on Kubernetes names jobs; the service must not care.
    stack.scrape("monitoring/ratchet", made.addresses)
    stack.scrape("aggregator", [made.score_address])
    await made.register(f"{unique}-v1.0")
    await eventually(lambda: made.state is not None, "v1.0 becomes stable by itself")
    await made.register(f"{unique}-v1.1")
    await eventually(lambda: _known(made, f"{unique}-v1.1"), "the service knows the candidate")
    try:
        yield made
    finally:
        rollout = await made.current()
        if rollout and rollout["ended_at"] is None:
            await made.http.post(f"/v1/rollouts/{rollout['rollout_id']}/abort", json={})
        await agent.close()
        await made.close()


async def _known(harness: RolloutHarness, version: str) -> bool:
    return bool(await harness.version_state(version))


async def start(harness: RolloutHarness, strategy: str = "quick", **more: Any) -> dict[str, Any]:
    body = {
        "model": harness.model,
        "candidate": f"{harness.model}-v1.1",
        "strategy": strategy,
        **more,
    }
    answer = await harness.http.post(
        "/v1/rollouts", json={"on_behalf_of": "sre", "reason": "test", **body}
    )
    assert answer.status_code == 201, answer.text
    return answer.json()


async def ended(harness: RolloutHarness, timeout_s: float = 90) -> dict[str, Any]:
    async def over() -> dict[str, Any]:
        rollout = await harness.current()
        return rollout if rollout.get("ended_at") else {}

    return await eventually(over, "the rollout ends", timeout_s)


async def at_weight(harness: RolloutHarness, weight: int, timeout_s: float = 30) -> None:
    def reached() -> bool:
        return harness.state is not None and harness.state.weight == weight

    await eventually(reached, f"weight {weight}", timeout_s)


async def test_a_good_candidate_earns_all_traffic_by_itself(harness: RolloutHarness) -> None:
    candidate = f"{harness.model}-v1.1"
    rollout = await start(harness)
    assert (rollout["phase"], rollout["weight"]) == ("Progressing", 0)
    done = await ended(harness)
    assert (done["phase"], done["weight"]) == ("Healthy", 10_000), done["reason"]
    decisions = await harness.decisions(rollout["rollout_id"])
    assert weights(decisions) == [0, 500, 5_000, 10_000]
    assert decisions[0]["strategy"]["name"] == "quick"
    assert {one["config_sha256"] for one in decisions} == {rollout["config_sha256"]}
    moments = [_seconds(one["at"]) for one in decisions]
    assert max(later - earlier for earlier, later in pairwise(moments)) <= 5.0
    assert [one["seq"] for one in decisions] == sorted(one["seq"] for one in decisions)
    await eventually(lambda: _is(harness, candidate, "stable"), "the candidate is stable")
    await eventually(
        lambda: _is(harness, f"{harness.model}-v1.0", "retired"), "its parent is retired"
    )
    assert harness.state is not None
    assert (harness.state.stable, harness.state.candidate, harness.state.weight) == (
        candidate,
        "",
        0,
    )


async def test_a_failing_candidate_is_rolled_back_within_a_minute(harness: RolloutHarness) -> None:
    harness.rate = 30.0
    harness.behaviours[f"{harness.model}-v1.1"] = VersionBehaviour(failing=0.3)
    rollout = await start(harness, "slow")
    done = await ended(harness)
    assert (done["phase"], done["weight"], done["outcome"]) == ("Degraded", 0, "Failed")
    bad = harness.counts[rollout["rollout_id"], "candidate"]
    decision = (await harness.decisions(rollout["rollout_id"]))[-1]
    assert decision["kind"] == "rollback"
    assert _seconds(decision["at"]) - bad.first_at < 60
    await eventually(lambda: _is(harness, f"{harness.model}-v1.1", "rejected"), "it is rejected")
    assert harness.state is not None
    assert (harness.state.rollout, harness.state.weight) == ("", 0)
    assert bad.last_at - _seconds(decision["at"]) < 1.0


async def test_nothing_is_decided_and_nothing_lost_while_measurements_fail(
    stack: Stack, harness: RolloutHarness
) -> None:
    rollout = await start(harness, "slow")
    await at_weight(harness, 500)
    stack.kill("prometheus")
    stack.stop("prometheus")

    async def holds_for(outcome: str) -> bool:
        return (await harness.current())["outcome"] == outcome

    await eventually(lambda: holds_for("Error"), "Error while Prometheus is away")
    assert harness.state is not None
    assert harness.state.weight == 500
    # All that Prometheus had is gone; no count is.
    for path in (stack.run_dir / "data").glob("prometheus/*"):
        _delete(path)
    stack.start("prometheus")
    await eventually(lambda: holds_for("Successful"), "evidence again")
    harness.rate = 0.0
    await eventually(lambda: _counted_exactly(harness, rollout["rollout_id"]), "every attempt")
    kinds = {one["kind"] for one in await harness.decisions(rollout["rollout_id"])}
    assert kinds == {"start", "weight", "hold"}


async def _counted_exactly(harness: RolloutHarness, name: str) -> bool:
    present = await harness.current()
    real = {arm: harness.counts[name, arm] for arm in ("candidate", "stable")}
    return all(
        present["requests"][arm] == counts.requests
        and present["scores"][arm]["count"] == counts.scores
        for arm, counts in real.items()
    )


async def test_no_traffic_holds_for_ever(harness: RolloutHarness) -> None:
    rollout = await start(harness)
    await at_weight(harness, 500)
    for router in harness.routers:
        router.hidden = True

    async def says_so() -> bool:
        return (await harness.current())["outcome"] == "NoData"

    await eventually(says_so, "NoData")

    async def held_past_the_steps_time() -> bool:
        decisions = await harness.decisions(rollout["rollout_id"])
        holds = [_seconds(one["at"]) for one in decisions if one["outcome"] == "NoData"]
        return holds[-1] - holds[0] > QUICK_PAUSE_S

    await eventually(held_past_the_steps_time, "NoData for longer than the step lasts")
    present = await harness.current()
    assert (present["phase"], present["weight"]) == ("Progressing", 500)
    kinds = {one["kind"] for one in await harness.decisions(rollout["rollout_id"])}
    assert kinds == {"start", "weight", "hold"}


async def test_the_first_weight_waits_for_every_routers_zeros_and_the_adapter(
    harness: RolloutHarness,
) -> None:
    candidate = f"{harness.model}-v1.1"
    harness.loaded.discard(candidate)
    harness.routers[1].hidden = True
    await start(harness)

    async def waits_for(what: str) -> bool:
        return what in (await harness.current())["reason"]

    await eventually(lambda: waits_for("does not serve the candidate"), "it waits")
    harness.loaded.add(candidate)
    harness.routers[1].hidden = False
    await at_weight(harness, 500)


async def test_a_lost_engine_stops_it_and_a_second_loss_fails_it(harness: RolloutHarness) -> None:
    rollout = await start(harness, "slow")
    await at_weight(harness, 500)
    harness.engine_ready = False

    async def paused() -> bool:
        present = await harness.current()
        return (present["phase"], present["weight"], present["paused_by"]) == (
            "Paused",
            0,
            "engine",
        )

    await eventually(paused, "weight 0 at once")
    harness.engine_ready, harness.generation = True, 2
    await at_weight(harness, 500)
    harness.generation = 3
    done = await ended(harness)
    assert done["phase"] == "Degraded"
    assert "EngineLost" in done["reason"]
    assert weights(await harness.decisions(rollout["rollout_id"])) == [0, 500, 0, 500, 0]


async def test_a_killed_controller_goes_on_where_it_was(
    stack: Stack, harness: RolloutHarness
) -> None:
    harness.rate = 100.0
    rollout = await start(harness, "slow")
    await at_weight(harness, 500)
    name = rollout["rollout_id"]

    async def seen() -> float:
        present = await harness.current()
        return present["requests"]["candidate"]

    await eventually(lambda: _above(seen, 20), "some evidence")
    stack.kill("rollout")
    stack.wait_ready("rollout")
    await eventually(lambda: _above(seen, 20), "the evidence from before")
    present = await harness.current()
    assert present["rollout_id"] == name
    assert harness.state is not None
    assert harness.state.weight == 500
    # And without its own files: the decisions carry the evidence, and nothing counts twice.
    stack.stop("rollout")
    _delete(Path(stack._changes["rollout"]["env"]["RATCHET_DATA_DIR"]) / "rollout")
    before = present["requests"]["candidate"]
    stack.start("rollout")
    await eventually(lambda: _above(seen, before + 5), "evidence grows again")
    total = await seen()
    assert total <= harness.counts[name, "candidate"].requests


async def test_two_controllers_decide_as_one_whatever_redis_forgets(
    stack: Stack, harness: RolloutHarness
) -> None:
    rollout = await start(harness, "slow")
    await at_weight(harness, 500)
    stack.start("rollout2")
    other = stack.url("rollout2")
    refused = await harness.http.post(f"{other}/v1/rollouts/{rollout['rollout_id']}/abort", json={})
    assert (refused.status_code, refused.json()["code"]) == (503, "not_leading")

    async def another_was_elected() -> bool:
        await harness.flush_redis()
        decisions = await harness.decisions(rollout["rollout_id"])
        return len({one["token"] for one in decisions}) > 1

    await eventually(another_was_elected, "without its lease the other takes the lead")
    leaders = [stack.url("rollout"), other]

    async def one_leads() -> bool:
        return sum([await _leads(harness, url) for url in leaders]) == 1

    await eventually(one_leads, "one leader")
    leading = "rollout" if await _leads(harness, leaders[0]) else "rollout2"
    stack.kill(leading)
    stack.stop(leading)
    survivor = other if leading == "rollout" else leaders[0]
    await eventually(lambda: _leads(harness, survivor), "the other takes over")
    decisions = (
        await harness.http.get(
            f"{survivor}/v1/rollouts/{rollout['rollout_id']}/decisions", params={"limit": 1000}
        )
    ).json()["decisions"]
    assert weights(decisions) == [0, 500]
    tokens = [one["token"] for one in decisions]
    assert tokens == sorted(tokens)
    assert len(set(tokens)) > 2
    aborted = await harness.http.post(
        f"{survivor}/v1/rollouts/{rollout['rollout_id']}/abort", json={"reason": "seen enough"}
    )
    assert aborted.json()["phase"] == "Degraded"
    await eventually(lambda: harness.state is not None and harness.state.weight == 0, "weight 0")
    stack.start("rollout")
    stack.stop("rollout2")


async def _leads(harness: RolloutHarness, url: str) -> bool:
    try:
        text = (await harness.http.get(f"{url}/metrics")).text
    except httpx.HTTPError:
        return False
    return "ratchet_rollout_leader 1.0" in text


async def test_people_can_stop_and_move_it_and_are_told_what_is_wrong(
    harness: RolloutHarness,
) -> None:
    http = harness.http
    rollout = await start(harness, "slow")
    path = f"/v1/rollouts/{rollout['rollout_id']}"
    again = await http.post(
        "/v1/rollouts", json={"model": harness.model, "candidate": rollout["candidate"]}
    )
    assert (again.status_code, again.json()["code"]) == (409, "conflict")
    early = await http.post(f"{path}/promote", json={})
    assert early.status_code == 409
    await at_weight(harness, 500)
    who = {"on_behalf_of": "ann", "reason": "looks odd"}
    paused = await http.post(f"{path}/pause", json=who)
    assert (paused.status_code, paused.json()["phase"]) == (200, "Paused")
    assert (await http.post(f"{path}/pause", json=who)).status_code == 409
    assert (await http.post(f"{path}/resume", json=who)).json()["phase"] == "Progressing"
    assert (await http.post(f"{path}/promote", json=who)).status_code == 200
    await at_weight(harness, 5_000)
    aborted = (await http.post(f"{path}/abort", json=who)).json()
    assert (aborted["phase"], aborted["weight"], aborted["on_behalf_of"]) == ("Degraded", 0, "ann")
    assert (await http.post(f"{path}/abort", json=who)).status_code == 409
    retried = await http.post(f"{path}/retry", json=who)
    assert retried.status_code == 201
    assert retried.json()["rollout_id"] != rollout["rollout_id"]
    assert retried.json()["requests"] == {"candidate": 0, "stable": 0}
    for body, code, field in (
        ({"model": harness.model}, "invalid", "candidate"),
        ({"model": harness.model, "candidate": "none"}, "not_found", "candidate"),
        (
            {"model": harness.model, "candidate": "x", "strategy": {"name": "s", "steps": []}},
            "bad_strategy",
            "strategy.steps",
        ),
        (
            {"model": harness.model, "candidate": "x", "strategy": "../x"},
            "bad_strategy",
            "strategy",
        ),
    ):
        error = (await http.post("/v1/rollouts", json=body)).json()
        fields = [named["field"] for named in error.get("errors", [])]
        assert (error["code"], fields) == (code, [field]), error


async def _above(read: Any, limit: float) -> bool:
    return await read() > limit


async def _is(harness: RolloutHarness, version: str, state: str) -> bool:
    return await harness.version_state(version) == state


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
