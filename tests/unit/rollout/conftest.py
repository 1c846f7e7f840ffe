"""Controllers in memory and clients of their API, shared by the tests of the rollout service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from services.rollout.access import Access
from services.rollout.api import RolloutApi
from services.rollout.audit import AuditLog
from services.rollout.console.operator_actions import OperatorActions
from services.rollout.console.operator_views import OperatorViews
from services.rollout.live_figures import LiveFigures
from services.rollout.registrations import Registrations
from services.rollout.routes import create_app, guarded
from services.rollout.strategy_files import StrategyFolder
from shared.clock import SystemClock
from shared.http.operations import OperationsApp
from shared.keys import KeyRing
from shared.observability.health import Health
from shared.pseudonyms import AS_THEY_COME, UserPseudonyms
from shared.tenants import ModelTenants
from tests.support.openapi_answers import hooks
from tests.unit.rollout.fakes import ControllerBench, ControllerHarness, register, until_known

STRATEGIES = Path("services/rollout/strategies")
NO_TENANTS = ModelTenants()


def application(
    harness: ControllerHarness,
    keys: KeyRing,
    pseudonyms: UserPseudonyms = AS_THEY_COME,
    tenants: ModelTenants = NO_TENANTS,
) -> tuple[FastAPI, RolloutApi]:
    api = RolloutApi(
        harness.controller,
        harness.decision_log,
        harness.versions.registry,
        keys,
        StrategyFolder(STRATEGIES),
        AuditLog(harness.log),
        Registrations(harness.log, harness.versions.registry, SystemClock(), harness.agents.bases),
        harness.evaluations,
        LiveFigures(harness.daily_scores, harness.prometheus, harness.clock),
    )
    views = OperatorViews(
        harness.log, harness.versions.registry, harness.decision_log, harness.clock
    )
    registry = harness.versions.registry
    actions = OperatorActions(harness.log, registry, harness.clock, pseudonym=pseudonyms.of)
    access = Access(tenants, harness.log, registry, harness.decision_log)
    return create_app(api, views, actions, access), api


def client(
    harness: ControllerHarness,
    keys: KeyRing,
    pseudonyms: UserPseudonyms = AS_THEY_COME,
    tenants: ModelTenants = NO_TENANTS,
) -> httpx.AsyncClient:
    app, api = application(harness, keys, pseudonyms, tenants)
    served = OperationsApp(Health(), CollectorRegistry(), guarded(app, api))
    transport = httpx.ASGITransport(app=served)  # type: ignore[arg-type]
    return httpx.AsyncClient(
        transport=transport, base_url="http://rollout", event_hooks=hooks("rollout")
    )


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[ControllerBench]:
    made = ControllerBench(tmp_path)
    yield made
    await made.close()


@pytest.fixture
async def harness(bench: ControllerBench) -> ControllerHarness:
    """A leader of a model with v1 stable and v2 registered."""
    await register(bench.log, "v1")
    made = await bench.harness()
    await made.round()
    await register(bench.log, "v2")
    await until_known(made, "v2")
    return made


@pytest.fixture
async def http(harness: ControllerHarness) -> AsyncIterator[httpx.AsyncClient]:
    async with client(harness, KeyRing(required=False)) as made:
        yield made
