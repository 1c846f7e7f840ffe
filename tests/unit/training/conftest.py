"""The harness that several of training's tests work in."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.contracts.events.versions import Lifecycle, record_key, state_key
from shared.contracts.topics import PREFERENCES, TRAINING_JOBS, TRAINING_RUNS, VERSIONS
from shared.registry.adapters import publish
from shared.testing.log import MemoryLog
from tests.unit.training.builders import example_event, pair_event, record, state
from tests.unit.training.harness import V10, TrainingHarness


@pytest.fixture
async def harness(tmp_path: Path) -> TrainingHarness:
    log = MemoryLog(partitions={VERSIONS: 1, TRAINING_RUNS: 1, TRAINING_JOBS: 1})
    parent = tmp_path / "parent"
    parent.mkdir()
    (parent / "adapter_model.safetensors").write_bytes(b"weights of the parent")
    uri = f"file://{tmp_path}/adapters/{V10}"
    first = record(V10, adapter_uri=uri, adapter_sha256=publish(parent, uri))
    await log.publish(VERSIONS, key=record_key(V10), event=first, event_id="1")
    await log.publish(
        VERSIONS, key=state_key(V10), event=state(V10, Lifecycle.stable), event_id="2"
    )
    events = [
        *(pair_event(n) for n in range(60)),
        *(pair_event(100 + n, panel="judge") for n in range(40)),
        *(example_event(n) for n in range(60)),
    ]
    for event in events:
        await log.publish(PREFERENCES, key=event.pair_id, event=event, event_id=event.pair_id)
    return TrainingHarness(tmp_path, log)
