"""A version whose data one tenant gave more than half of waits for an approver."""

from __future__ import annotations

import httpx
import pytest

from shared.keys import KeyRing
from tests.support.operators import operator_of
from tests.unit.rollout.conftest import client
from tests.unit.rollout.fakes import ControllerBench, ControllerHarness, register, until_known

START = {"model": "m", "candidate": "v3", "strategy": "default", "reason": "acme asks for most"}
WHY = "tenant acme gave 71% of the rows it was trained on"


async def lopsided(harness: ControllerHarness, version: str = "v3") -> None:
    await register(harness.log, version, tenants={"acme": 71, "globex": 19, "": 10})
    await until_known(harness, version)


async def started(harness: ControllerHarness) -> list[str]:
    return [history.state.candidate for history in harness.decision_log.histories("m")]


@pytest.mark.parametrize(
    "tenants",
    [{"acme": 50, "globex": 50}, {"acme": 100}, {"acme": 60, "": 40}, {}],
    ids=["half", "one tenant", "one tenant and an import", "not known"],
)
async def test_others_begin_by_themselves(bench: ControllerBench, tenants: dict[str, int]) -> None:
    await register(bench.log, "v1")
    harness = await bench.harness(auto_start=True)
    await harness.round()
    await register(bench.log, "v2", tenants=tenants)
    await until_known(harness, "v2")
    await harness.round()
    assert await started(harness) == ["v2"]


async def test_it_holds_up_no_version_behind_it(bench: ControllerBench) -> None:
    await register(bench.log, "v1")
    harness = await bench.harness(auto_start=True)
    await harness.round()
    await lopsided(harness)
    await harness.round()
    assert await started(harness) == []
    await register(bench.log, "v4")
    await until_known(harness, "v4")
    await harness.round()
    assert await started(harness) == ["v4"]


async def test_an_approver_accepts_it_once_and_the_log_says_so(harness: ControllerHarness) -> None:
    await lopsided(harness)
    keys = KeyRing(required=True)
    _, plain = operator_of("default", keys)
    _, approver = operator_of("default", keys, approver=True)
    async with client(harness, keys) as http:
        http.headers.update(plain)
        listed = {
            one["version"]: one for one in (await http.get("/v1/versions")).json()["versions"]
        }
        assert listed["v3"]["waits_for"] == f"an approver, as {WHY}"
        assert (listed["v3"]["tenants"], listed["v2"]["waits_for"]) == (
            {"acme": 71, "globex": 19},
            "",
        )
        refused = await http.post("/v1/rollouts", json=START)
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "candidate")
        assert WHY in refused.json()["detail"]
        accepting = {**START, "one_tenant": True}
        refused = await http.post("/v1/rollouts", json=accepting)
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (403, "one_tenant")
        http.headers.update(approver)
        assert (
            await http.post("/v1/rollouts", json={**accepting, "reason": ""})
        ).status_code == 422
        begun = await http.post("/v1/rollouts", json=accepting)
        assert begun.status_code == 201, begun.text
        (start,) = (one for one in harness.written if one.kind.value == "start")
        assert start.evidence["one_tenant"] == WHY
        path = f"/v1/rollouts/{begun.json()['rollout_id']}"
        (shown, *_) = (await http.get(f"{path}/decisions")).json()["decisions"]
        assert f"and accepted that {WHY}" in shown["sentence"]
        http.headers.update(plain)
        assert (await http.post(f"{path}/abort", json={"reason": "enough"})).status_code == 200
        again = {**START, "again": True}
        assert (await http.post("/v1/rollouts", json=again)).status_code == 201


async def test_the_models_present_rollout_says_what_waits(
    harness: ControllerHarness, http: httpx.AsyncClient
) -> None:
    await lopsided(harness)
    waits = f"v3 waits for an approver, as {WHY}"
    none_yet = await http.get("/v1/rollouts/current", params={"model": "m"})
    assert none_yet.status_code == 404
    detail = none_yet.json()["detail"]
    assert "never had a rollout; start one" in detail
    assert detail.endswith(waits)
    await http.post("/v1/rollouts", json={**START, "candidate": "v2"})
    current = (await http.get("/v1/rollouts/current", params={"model": "m"})).json()
    assert current["waiting"] == waits
