"""Versions that a person retires: out of the queue and the engines, until somebody starts them."""

from __future__ import annotations

import httpx

from shared.contracts.events.versions import Lifecycle
from shared.registry.versions import Version
from tests.unit.rollout.fakes import (
    ControllerBench,
    ControllerHarness,
    register,
    start,
    until_known,
)

WHY = {"on_behalf_of": "ann", "reason": "its data were withdrawn"}


def version_of(harness: ControllerHarness, name: str) -> Version:
    found = harness.versions.registry.get(name)
    assert found is not None
    return found


async def retire(http: httpx.AsyncClient, name: str) -> httpx.Response:
    return await http.post(f"/v1/versions/{name}/retire", json=WHY)


async def test_a_version_that_waits_is_retired_on_record_and_a_start_brings_it_back(
    harness: ControllerHarness, http: httpx.AsyncClient
) -> None:
    answered = await retire(http, "v2")
    assert answered.status_code == 200, answered.text
    shown = answered.json()
    assert (shown["state"], shown["reason"]) == ("retired", WHY["reason"])
    assert shown["retired_by"]
    state = version_of(harness, "v2").state
    assert state is not None
    assert (state.actor, state.on_behalf_of) == (shown["retired_by"], "ann")
    assert not version_of(harness, "v2").is_way_back
    await harness.round()
    assert version_of(harness, "v2").lifecycle is Lifecycle.retired, "no round undoes it"
    assert (await retire(http, "v2")).status_code == 200, "once more is the same"
    await start(harness)
    await harness.round()
    brought = (await http.get("/v1/versions/v2")).json()
    assert (brought["state"], brought["retired_by"]) == ("canary", "")


async def test_a_retired_version_does_not_start_by_itself_and_holds_nobody_up(
    bench: ControllerBench,
) -> None:
    await register(bench.log, "v1")
    harness = await bench.harness()
    await harness.round()
    await register(bench.log, "v2")
    await register(bench.log, "v3")
    await until_known(harness, "v3")
    await harness.controller.retire("v2", actor="key", on_behalf_of="", reason="bad data")
    await harness.close()
    successor = await bench.harness("two", auto_start=True)
    bench.clock.advance(600)
    await successor.round()
    await successor.round()
    history = successor.decision_log.unfinished_of("m")
    assert history is not None
    assert history.state.candidate == "v3"
    assert version_of(successor, "v2").lifecycle is Lifecycle.retired


async def test_what_gets_traffic_or_was_rejected_is_refused_with_what_to_do(
    harness: ControllerHarness, http: httpx.AsyncClient
) -> None:
    unknown = await retire(http, "nobody")
    assert unknown.status_code == 404
    stable = await retire(http, "v1")
    assert (stable.status_code, stable.json()["code"]) == (409, "conflict")
    assert "roll out another version first" in stable.text
    state = await start(harness)
    await harness.round()
    assert "ratchet rollout abort" in (await retire(http, "v2")).text
    path = f"/v1/rollouts/{state.rollout_id}"
    assert (await http.post(f"{path}/abort", json={"reason": "enough"})).status_code == 200
    assert "was rejected" in (await retire(http, "v2")).text
    assert version_of(harness, "v2").lifecycle is Lifecycle.rejected
    empty = await http.post("/v1/versions/v2/retire", json={"reason": ""})
    assert empty.status_code == 422


async def test_the_reference_of_a_holdout_stays_until_that_is_ended(
    harness: ControllerHarness, http: httpx.AsyncClient
) -> None:
    await http.post("/v1/holdout", json={"model": "m", "share": 2, "reason": "measure"})
    state = await start(harness)
    await harness.round()
    full = {"full": True, "reason": "fine"}
    assert (
        await http.post(f"/v1/rollouts/{state.rollout_id}/promote", json=full)
    ).status_code == 200
    await harness.round()
    assert version_of(harness, "v1").is_way_back
    assert "ratchet rollout holdout clear" in (await retire(http, "v1")).text
    await http.post("/v1/holdout", json={"model": "m", "share": 0, "reason": "known"})
    assert (await retire(http, "v1")).status_code == 200
    assert not version_of(harness, "v1").is_way_back
