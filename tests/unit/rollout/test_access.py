"""Each route of the control API by keys of the tenant that has a model, of another, and operators'."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import httpx
import pytest
from prometheus_client import CollectorRegistry

from shared.contracts.events.api_keys import ApiKeyIssued, Permission
from shared.contracts.events.training import TrainingMethod, TrainingRequested
from shared.contracts.topics import API_KEYS, AUDIT, ERASURES, FEEDBACK, TRAINING_JOBS, intake_topic
from shared.kafka.deadletters import DeadLetters
from shared.kafka.log import Record
from shared.keys import KeyRing
from shared.registry.api_keys import make_key
from shared.tenants import ModelTenants
from tests.support.operators import operator_of
from tests.support.rollouts import publish_pairs
from tests.unit.rollout.conftest import application, client
from tests.unit.rollout.fakes import ControllerHarness

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WHY = {"reason": "a drill"}
TENANTS = ModelTenants({"m": "acme", "other": "globex"}, operators="ops")


class RouteCall(NamedTuple):
    """A request of one route about what acme has, and the field that another's key is told of."""

    path: str
    field: str
    body: dict[str, Any] | None = None


LISTS = (
    "/v1/rollouts", "/v1/versions", "/v1/training/jobs", "/v1/datasets", "/v1/keys",
    "/v1/dead-letters", "/v1/erasures", "/v1/quality",
)  # fmt: skip
NOBODYS = ("GET /v1/strategies/schema", "POST /v1/erasures")
"""A schema; and an erasure is of the key's own tenant, whoever asks."""
CALLS = {
    "POST /v1/rollouts": RouteCall(
        "/v1/rollouts", "model", {"model": "m", "candidate": "v2", "supersede": True}
    ),
    "GET /v1/rollouts/current": RouteCall("/v1/rollouts/current?model=m", "model"),
    "GET /v1/rollouts/{rollout_id}": RouteCall("/v1/rollouts/{rollout}", "rollout_id"),
    "GET /v1/rollouts/{rollout_id}/decisions": RouteCall("/v1/rollouts/m/decisions", "rollout_id"),
    "GET /v1/rollouts/{rollout_id}/replay": RouteCall("/v1/rollouts/{rollout}/replay", "rollout_id"),
    "GET /v1/rollouts/{rollout_id}/intervals": RouteCall(
        "/v1/rollouts/{rollout}/intervals", "rollout_id"
    ),
    "GET /v1/rollouts/{rollout_id}/slices": RouteCall("/v1/rollouts/{rollout}/slices", "rollout_id"),
    "POST /v1/rollouts/{rollout_id}/{verb}": RouteCall("/v1/rollouts/{rollout}/pause", "rollout_id", {}),
    "POST /v1/strategies/explain": RouteCall(
        "/v1/strategies/explain", "model", {"strategy": "default", "model": "m"}
    ),
    "GET /v1/holdout": RouteCall("/v1/holdout?model=m", "model"),
    "POST /v1/holdout": RouteCall("/v1/holdout", "model", {"model": "m", "share": 1, **WHY}),
    "POST /v1/versions": RouteCall("/v1/versions", "model", {"model": "m", "version": "s1", **WHY}),
    "POST /v1/versions/{version}/evaluation": RouteCall(
        "/v1/versions/v2/evaluation", "version", WHY
    ),
    "POST /v1/versions/{version}/retire": RouteCall("/v1/versions/v2/retire", "version", WHY),
    "GET /v1/versions/gain": RouteCall("/v1/versions/gain?model=m", "model"),
    "GET /v1/versions/differences": RouteCall(
        "/v1/versions/differences?first=v1&second=v2", "first"
    ),
    "GET /v1/versions/{version}": RouteCall("/v1/versions/v1", "version"),
    "GET /v1/datasets/{dataset_id}": RouteCall("/v1/datasets/d", "dataset_id"),
    "GET /v1/reports/weekly": RouteCall("/v1/reports/weekly?model=m", "model"),
    "POST /v1/training/jobs": RouteCall("/v1/training/jobs", "model", {"model": "m", **WHY}),
    "POST /v1/training/jobs/{job_id}/cancel": RouteCall("/v1/training/jobs/j/cancel", "job_id", WHY),
    "POST /v1/keys": RouteCall("/v1/keys", "tenant", {"scopes": ["infer"], "tenant": "acme", **WHY}),
    "POST /v1/keys/{key_id}/rotate": RouteCall("/v1/keys/shop/rotate", "key_id", WHY),
    "POST /v1/keys/{key_id}/revoke": RouteCall("/v1/keys/shop/revoke", "key_id", WHY),
    "POST /v1/dead-letters/replay": RouteCall(
        "/v1/dead-letters/replay", "topic", {"topic": intake_topic("acme"), **WHY}
    ),
}  # fmt: skip


class Operators:
    """A controller of acme's model with a rollout, and a client by the key of each tenant."""

    def __init__(self, harness: ControllerHarness, rollout_id: str) -> None:
        self.harness = harness
        self._rollout_id = rollout_id
        self._headers: dict[str, dict[str, str]] = {}
        self._keys = KeyRing(required=True)
        self.http = client(harness, self._keys, tenants=TENANTS)

    def admit(self, tenant: str) -> ApiKeyIssued:
        issued, self._headers[tenant] = operator_of(tenant, self._keys)
        return issued

    async def call(self, template: str, tenant: str) -> httpx.Response:
        call = CALLS[template]
        return await self.ask(template.partition(" ")[0], call.path, tenant, call.body)

    async def ask(self, method: str, path: str, tenant: str, body: Any = None) -> httpx.Response:
        url = path.replace("{rollout}", self._rollout_id)
        return await self.http.request(method, url, json=body, headers=self._headers[tenant])


@pytest.fixture
async def operators(harness: ControllerHarness) -> AsyncIterator[Operators]:
    state = await harness.controller.start(
        model="m", candidate="v2", strategy=None, supersede=False, actor="ann", reason="week 12"
    )
    made = Operators(harness, state.rollout_id)
    shop = make_key({"tenant": "acme", "scopes": (Permission.infer,)}, NOW).issued
    own = [made.admit(tenant) for tenant in ("acme", "globex", "ops")]
    for key, key_id in (*((one, one.key_id) for one in own), (shop, "shop")):
        issued = key.model_copy(update={"key_id": key_id})
        await harness.log.publish(API_KEYS, key=key_id, event=issued, event_id=key_id)
    job = TrainingRequested(
        job_id="j", model="m", method=TrainingMethod.dpo, actor="ann", requested_at=NOW
    )
    await harness.log.publish(TRAINING_JOBS, key="j", event=job, event_id="j")
    letters = DeadLetters(
        harness.log, service="feedback", redact=lambda text: text, metrics=CollectorRegistry()
    )
    for topic in (intake_topic("acme"), FEEDBACK):
        await letters.put(Record(topic, 0, 3, "k", b"{broken", (), 0), "schema", "no JSON")
    async with made.http:
        yield made


def test_every_route_is_in_a_table(harness: ControllerHarness) -> None:
    """So that a new route is asked for by another tenant's key below, or is a list, or nobody's."""
    app, _ = application(harness, KeyRing(required=True))
    routes = {
        f"{method.upper()} {path}"
        for path, methods in app.openapi()["paths"].items()
        for method in methods
    }
    assert routes == {*CALLS, *NOBODYS, *(f"GET {path}" for path in LISTS)}


@pytest.mark.parametrize("asked", CALLS)
async def test_another_tenants_key_is_refused_and_told_of_field_rule_and_remedy(
    operators: Operators, asked: str
) -> None:
    written = {topic: len(operators.harness.log.all(topic)) for topic in (AUDIT, TRAINING_JOBS)}
    answer = await operators.call(asked, "globex")
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), answer.text
    (error,) = answer.json()["errors"]
    assert error["field"] == CALLS[asked].field
    assert "globex" in error["rule"]
    assert "operators' tenant" in error["remedy"]
    assert "acme" not in error["remedy"]
    for topic, count in written.items():
        assert len(operators.harness.log.all(topic)) == count


@pytest.mark.parametrize("tenant", ["acme", "ops"])
@pytest.mark.parametrize("asked", CALLS)
async def test_keys_of_the_models_tenant_and_of_the_operators_may(
    operators: Operators, asked: str, tenant: str
) -> None:
    answer = await operators.call(asked, tenant)
    assert answer.status_code not in (401, 403), answer.text
    assert answer.status_code < 500, answer.text


@pytest.mark.parametrize("path", LISTS)
async def test_a_list_shows_what_the_keys_tenant_has(operators: Operators, path: str) -> None:
    erased = {"user_id": "eve", **WHY}
    assert (await operators.ask("POST", "/v1/erasures", "acme", erased)).status_code == 202
    rows = {
        tenant: next(
            value
            for name, value in (await operators.ask("GET", path, tenant)).json().items()
            if name != "targets"
        )
        for tenant in ("acme", "globex", "ops")
    }
    assert all(one.get("tenant") == "globex" for one in rows["globex"])
    if path == "/v1/quality":
        return
    assert rows["acme"]
    assert len(rows["ops"]) == len(rows["acme"]) + {"/v1/keys": 2, "/v1/dead-letters": 1}.get(
        path, 0
    )
    assert len(operators.harness.log.all(ERASURES)) == 1


async def test_the_week_s_report_of_no_model_is_about_what_the_keys_tenant_has(
    operators: Operators,
) -> None:
    log, at = operators.harness.log, operators.harness.clock.now()
    await publish_pairs(log, "m", count=1, at=at)
    await publish_pairs(log, "other", count=2, at=at, prefix="other")
    found = {
        tenant: (await operators.ask("GET", "/v1/reports/weekly", tenant)).json()
        for tenant in ("acme", "globex", "ops")
    }
    pairs = {tenant: sum(one["preferences"]["per_day"].values()) for tenant, one in found.items()}
    assert pairs == {"acme": 1, "globex": 2, "ops": 3}
    assert found["globex"]["versions"] == found["globex"]["rollouts"] == []
    for part in ("versions", "rollouts", "trainings"):
        assert found["acme"][part] == found["ops"][part]
    assert found["acme"]["versions"]


async def test_a_model_without_a_tenant_is_the_operators(harness: ControllerHarness) -> None:
    scope = ModelTenants({"other": "globex"}, operators="ops")
    assert not scope.scope_of("acme").has_model("m")
    assert scope.scope_of("ops").has_model("m")
    assert ModelTenants().scope_of("acme").has_model("m"), "no model has a tenant: as ever"


async def test_a_tenants_key_names_no_dataset(operators: Operators) -> None:
    body = {
        "model": "m",
        "method": "dpo",
        "recipe": "{method: dpo, dataset: file:///rows.jsonl}",
        **WHY,
    }
    refused = await operators.ask("POST", "/v1/training/jobs", "acme", body)
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (403, "recipe.dataset")
    assert (await operators.ask("POST", "/v1/training/jobs", "ops", body)).status_code == 202


async def test_a_refused_training_names_no_other_tenants_models(operators: Operators) -> None:
    body = {"model": "other", "method": "dpo", **WHY}
    refused = await operators.ask("POST", "/v1/training/jobs", "globex", body)
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (409, "base")
    assert "there are models" not in refused.json()["detail"]
    named = await operators.ask("POST", "/v1/training/jobs", "ops", body)
    assert "there are models m" in named.json()["detail"]


async def test_a_key_issued_without_a_tenant_is_the_default_ones(operators: Operators) -> None:
    answer = await operators.ask("POST", "/v1/keys", "acme", {"scopes": ["infer"], **WHY})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (403, "tenant")
