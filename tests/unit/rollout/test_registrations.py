"""Versions of prompts and settings, registered through the control API."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from shared.contracts.events.versions import SettingsRecord, settings_key
from shared.contracts.topics import VERSIONS
from shared.keys import KeyRing
from tests.unit.rollout.conftest import client
from tests.unit.rollout.fakes import ControllerBench, ControllerHarness, register, start

POLITE: dict[str, Any] = {
    "version": "polite",
    "model": "m",
    "settings": {"system": "Be polite.", "defaults": {"temperature": 0.2}},
    "on_behalf_of": "ann",
    "reason": "answers are rude",
}


async def test_a_registered_version_is_on_record_with_who_why_and_lineage(
    harness: ControllerHarness, http: httpx.AsyncClient
) -> None:
    made = await http.post("/v1/versions", json=POLITE)
    assert made.status_code == 201, made.text
    shown = (await http.get("/v1/versions/polite")).json()
    assert (shown["state"], shown["method"], shown["parent"]) == ("registered", "settings", "v1")
    (record,) = (one for one in harness.log.all(VERSIONS) if one.key == settings_key("polite"))
    kept = SettingsRecord.model_validate_json(record.value or b"")
    assert (kept.base, kept.adapter_of) == ("base", "")
    assert (kept.settings.system, kept.settings.defaults.temperature) == ("Be polite.", 0.2)
    assert (kept.on_behalf_of, kept.reason) == ("ann", "answers are rude")
    assert kept.actor
    assert kept.gate.checks[0].name == "not_evaluated"


async def test_a_record_has_the_hash_of_the_base_that_it_will_be_served_on(
    bench: ControllerBench,
) -> None:
    await register(bench.log, "v1", base_sha256="a" * 64)
    harness = await bench.harness()
    await harness.round()
    async with client(harness, KeyRing(required=False)) as http:
        alone = await http.post("/v1/versions", json=POLITE)
        over = await http.post(
            "/v1/versions", json={**POLITE, "version": "terse", "adapter_of": "v1"}
        )
        other = await http.post(
            "/v1/versions", json={**POLITE, "version": "odd", "base": "another"}
        )
    found = [one.json()["record"]["base_sha256"] for one in (alone, over, other)]
    assert found == ["a" * 64, "a" * 64, ""]


async def test_it_is_rolled_out_like_any_other(
    harness: ControllerHarness, http: httpx.AsyncClient
) -> None:
    await http.post("/v1/versions", json=POLITE)
    state = await start(harness, "polite")
    await harness.round()
    history = harness.decision_log.get(state.rollout_id)
    assert history is not None
    assert (history.state.stable, history.state.candidate, history.state.weight) == (
        "v1",
        "polite",
        500,
    )
    assert (await http.get("/v1/versions/polite")).json()["state"] == "canary"


async def test_an_adapter_is_served_under_settings_of_settings(http: httpx.AsyncClient) -> None:
    first = await http.post("/v1/versions", json={**POLITE, "adapter_of": "v1"})
    assert first.json()["record"]["adapter_of"] == "v1"
    second = {**POLITE, "version": "terse", "adapter_of": "polite"}
    assert (await http.post("/v1/versions", json=second)).json()["record"]["adapter_of"] == "v1"


async def test_over_settings_without_an_adapter_the_base_is_served(http: httpx.AsyncClient) -> None:
    first = await http.post("/v1/versions", json={**POLITE, "base": "another"})
    assert first.json()["record"]["adapter_of"] == ""
    second = {**POLITE, "version": "terse", "adapter_of": "polite"}
    record = (await http.post("/v1/versions", json=second)).json()["record"]
    assert (record["adapter_of"], record["base"]) == ("", "another")


@pytest.mark.parametrize(
    ("changes", "status", "field"),
    [
        ({"version": "v1"}, 409, "version"),
        ({"version": "m"}, 409, "version"),
        ({"version": "../x"}, 422, "version"),
        ({"model": "new"}, 422, "base"),
        ({"adapter_of": "v9"}, 404, "adapter_of"),
        ({"adapter_of": "v1", "base": "other"}, 422, "base"),
        ({"settings": {"defaults": {"temprature": 1}}}, 422, "settings.defaults.temprature"),
        ({"settings": {"defaults": {"temperature": 3}}}, 422, "settings.defaults.temperature"),
        ({"settings": {"prompt": "x"}}, 422, "settings.prompt"),
        ({"reason": ""}, 422, "reason"),
    ],
)
async def test_what_may_not_be_registered_names_field_and_rule(
    http: httpx.AsyncClient, changes: dict[str, Any], status: int, field: str
) -> None:
    refused = await http.post("/v1/versions", json=POLITE | changes)
    assert refused.status_code == status, refused.text
    assert [one["field"] for one in refused.json()["errors"]] == [field]
    assert refused.json()["detail"].startswith(field)
    listed = (await http.get("/v1/versions", params={"model": "m"})).json()["versions"]
    assert [one["version"] for one in listed] == ["v1", "v2"]


async def test_a_rejected_or_unreleased_adapter_serves_under_no_settings(
    harness: ControllerHarness, http: httpx.AsyncClient
) -> None:
    state = await start(harness, "v2")
    await harness.round()
    await http.post(f"/v1/rollouts/{state.rollout_id}/abort", json={"reason": "bad"})
    refused = await http.post("/v1/versions", json={**POLITE, "adapter_of": "v2"})
    assert (refused.status_code, refused.json()["code"]) == (422, "not_allowed")


@pytest.mark.parametrize(
    ("served", "taken"), [({"qwen"}, "qwen"), (set(), None), ({"qwen", "llama"}, None)]
)
async def test_a_first_version_is_of_the_base_that_all_engines_serve(
    harness: ControllerHarness, http: httpx.AsyncClient, served: set[str], taken: str | None
) -> None:
    harness.agents.served = served
    made = await http.post("/v1/versions", json={**POLITE, "model": "new"})
    if taken is not None:
        assert (made.status_code, made.json()["record"]["base"]) == (201, taken)
        return
    assert made.status_code == 422
    (error,) = made.json()["errors"]
    assert error["field"] == "base"
    assert ("llama and qwen" if served else "none yet") in error["rule"]
    assert "/v1/models" in error["remedy"]


async def test_a_model_begins_with_its_base(bench: ControllerBench) -> None:
    await register(bench.log, "v1")
    harness = await bench.harness()
    async with client(harness, KeyRing(required=False)) as http:
        body = {**POLITE, "model": "new", "base": "qwen", "settings": {}}
        assert (await http.post("/v1/versions", json=body)).status_code == 201
    await harness.round()
    routing = harness.decision_log.routing.get("new")
    assert routing is not None
    assert routing.stable == "polite"
