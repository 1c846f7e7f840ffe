"""The inference service with real vLLM, Kafka and four random adapters of a random tiny model."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from deploy.local.ports import free_ports
from deploy.local.stack import Stack
from services.cli import version_compare, version_export
from shared.contracts.events.base import Message
from shared.contracts.events.generations import GenerationFinished, GenerationRequested
from shared.contracts.events.versions import (
    DatasetRef,
    Fingerprint,
    GateResult,
    Lifecycle,
    VersionRecord,
    VersionState,
    record_key,
    state_key,
)
from shared.contracts.topics import GENERATION_REQUESTS, GENERATION_RESULTS, VERSIONS
from shared.kafka.log import read_to_end
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from shared.registry import adapters
from tests.support.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
ENGINE_START_S = 240.0
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, adapters and `fingerprints.json`."""
    folder = tmp_path_factory.mktemp("tiny")
    subprocess.run(
        [ROOT / ".venv-ml/bin/python", ROOT / "tests/integration/tiny_models.py", folder],
        check=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        timeout=300,
        capture_output=True,
    )
    return folder


@pytest.fixture(scope="module")
def stack(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    env = {
        "RATCHET_ADAPTER_ROOTS": str(tiny / "store"),
        "RATCHET_INFERENCE_BASE_MODEL": str(tiny / "base"),
        "RATCHET_INFERENCE_DRAIN_GRACE_S": "0.5",
        "RATCHET_INFERENCE_BATCH_WAIT_S": "2",
    }
    with Stack(
        tmp_path_factory.mktemp("stack"), services=["inference"], env=env, ports="free"
    ) as running:
        yield running


class InferenceHarness:
    """One test's versions in the shared registry, and what the service says of them."""

    def __init__(
        self, stack: Stack, log: KafkaLog, http: aiohttp.ClientSession, tiny: Path, name: str
    ) -> None:
        self.stack = stack
        self.log = log
        self.http = http
        self.tiny = tiny
        self.name = name
        self.made: list[str] = []
        self.records: dict[str, VersionRecord] = {}
        self.store = tiny / "store" / name
        self.prints: dict[str, Any] = json.loads((tiny / "fingerprints.json").read_text())

    async def register(
        self, adapter: str, *, fingerprint: str = "", released: bool = True, uri: str = ""
    ) -> str:
        """A version with one of the tiny adapters and the fingerprint of one of them.

        `uri` is what its record says of where the files are.
        """
        version = f"{self.name}-v1.{len(self.made)}"
        self.made.append(version)
        place = (self.store / version).as_uri()
        folder = self.tiny / "made" / version
        shutil.copytree(self.tiny / adapter, folder)
        (folder / "NOTE").write_text(version)
        record = VersionRecord(
            version=version,
            model=self.name,
            method="sft",
            base=str(self.tiny / "base"),
            adapter_uri=uri or place,
            adapter_sha256=adapters.publish(folder, place),
            fingerprint=Fingerprint(dtype="float32", texts=self.prints[fingerprint or adapter]),
            dataset=DatasetRef(dataset_id="d", uri="d", sha256="d", rows=1),
            hyperparameters={},
            seed=0,
            code_revision="test",
            gate=GateResult(passed=released),
            job_id="job",
            created_at=datetime.now(UTC),
        )
        self.records[version] = record
        await self.log.publish(
            VERSIONS, key=record_key(version), event=record, event_id=f"{version}/record"
        )
        return version

    async def stable_version(self, trained: str) -> str:
        """A stable version, ready; those registered after it are loaded only once they roll out."""
        version = await self.register(trained)
        await self.put(version, Lifecycle.stable)
        await self.reaches(version, "ready")
        return version

    async def put(self, version: str, state: Lifecycle) -> None:
        now = datetime.now(UTC)
        event = VersionState(version=version, model=self.name, state=state, token=0, at=now)
        await self.log.publish(
            VERSIONS, key=state_key(version), event=event, event_id=f"{version}/{now}"
        )

    async def look(self) -> dict[str, Any]:
        async with self.http.get(self.stack.url("inference") + "/v1/adapters") as response:
            return await response.json()

    async def adapter(self, version: str) -> dict[str, Any] | None:
        """What the agent says of a version, None while the service is away or knows none."""
        try:
            body = await self.look()
        except aiohttp.ClientError:
            return None
        return next((one for one in body["adapters"] if one["version"] == version), None)

    async def reaches(self, version: str, state: str, timeout_s: float = 30.0) -> dict[str, Any]:
        async def there() -> dict[str, Any] | None:
            seen = await self.adapter(version)
            return seen if seen and seen["state"] == state else None

        seen = await eventually(there, f"{version} is {state}", timeout_s)
        assert seen is not None
        return seen

    async def chat(self, version: str, max_tokens: int = 4) -> tuple[int, dict[str, Any]]:
        body = {
            "model": version,
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": max_tokens,
            "temperature": 0,
        }
        url = self.stack.url("vllm") + "/v1/chat/completions"
        async with self.http.post(url, json=body) as response:
            return response.status, await response.json()

    async def talk(self, version: str) -> None:
        """Traffic that keeps the engine busy until cancelled."""
        while True:
            await self.chat(version, max_tokens=64)

    async def ready(self) -> int:
        try:
            async with self.http.get(self.stack.url("inference") + "/readyz") as response:
                return response.status
        except aiohttp.ClientError:
            return 0


@pytest.fixture
async def harness(stack: Stack, tiny: Path, unique: str) -> AsyncIterator[InferenceHarness]:
    log = KafkaLog(KafkaConnection(stack.address("kafka")), source="/ratchet/test")
    await log.start()
    async with aiohttp.ClientSession() as http:
        made = InferenceHarness(stack, log, http, tiny, unique)
        yield made
        for version in made.made:
            await made.put(version, Lifecycle.rejected)

        async def gone() -> bool:
            return not any([await made.adapter(version) for version in made.made])

        await eventually(gone, "the test's adapters are unloaded", ENGINE_START_S)
    await log.stop()


def fetched(folder: Path) -> list[Path]:
    """Adapter weights below a folder."""
    return list(folder.rglob("*.safetensors"))


def engine_processes(agent: int) -> dict[int, str]:
    """Every process below the service, by /proc: its guard and vLLM's three."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if fields[0] != "Z":
                parents[int(folder.name)] = int(fields[1])
                names[int(folder.name)] = command
    below = {agent}
    while grown := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= grown
    return {pid: names[pid] for pid in below - {agent}}


async def test_wanted_adapter_serves_once_its_fingerprint_matches(
    harness: InferenceHarness,
) -> None:
    stable = await harness.register("tiny-v1.0")
    unreleased = await harness.register("tiny-v1.1", released=False)
    await harness.put(stable, Lifecycle.stable)
    await harness.put(unreleased, Lifecycle.canary)
    seen = await harness.reaches(stable, "ready")
    assert seen["difference"] < 1e-4
    assert all(distance > 0.5 for distance in seen["distances"].values())
    status, answer = await harness.chat(stable)
    assert (status, answer["model"]) == (200, stable)
    assert await harness.ready() == 200
    assert await harness.adapter(unreleased) is None


async def test_swapped_weights_never_become_ready(harness: InferenceHarness) -> None:
    stable = await harness.register("tiny-v1.0")
    await harness.put(stable, Lifecycle.stable)
    await harness.reaches(stable, "ready")
    other_weights = await harness.register("tiny-v1.1", fingerprint="tiny-v1.2")
    the_stable_ones = await harness.register("tiny-v1.0", fingerprint="tiny-v1.2")
    await harness.put(other_weights, Lifecycle.canary)
    await harness.put(the_stable_ones, Lifecycle.canary)
    refused = await harness.reaches(other_weights, "refused")
    assert refused["fault"] == "mismatch"
    assert refused["difference"] > 0.5
    same = await harness.reaches(the_stable_ones, "refused")
    assert f"it answers like {stable}" in same["reason"]

    async def unloaded() -> bool:
        return (await harness.chat(other_weights))[0] == 404

    await eventually(unloaded, "the refused adapter is unloaded")
    assert await harness.ready() == 200


async def test_changed_bytes_in_the_store_are_refused_and_mended_ones_load(
    harness: InferenceHarness,
) -> None:
    await harness.stable_version("tiny-v1.0")
    version = await harness.register("tiny-v1.1")
    weights = harness.store / version / "adapter_model.safetensors"
    right = weights.read_bytes()
    weights.write_bytes((harness.tiny / "tiny-v1.2" / weights.name).read_bytes())
    await harness.put(version, Lifecycle.canary)
    refused = await harness.reaches(version, "refused")
    assert refused["fault"] == "checksum"
    assert "the registered one is" in refused["reason"]
    weights.write_bytes(right)
    await harness.reaches(version, "ready")


@pytest.mark.parametrize("sha256", ["../../../precious", "", "{root}/precious"])
async def test_hostile_records_delete_nothing_and_harm_no_other_version(
    harness: InferenceHarness, sha256: str
) -> None:
    """A checksum that is a path once removed any folder that the service may write."""
    data = harness.stack.run_dir / "data"
    precious = data / "precious" / "file"
    precious.parent.mkdir(exist_ok=True)
    precious.write_text("kept")
    stable, hostile = await harness.register("tiny-v1.0"), f"{harness.name}-hostile"
    fields = harness.records[stable].model_dump(mode="json") | {
        "version": hostile,
        "adapter_sha256": sha256.format(root=data),
    }
    await harness.log.append(
        VERSIONS,
        key=record_key(hostile),
        value=json.dumps(fields).encode(),
    )
    await harness.put(hostile, Lifecycle.canary)
    outside = await harness.register("tiny-v1.1", uri="file:///etc")
    await harness.put(outside, Lifecycle.shadow)
    await harness.put(stable, Lifecycle.stable)
    await harness.reaches(stable, "ready")
    refused = await harness.reaches(outside, "refused")
    assert "none of the allowed roots" in refused["reason"]
    assert await harness.adapter(hostile) is None, "its record cannot be read"
    assert precious.read_text() == "kept"
    assert await harness.ready() == 200


async def test_an_exported_folder_is_loaded_as_it_is(
    harness: InferenceHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of `ratchet versions export`, by vLLM under another name, which answers as the version does."""
    version = await harness.stable_version("tiny-v1.0")
    record = harness.records[version].model_dump(mode="json")
    monkeypatch.setattr(version_compare, "record_of", lambda _: record)
    monkeypatch.setattr(version_export, "erased_rows_of", lambda _: 0)
    folder, name = tmp_path / "exported", f"{harness.name}-elsewhere"
    await asyncio.to_thread(version_export.export_version, version, folder)

    async def engine(do: str, **body: str) -> None:
        url = f"{harness.stack.url('vllm')}/v1/{do}_lora_adapter"
        async with harness.http.post(url, json={"lora_name": name, **body}) as response:
            assert response.status == 200, await response.text()

    async def said(model: str) -> str:
        status, answer = await harness.chat(model, max_tokens=16)
        assert status == 200, answer
        return answer["choices"][0]["message"]["content"]

    await engine("load", lora_path=str(folder))
    try:
        assert await said(name) == await said(version)
        assert await said(version) != await said(str(harness.tiny / "base"))
    finally:
        await engine("unload")  # it is a twin of the version, and of those of other tests


async def test_twin_of_a_loaded_adapter_waits_for_people(harness: InferenceHarness) -> None:
    stable = await harness.register("tiny-v1.0")
    twin = await harness.register("tiny-v1.0")
    await harness.put(stable, Lifecycle.stable)
    await harness.reaches(stable, "ready")
    await harness.put(twin, Lifecycle.canary)
    refused = await harness.reaches(twin, "refused")
    assert refused["fault"] == "too_close"
    assert stable in refused["reason"]
    url = f"{harness.stack.url('inference')}/v1/adapters/{twin}/accept"
    async with harness.http.post(
        url, json={"on_behalf_of": "test", "reason": "a twin"}
    ) as response:
        assert response.status == 200
        assert (await response.json())["neighbours"] == [stable]
    await harness.reaches(twin, "ready")
    async with harness.http.post(url, json={"on_behalf_of": "test", "reason": "again"}) as response:
        assert response.status == 409


async def test_adapter_in_the_last_slot_is_not_mistaken_for_the_base_under_traffic(
    harness: InferenceHarness,
) -> None:
    versions = [await harness.stable_version("tiny-v1.0")]
    versions += [await harness.register(f"tiny-v1.{number}") for number in range(1, 4)]
    for version in versions[1:3]:
        await harness.put(version, Lifecycle.canary)
        await harness.reaches(version, "ready")
    talking = [asyncio.create_task(harness.talk(versions[0])) for _ in range(2)]
    await harness.put(versions[3], Lifecycle.canary)
    seen = await harness.reaches(versions[3], "ready")
    for task in talking:
        task.cancel()
    await asyncio.gather(*talking, return_exceptions=True)
    assert min(seen["distances"].values()) > 0.5
    assert len(seen["distances"]) == 4


async def test_retired_versions_leave_but_for_the_newest(harness: InferenceHarness) -> None:
    first = await harness.register("tiny-v1.0")
    second = await harness.register("tiny-v1.1")
    await harness.put(first, Lifecycle.retired)
    await harness.reaches(first, "ready")
    await harness.put(second, Lifecycle.retired)
    await harness.reaches(second, "ready")

    async def left() -> bool:
        return await harness.adapter(first) is None

    await eventually(left, "the older retired version left")
    assert (await harness.chat(first))[0] == 404


async def test_killed_engine_comes_back_with_its_adapters_checked(
    harness: InferenceHarness,
) -> None:
    stable = await harness.register("tiny-v1.0")
    canary = await harness.register("tiny-v1.1")
    await harness.put(stable, Lifecycle.stable)
    await harness.put(canary, Lifecycle.canary)
    await harness.reaches(stable, "ready")
    await harness.reaches(canary, "ready")
    before = (await harness.look())["engine"]["generation"]
    processes = engine_processes(harness.stack.pid("inference"))
    core = next(pid for pid, command in processes.items() if "EngineCore" in command)
    os.kill(core, signal.SIGKILL)

    async def away() -> bool:
        return not (await harness.look())["engine"]["ready"]

    await eventually(away, "the engine's loss is noticed")
    assert await harness.ready() == 503

    async def back() -> bool:
        engine = (await harness.look())["engine"]
        return engine["ready"] and engine["generation"] > before

    await eventually(back, "the engine is back", ENGINE_START_S)
    for version in (stable, canary):
        seen = await harness.reaches(version, "ready")
        assert seen["difference"] < 1e-4
        assert (await harness.chat(version))[0] == 200
    assert not set(processes) & set(engine_processes(harness.stack.pid("inference")))


async def test_killed_service_leaves_no_engine_behind(harness: InferenceHarness) -> None:
    stable = await harness.register("tiny-v1.0")
    await harness.put(stable, Lifecycle.stable)
    await harness.reaches(stable, "ready")
    before = (await harness.look())["engine"]["generation"]
    processes = engine_processes(harness.stack.pid("inference"))
    assert any("EngineCore" in command for command in processes.values())
    harness.stack.kill("inference")

    def alive() -> set[int]:
        return {
            pid
            for pid, command in processes.items()
            if Path(f"/proc/{pid}/cmdline").exists()
            and Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode() == command
        }

    await eventually(lambda: not alive(), "vLLM's processes are gone")
    await harness.reaches(stable, "ready", ENGINE_START_S)
    assert (await harness.look())["engine"]["generation"] > before


async def test_agent_of_an_external_engine_checks_what_it_finds_loaded(
    harness: InferenceHarness, tmp_path: Path
) -> None:
    stable = await harness.register("tiny-v1.0")
    await harness.put(stable, Lifecycle.stable)
    await harness.reaches(stable, "ready")
    port = free_ports(["agent"])["agent"]
    env = os.environ | {
        "RATCHET_KAFKA_BOOTSTRAP": harness.stack.address("kafka"),
        "RATCHET_DATA_DIR": str(tmp_path),
        "RATCHET_INFERENCE_PORT": str(port),
        "RATCHET_INFERENCE_ENGINE_URL": harness.stack.url("vllm"),
        "RATCHET_INFERENCE_ENGINE_EXTERNAL": "true",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.inference"),
        cwd=ROOT,
        env=env,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:

        async def checked() -> dict[str, Any] | None:
            try:
                async with harness.http.get(f"http://127.0.0.1:{port}/v1/adapters") as response:
                    body = await response.json()
            except aiohttp.ClientError:
                return None
            found = [one for one in body["adapters"] if one["version"] == stable]
            return found[0] if found and found[0]["state"] == "ready" else None

        seen = await eventually(checked, "the second agent has checked it")
        assert seen is not None
        assert seen["difference"] < 1e-4
        assert not fetched(tmp_path)
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 60) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    assert (await harness.chat(stable))[0] == 200


async def test_batch_gives_each_request_one_result(harness: InferenceHarness, unique: str) -> None:
    stable = await harness.register("tiny-v1.0")
    await harness.put(stable, Lifecycle.stable)
    await harness.reaches(stable, "ready")
    now = datetime.now(UTC)

    def request(name: str, version: str, expires: timedelta) -> GenerationRequested:
        return GenerationRequested(
            request_id=f"{unique}-{name}",
            batch_id=unique,
            purpose="evaluation",
            version=version,
            messages=(Message(role="user", content="hello"),),
            max_tokens=4,
            seed=1,
            expires_at=now + expires,
        )

    minute = timedelta(minutes=1)
    requests = [request(f"ok{number}", stable, minute) for number in range(6)]
    requests += [requests[0], request("late", stable, -minute)]
    requests += [request("nowhere", f"{unique}-v9.9", minute)]
    for event in requests:
        await harness.log.publish(
            GENERATION_REQUESTS, key=event.request_id, event=event, event_id=event.request_id
        )

    async def results() -> list[GenerationFinished]:
        records = await read_to_end(harness.log, GENERATION_RESULTS, timeout_s=60)
        read = [GenerationFinished.model_validate_json(record.value or b"") for record in records]
        return [result for result in read if result.batch_id == unique]

    async def complete() -> bool:
        return len({result.request_id for result in await results()}) == 8

    await eventually(complete, "every request has a result")
    outcomes = {one.request_id.removeprefix(f"{unique}-"): one for one in await results()}
    assert len(await results()) == 8
    assert {outcomes[f"ok{number}"].outcome for number in range(6)} == {"ok"}
    assert len({outcomes[f"ok{number}"].completion for number in range(6)}) == 1
    assert outcomes["late"].outcome == "expired"
    assert outcomes["nowhere"].outcome == "failed"
    assert "not ready" in outcomes["nowhere"].error
