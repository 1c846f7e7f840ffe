from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import httpx
import pytest
from fastapi import APIRouter
from prometheus_client import CollectorRegistry

from services.inference import adapter_cache, agent, base_files
from services.inference.acceptances import Acceptances
from services.inference.adapter_cache import SPARE_FOLDERS, AdapterCache
from services.inference.agent import Agent
from services.inference.api import AdapterAccess, create_app
from services.inference.base_files import BaseFiles
from services.inference.engine import EngineClient, ServedModels
from services.inference.launcher import EngineState
from services.inference.metrics import InferenceMetrics
from services.inference.reconcile import AdapterLimits, AdapterState, Slot
from services.inference.slots import RETRY_FIRST_S, RETRY_MAX_S
from services.inference.verification import AdapterVerifier
from shared.backoff import pause_s
from shared.contracts.events.audit import ActionAudited
from shared.contracts.events.versions import (
    DatasetRef,
    Fingerprint,
    FingerprintText,
    GateResult,
    Lifecycle,
    VersionRecord,
    VersionState,
    record_key,
    state_key,
)
from shared.contracts.topics import AUDIT
from shared.keys import KeyRing
from shared.registry import adapters
from shared.registry.base_models import BaseIdentity, identify_base
from shared.registry.versions import Registry
from shared.tenants import ModelTenants
from shared.testing.clock import ManualClock
from shared.testing.log import MemoryLog
from tests.support.rollouts import add_settings
from tests.unit.inference.fake_engine import FakeEngine

START = datetime(2026, 1, 1, tzinfo=UTC)
TEXTS = ((1, 2, 3), (4, 5))


@dataclass
class RecordingEngine:
    """The launcher as the agent sees it."""

    state: EngineState
    restarts: list[str]

    def restart(self, reason: str) -> None:
        self.restarts.append(reason)


class AgentHarness:
    """An agent before a fake engine, a registry and a store of adapters."""

    def __init__(self, folder: Path, fake: FakeEngine, session: aiohttp.ClientSession) -> None:
        self.folder = folder
        self.fake = fake
        self.session = session
        self.registry = Registry()
        self.clock = ManualClock()
        self.engine = RecordingEngine(EngineState(ready=True, generation=1, reason=""), [])
        self.cache = folder / "cache"
        self.base = folder / "base"
        self.agent = self.build()

    def make_base(self) -> None:
        """The engine's base, with files of its own."""
        self.base.mkdir()
        (self.base / "model.safetensors").write_bytes(b"w")

    def base_sha256(self) -> str:
        """What the base's files are known by."""
        return identify_base(str(self.base), self.folder / "hashes.json").sha256

    def build(self) -> Agent:
        """A new agent, as after a restart of the service."""
        client = EngineClient(self.session, self.fake.url)
        acceptances = Acceptances(self.folder / "acceptances.json")
        return Agent(
            engine=self.engine,
            client=client,
            registry=self.registry,
            models=(),
            limits=AdapterLimits(4, 5.0, 60.0),
            base_files=BaseFiles(str(self.base), self.folder / "hashes.json"),
            cache=AdapterCache(
                self.cache, roots=(str(self.folder / "store"),), max_bytes=adapters.MAX_BYTES
            ),
            verifier=AdapterVerifier(client, self.registry, acceptances, lambda _: 0.02),
            acceptances=acceptances,
            clock=self.clock,
            metrics=InferenceMetrics(CollectorRegistry()),
            wake=asyncio.Event(),
        )

    def register(
        self,
        version: str,
        *,
        recorded: float,
        answers: float | None = None,
        parent: str = "",
        model: str = "m",
        base_sha256: str = "",
    ) -> None:
        made = self.folder / "made" / version
        made.mkdir(parents=True)
        (made / "weights").write_text(version)
        uri = (self.folder / "store" / version).as_uri()
        texts = tuple(
            FingerprintText(tokens=ids, logprobs=(recorded,) * (len(ids) - 1)) for ids in TEXTS
        )
        record = VersionRecord(
            version=version,
            model=model,
            method="dpo",
            base="base",
            base_sha256=base_sha256,
            parent=parent,
            adapter_uri=uri,
            adapter_sha256=adapters.publish(made, uri),
            fingerprint=Fingerprint(dtype="float32", texts=texts),
            dataset=DatasetRef(dataset_id="d", uri="d", sha256="d", rows=1),
            hyperparameters={},
            seed=0,
            code_revision="",
            gate=GateResult(passed=True),
            job_id="j",
            created_at=START,
        )
        self.registry.apply(record_key(version), record.to_json())
        self.fake.answers[version] = recorded if answers is None else answers

    def put(self, version: str, lifecycle: Lifecycle, *, model: str = "m") -> None:
        state = VersionState(version=version, model=model, state=lifecycle, token=0, at=START)
        self.registry.apply(state_key(version), state.to_json())

    async def settle(self) -> None:
        for _ in range(50):
            if not await self.agent.step():
                return
        raise AssertionError("the agent never comes to rest")

    def slot(self, version: str) -> Slot:
        return next(slot for slot in self.agent.versions() if slot.version == version)

    def state(self, version: str) -> AdapterState:
        return self.slot(version).state

    def loads(self, version: str) -> int:
        return self.fake.calls.count(("load_lora_adapter", version))


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[AgentHarness]:
    async with aiohttp.ClientSession() as session:
        with FakeEngine() as fake:
            yield AgentHarness(tmp_path, fake, session)


async def test_version_is_loaded_from_its_checksum_and_ready_after_its_fingerprint(
    harness: AgentHarness,
) -> None:
    harness.register("v1", recorded=-1.0)
    harness.put("v1", Lifecycle.stable)
    assert harness.agent.unready() is not None
    await harness.settle()
    slot = harness.slot("v1")
    assert (slot.state, slot.difference) == (AdapterState.ready, 0.0)
    assert slot.distances == {"base": 8.0}
    record = harness.registry.adapter("v1")
    assert record is not None
    assert harness.fake.loaded == {"v1": str(harness.cache / record.adapter_sha256)}
    assert harness.agent.unready() is None
    assert harness.agent.base == "base"


async def test_settings_without_an_adapter_are_ready_where_the_engine_lists_their_base(
    harness: AgentHarness,
) -> None:
    add_settings(harness.registry, "polite", model="m", base="base")
    add_settings(harness.registry, "lost", model="m", base="another")
    harness.put("polite", Lifecycle.stable)
    harness.put("lost", Lifecycle.canary)
    assert harness.agent.unready() is not None
    await harness.settle()
    assert harness.agent.unready() is None
    assert harness.state("polite") is AdapterState.ready
    lost = harness.slot("lost")
    assert (lost.state, lost.reason) == (
        AdapterState.elsewhere,
        "base: the engine lists base, and not another",
    )
    assert not harness.fake.calls, "nothing is loaded and nothing is measured"


async def test_settings_of_another_base_are_elsewhere(harness: AgentHarness) -> None:
    harness.make_base()
    here = harness.base_sha256()
    add_settings(harness.registry, "polite", model="m", base="base", base_sha256=here)
    add_settings(harness.registry, "moved", model="m", base="base", base_sha256="a" * 64)
    harness.put("polite", Lifecycle.stable)
    harness.put("moved", Lifecycle.canary)
    await harness.settle()
    assert harness.state("polite") is AdapterState.ready
    assert harness.state("moved") is AdapterState.elsewhere


async def test_settings_over_an_adapter_are_ready_with_it(harness: AgentHarness) -> None:
    harness.register("v1", recorded=-1.0)
    harness.register("v2", recorded=-3.0, answers=-5.0)
    add_settings(harness.registry, "v1-polite", model="m", adapter_of="v1")
    add_settings(harness.registry, "v2-polite", model="m", adapter_of="v2")
    harness.put("v1", Lifecycle.rejected)
    harness.put("v1-polite", Lifecycle.stable)
    harness.put("v2-polite", Lifecycle.canary)
    await harness.settle()
    assert list(harness.fake.loaded) == ["v1"]
    assert harness.state("v1-polite") is AdapterState.ready
    assert harness.state("v2-polite") is AdapterState.refused
    assert harness.slot("v2-polite").reason.startswith("adapter of v2: ")
    harness.put("v1-polite", Lifecycle.rejected)
    harness.put("v2-polite", Lifecycle.rejected)
    await harness.settle()
    assert harness.state("v1") is AdapterState.draining


async def test_refused_candidate_leaves_the_replica_ready(harness: AgentHarness) -> None:
    harness.register("v1", recorded=-1.0)
    harness.register("v2", recorded=-3.0, answers=-5.0)
    harness.put("v1", Lifecycle.stable)
    harness.put("v2", Lifecycle.canary)
    await harness.settle()
    assert harness.slot("v2").fault == "mismatch"
    assert list(harness.fake.loaded) == ["v1"]
    assert harness.agent.unready() is None
    assert harness.agent.ready("v1")
    assert not harness.agent.ready("v2")


async def test_an_adapter_of_another_base_is_never_loaded(
    harness: AgentHarness,
) -> None:
    harness.make_base()
    here = harness.base_sha256()
    harness.register("v1", recorded=-1.0, base_sha256=here)
    harness.register("v2", recorded=-3.0, base_sha256="a" * 64)
    harness.register("older", recorded=-5.0)
    for version, lifecycle in (
        ("v1", Lifecycle.stable),
        ("v2", Lifecycle.canary),
        ("older", Lifecycle.shadow),
    ):
        harness.put(version, lifecycle)
    await harness.settle()
    assert sorted(harness.fake.loaded) == ["older", "v1"]
    slot = harness.slot("v2")
    assert slot.state is AdapterState.elsewhere
    assert "trained on aaaaaaaaaaaa" in slot.reason
    assert harness.loads("v2") == 0


async def test_beside_engines_of_the_stable_versions_base_one_of_another_serves_its_own(
    harness: AgentHarness,
) -> None:
    """A rollout over two bases: each engine is ready by what is of its base, and by nothing else."""
    harness.make_base()
    here = harness.base_sha256()
    for number in range(4):
        harness.register(f"old-{number}", recorded=-1.0, base_sha256="a" * 64, model=f"m{number}")
        harness.put(f"old-{number}", Lifecycle.stable, model=f"m{number}")
    await harness.settle()
    assert harness.agent.unready() == ("no version of the engine's base is ready; see /v1/adapters")
    assert not harness.fake.calls, "nothing is measured for versions that cannot be served"
    harness.register("new", recorded=-3.0, base_sha256=here, model="m0")
    harness.put("new", Lifecycle.canary, model="m0")
    await harness.settle()
    assert harness.state("new") is AdapterState.ready, "others leave it a place"
    assert harness.agent.unready() is None
    harness.put("new", Lifecycle.stable, model="m0")
    harness.put("old-0", Lifecycle.retired, model="m0")
    await harness.settle()
    assert harness.agent.unready() is None
    harness.put("new", Lifecycle.rejected, model="m0")
    await harness.settle()
    assert harness.agent.unready() is not None


async def test_the_base_that_batch_workers_group_by_is_known_with_a_version_to_serve(
    harness: AgentHarness,
) -> None:
    """By its files, too: agents that share it must find the same versions elsewhere."""
    harness.make_base()
    here = harness.base_sha256()
    asked = asyncio.ensure_future(harness.agent.base_other_than(""))
    await harness.settle()
    assert not asked.done(), "nothing is to be served yet"
    harness.register("v1", recorded=-1.0, base_sha256=here)
    harness.put("v1", Lifecycle.stable)
    await harness.settle()
    assert await asyncio.wait_for(asked, 30) == f"{here}\0base"
    again = asyncio.ensure_future(harness.agent.base_other_than(f"{here}\0base"))
    await harness.settle()
    assert not again.done()
    again.cancel()


async def test_an_engine_of_the_old_base_stays_ready_as_the_way_back(
    harness: AgentHarness,
) -> None:
    harness.make_base()
    here = harness.base_sha256()
    harness.register("old", recorded=-1.0, base_sha256=here)
    harness.register("new", recorded=-3.0, base_sha256="a" * 64)
    harness.put("old", Lifecycle.stable)
    harness.put("new", Lifecycle.canary)
    await harness.settle()
    assert harness.agent.unready() is None
    harness.put("new", Lifecycle.stable)
    harness.put("old", Lifecycle.retired)
    await harness.settle()
    assert harness.state("old") is AdapterState.ready
    assert harness.agent.unready() is None


async def test_hashing_a_large_base_counts_as_movement(
    harness: AgentHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.make_base()
    harness.register("v1", recorded=-1.0)
    harness.put("v1", Lifecycle.stable)
    idle: list[float] = []

    def slow(*_: object, moved: Callable[[], None]) -> BaseIdentity:
        harness.clock.advance(600.0)
        moved()
        idle.append(harness.agent.idle_s())
        return BaseIdentity("", "a" * 64)

    monkeypatch.setattr(base_files, "identify_base", slow)
    await harness.settle()
    assert idle == [0.0]


async def test_a_base_that_could_not_be_read_is_read_again(
    harness: AgentHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_files, "identify_base", refuse_to_read)
    harness.register("v1", recorded=-1.0)
    harness.put("v1", Lifecycle.stable)
    await harness.settle()
    assert harness.state("v1") is AdapterState.ready
    monkeypatch.undo()
    harness.make_base()
    harness.register("v2", recorded=-3.0, base_sha256="a" * 64)
    harness.put("v2", Lifecycle.canary)
    await harness.settle()
    assert harness.state("v2") is AdapterState.elsewhere


def refuse_to_read(*_: object, **__: object) -> BaseIdentity:
    raise OSError("the volume does not answer")


async def test_refused_stable_version_makes_the_replica_unready(harness: AgentHarness) -> None:
    harness.register("v1", recorded=-1.0, answers=-2.0)
    harness.put("v1", Lifecycle.stable)
    await harness.settle()
    assert harness.agent.unready() == "not ready: v1; see /v1/adapters"


async def test_a_bad_stable_version_takes_no_other_model_down(harness: AgentHarness) -> None:
    harness.register("v1", recorded=-1.0)
    harness.register("bad", recorded=-3.0, answers=-5.0, model="other")
    harness.put("v1", Lifecycle.stable)
    harness.put("bad", Lifecycle.stable, model="other")
    await harness.settle()
    assert harness.state("bad") is AdapterState.refused
    assert harness.agent.unready() is None


async def test_the_first_version_of_a_model_is_verified_before_it_is_stable(
    harness: AgentHarness,
) -> None:
    harness.register("v1", recorded=-1.0)
    await harness.settle()
    assert harness.state("v1") is AdapterState.ready
    assert harness.agent.unready() is None


async def test_after_an_engine_restart_all_is_loaded_and_checked_anew(
    harness: AgentHarness,
) -> None:
    harness.register("v1", recorded=-1.0)
    harness.register("v2", recorded=-3.0)
    harness.put("v1", Lifecycle.stable)
    harness.put("v2", Lifecycle.canary)
    await harness.settle()
    harness.engine.state.ready = False
    assert [slot.state for slot in harness.agent.versions()] == [AdapterState.wanted] * 2
    assert not await harness.agent.step()
    harness.fake.loaded.clear()
    harness.fake.answers["v2"] = -7.0
    harness.engine.state.ready = True
    harness.engine.state.generation = 2
    assert "after a start" in (harness.agent.unready() or "")
    await harness.settle()
    assert harness.loads("v1") == 2
    assert (harness.state("v1"), harness.state("v2")) == (AdapterState.ready, AdapterState.refused)


async def test_adapter_that_the_engine_lost_is_loaded_again(harness: AgentHarness) -> None:
    harness.register("v1", recorded=-1.0)
    harness.put("v1", Lifecycle.stable)
    await harness.settle()
    harness.fake.loaded.clear()
    await harness.settle()
    assert harness.loads("v1") == 2
    assert harness.agent.ready("v1")


async def test_loading_one_adapter_must_not_change_another(harness: AgentHarness) -> None:
    harness.register("v1", recorded=-1.0)
    harness.put("v1", Lifecycle.stable)
    await harness.settle()
    harness.register("v2", recorded=-3.0)
    harness.put("v2", Lifecycle.canary)
    harness.fake.answers["v1"] = -5.0
    await harness.settle()
    assert harness.slot("v1").fault == "mismatch"
    assert harness.engine.restarts == ["v1 changed its answers as v2 was loaded"]


async def test_base_is_asked_once_before_anything_is_loaded(harness: AgentHarness) -> None:
    harness.register("v1", recorded=-1.0)
    harness.put("v1", Lifecycle.stable)
    await harness.settle()
    # From here on the engine mixes the base up with the adapter in its last slot.
    harness.fake.answers["base"] = -3.0
    harness.register("v2", recorded=-3.0)
    harness.put("v2", Lifecycle.canary)
    await harness.settle()
    assert harness.state("v2") is AdapterState.ready
    assert harness.slot("v2").distances["base"] == 6.0
    names = [name for path, name in harness.fake.calls if path == "completions"]
    assert names.index("v1") > max(n for n, name in enumerate(names) if name == "base")


async def test_parent_that_is_not_loaded_counts_by_its_record(harness: AgentHarness) -> None:
    harness.register("v1", recorded=-1.0)
    harness.register("v2", recorded=-1.05, parent="v1")
    harness.put("v2", Lifecycle.canary)
    await harness.settle()
    assert harness.slot("v2").fault == "too_close"
    assert "v1" in harness.slot("v2").reason


async def test_accepted_twins_both_come_back_after_a_restart_of_everything(
    harness: AgentHarness,
) -> None:
    harness.register("v1", recorded=-1.0)
    harness.register("v2", recorded=-1.01)
    harness.put("v1", Lifecycle.stable)
    harness.put("v2", Lifecycle.canary)
    await harness.settle()
    assert harness.state("v2") is AdapterState.refused
    harness.agent.accept(harness.agent.acceptance("v2", "ann", "a twin on purpose"))
    await harness.settle()
    assert harness.state("v2") is AdapterState.ready
    harness.put("v1", Lifecycle.retired)
    harness.put("v2", Lifecycle.stable)
    harness.fake.loaded.clear()
    harness.engine.state.generation = 2
    harness.agent = harness.build()
    await harness.settle()
    assert [(slot.version, slot.state) for slot in harness.agent.versions()] == [
        ("v2", AdapterState.ready),
        ("v1", AdapterState.ready),
    ]


async def test_a_second_acceptance_leaves_a_version_that_serves_alone(
    harness: AgentHarness,
) -> None:
    harness.register("v1", recorded=-1.0)
    harness.register("v2", recorded=-1.01)
    harness.put("v1", Lifecycle.stable)
    harness.put("v2", Lifecycle.canary)
    await harness.settle()
    first, second = (harness.agent.acceptance("v2", who, "a twin") for who in ("ann", "ben"))
    harness.agent.accept(first)
    await harness.settle()
    assert harness.agent.ready("v2")
    harness.agent.accept(second)
    assert harness.agent.ready("v2")


async def test_drain_waits_for_requests_under_way(harness: AgentHarness) -> None:
    harness.register("v1", recorded=-1.0)
    harness.put("v1", Lifecycle.canary)
    await harness.settle()
    harness.put("v1", Lifecycle.rejected)
    await harness.settle()
    assert harness.state("v1") is AdapterState.draining
    harness.fake.running = 1
    harness.clock.advance(30.0)
    await harness.settle()
    assert "v1" in harness.fake.loaded
    harness.fake.running = 0
    await harness.settle()
    assert harness.fake.loaded == {}
    assert harness.agent.versions() == ()


async def test_store_that_is_away_is_tried_again_with_back_off(harness: AgentHarness) -> None:
    harness.register("v1", recorded=-1.0)
    (harness.folder / "store").rename(harness.folder / "away")
    harness.put("v1", Lifecycle.stable)
    await harness.settle()
    slot = harness.slot("v1")
    assert (slot.state, slot.fault) == (AdapterState.wanted, "unavailable")
    assert "next try in 2 s" in slot.reason
    (harness.folder / "away").rename(harness.folder / "store")
    harness.clock.advance(2.0)
    await harness.settle()
    assert harness.agent.ready("v1")


async def test_storage_that_fails_in_its_own_way_is_tried_again_too(
    harness: AgentHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    class BotoError(Exception):
        pass

    def away(uri: str) -> None:
        raise BotoError("no endpoint")

    harness.register("v1", recorded=-1.0)
    harness.put("v1", Lifecycle.stable)
    with monkeypatch.context() as patched:
        patched.setattr(adapters.fsspec, "url_to_fs", away)
        await harness.settle()
    slot = harness.slot("v1")
    assert (slot.state, slot.fault) == (AdapterState.wanted, "unavailable")
    assert "no endpoint; next try in 2 s" in slot.reason
    harness.clock.advance(2.0)
    await harness.settle()
    assert harness.agent.ready("v1")


async def test_cache_that_cannot_be_pruned_keeps_nothing_from_serving(
    harness: AgentHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise FileNotFoundError("a folder went meanwhile")

    monkeypatch.setattr(adapter_cache, "_prune", gone)
    harness.register("v1", recorded=-1.0)
    harness.put("v1", Lifecycle.stable)
    await harness.settle()
    assert harness.agent.ready("v1")


async def test_what_nobody_foresaw_does_not_end_the_agent(
    harness: AgentHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [RuntimeError("a bug"), KeyError("another"), RuntimeError("the first again")]
    models = EngineClient.models

    async def fails_at_first(client: EngineClient) -> ServedModels:
        if failures:
            raise failures.pop()
        return await models(client)

    monkeypatch.setattr(EngineClient, "models", fails_at_first)
    monkeypatch.setattr(agent, "RETRY_FIRST_S", 0.01)
    harness.register("v1", recorded=-1.0)
    harness.put("v1", Lifecycle.stable)
    stop = asyncio.Event()
    running = asyncio.create_task(harness.agent.run(stop))
    assert await harness.agent.wait_ready("v1", 10.0)
    assert failures == []
    stop.set()
    await running


def test_each_further_failure_waits_twice_as_long_up_to_a_minute() -> None:
    pauses = [pause_s(failures, RETRY_FIRST_S, RETRY_MAX_S) for failures in range(7)]
    assert pauses == [2, 4, 8, 16, 32, 60, 60]
    assert pause_s(10_000, RETRY_FIRST_S, RETRY_MAX_S) == 60


async def test_engine_that_will_not_load_is_asked_again_later(harness: AgentHarness) -> None:
    harness.register("v1", recorded=-1.0)
    harness.put("v1", Lifecycle.stable)
    harness.fake.refuse_loads = "rank 64 is larger than 16"
    await harness.settle()
    assert harness.slot("v1").fault == "engine"
    assert "rank 64" in harness.slot("v1").reason
    harness.fake.refuse_loads = ""
    harness.clock.advance(2.0)
    await harness.settle()
    assert harness.agent.ready("v1")


async def test_waiting_for_a_version_ends_when_it_is_ready_and_at_the_deadline(
    harness: AgentHarness,
) -> None:
    harness.register("v1", recorded=-1.0)
    harness.put("v1", Lifecycle.stable)
    assert not await harness.agent.wait_ready("v1", 0.01)
    waiting = asyncio.create_task(harness.agent.wait_ready("v1", 10.0))
    await harness.settle()
    assert await waiting


async def test_cache_keeps_what_is_wanted_and_a_few_more(harness: AgentHarness) -> None:
    for number in range(SPARE_FOLDERS + 3):
        harness.register(f"v{number}", recorded=-1.0 - number)
        harness.put(f"v{number}", Lifecycle.canary)
        await harness.settle()
        harness.put(f"v{number}", Lifecycle.rejected)
        await harness.settle()
        harness.clock.advance(10.0)
        await harness.settle()
    assert len(list(harness.cache.iterdir())) == SPARE_FOLDERS + 1


async def test_http_tells_all_and_takes_acceptances(harness: AgentHarness) -> None:
    harness.register("v1", recorded=-1.0)
    harness.register("v2", recorded=-1.0)
    harness.put("v1", Lifecycle.stable)
    harness.put("v2", Lifecycle.canary)
    await harness.settle()
    log = MemoryLog()
    access = AdapterAccess(harness.registry, ModelTenants())
    app = create_app(
        harness.agent, harness.engine, KeyRing(required=False), APIRouter(), log, access
    )
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://agent") as http:
        body = (await http.get("/v1/adapters")).json()
        assert body["engine"] == {
            "ready": True,
            "generation": 1,
            "base_model": "base",
            "reason": "",
        }
        assert [(one["version"], one["state"]) for one in body["adapters"]] == [
            ("v1", "ready"),
            ("v2", "refused"),
        ]
        assert body["adapters"][1]["distances"] == {"base": 8.0, "v1": 0.0}
        word = {"on_behalf_of": "ann", "reason": "on purpose"}
        assert (await http.post("/v1/adapters/v9/accept", json=word)).status_code == 404
        assert (await http.post("/v1/adapters/v1/accept", json=word)).status_code == 409
        wrong = await http.post("/v1/adapters/v2/accept", json={"on_behalf_of": "ann"})
        assert wrong.status_code == 422
        log.available = False
        assert (await http.post("/v1/adapters/v2/accept", json=word)).status_code == 503
        await harness.settle()
        assert not harness.agent.ready("v2")
        log.available = True
        accepted = await http.post("/v1/adapters/v2/accept", json=word)
        assert accepted.json()["neighbours"] == ["v1"]
    await harness.settle()
    assert harness.agent.ready("v2")
    (audited,) = log.all(AUDIT)
    action = ActionAudited.model_validate_json(audited.value or b"")
    assert (action.action, action.subject, action.actor, action.on_behalf_of, action.reason) == (
        "adapter.accepted",
        "v2",
        "local",
        "ann",
        "on purpose",
    )


async def test_accepting_needs_the_operate_scope_where_keys_are_required(
    harness: AgentHarness,
) -> None:
    app = create_app(
        harness.agent,
        harness.engine,
        KeyRing(required=True),
        APIRouter(),
        MemoryLog(),
        AdapterAccess(harness.registry, ModelTenants()),
    )
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://agent") as http:
        answer = await http.post(
            "/v1/adapters/v1/accept", json={"on_behalf_of": "a", "reason": "r"}
        )
        assert answer.status_code == 401
        assert (await http.get("/v1/adapters")).status_code == 200
