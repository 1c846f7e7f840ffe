"""The permanent holdout: set, shown, carried through rollouts, and cleared."""

from __future__ import annotations

import httpx
import pytest

from shared.contracts.events.rollouts import DecisionKind
from shared.contracts.events.versions import Lifecycle
from tests.unit.rollout.fakes import ControllerHarness, start, traffic

SET = {"model": "m", "share": 2, "on_behalf_of": "ann", "reason": "measure a year"}


async def test_a_holdout_is_on_record_and_every_decision_carries_it(
    harness: ControllerHarness, http: httpx.AsyncClient
) -> None:
    made = await http.post("/v1/holdout", json=SET)
    assert made.status_code == 200, made.text
    shown = (await http.get("/v1/holdout", params={"model": "m"})).json()
    assert (shown["share"], shown["reference"]) == (2, "v1")
    assert shown["set_by"]["reason"] == "measure a year"
    assert shown["set_by"]["on_behalf_of"] == "ann"
    assert "holds 2 % of the users out on v1" in shown["set_by"]["sentence"]
    state = await start(harness)
    await harness.round()
    traffic(harness, state, 100)
    await harness.round(5)
    assert {
        (decision.holdout, decision.holdout_reference)
        for decision in harness.written
        if decision.rollout_id == state.rollout_id
    } == {(200, "v1")}
    routing = harness.decision_log.routing.get("m")
    assert routing is not None
    assert (routing.holdout, routing.reference, routing.candidate) == (200, "v1", "v2")


async def test_the_reference_stays_the_reference_and_loaded_once_another_is_stable(
    harness: ControllerHarness, http: httpx.AsyncClient
) -> None:
    await http.post("/v1/holdout", json=SET)
    state = await start(harness)
    await harness.round()
    path = f"/v1/rollouts/{state.rollout_id}/promote"
    assert (await http.post(path, json={"full": True, "reason": "fine"})).status_code == 200
    await harness.round()
    reference = harness.versions.registry.get("v1")
    assert reference is not None
    assert reference.state is not None
    assert (reference.lifecycle, reference.state.holdout) == (Lifecycle.retired, True)
    more = await http.post("/v1/holdout", json={**SET, "share": 5})
    assert (more.json()["share"], more.json()["reference"]) == (5, "v1")
    cleared = await http.post("/v1/holdout", json={**SET, "share": 0, "reason": "known now"})
    assert (cleared.json()["share"], cleared.json()["reference"]) == (0, "")
    assert "ended the holdout" in cleared.json()["set_by"]["sentence"]
    reference = harness.versions.registry.get("v1")
    assert reference is not None
    assert reference.state is not None
    assert not reference.state.holdout
    again = await http.post("/v1/holdout", json=SET)
    assert again.json()["reference"] == "v2"


async def test_a_holdout_is_not_changed_under_a_rollout(
    harness: ControllerHarness, http: httpx.AsyncClient
) -> None:
    await start(harness)
    refused = await http.post("/v1/holdout", json=SET)
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    assert all(not decision.holdout for decision in harness.written)


@pytest.mark.parametrize(
    ("changes", "status"),
    [({"share": 5.01}, 422), ({"share": -1}, 422), ({"reason": ""}, 422), ({"model": "x"}, 404)],
)
async def test_what_is_no_holdout_is_refused(
    http: httpx.AsyncClient, changes: dict[str, object], status: int
) -> None:
    assert (await http.post("/v1/holdout", json=SET | changes)).status_code == status


async def test_a_model_that_never_had_one_says_so(
    harness: ControllerHarness, http: httpx.AsyncClient
) -> None:
    shown = (await http.get("/v1/holdout", params={"model": "m"})).json()
    assert shown == {"model": "m", "share": 0, "reference": "", "set_by": None}
    assert [one.kind for one in harness.written] == [DecisionKind.stable_set]
