"""The aggregator's rows on disk: kept over a restart, read on from there, restored where they are gone."""

from __future__ import annotations

import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.contracts.topics import FEEDBACK, INTERACTIONS
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from tests.support.aggregator import UP, feedback, interaction
from tests.support.aggregator_process import AggregatorProcess, send, total
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(240)

COUNT = 400


@pytest.fixture
async def log(kafka: str) -> AsyncIterator[KafkaLog]:
    client = KafkaLog(KafkaConnection(kafka), source="/ratchet/test")
    await client.start()
    yield client
    await client.stop()


def restored(worker: AggregatorProcess) -> int:
    """Records of the changelog that the last recovery read."""
    return int(re.findall(r'"restored": ?(\d+)', worker.log_path.read_text())[-1])


async def test_a_restart_reads_the_tail_and_a_lost_or_damaged_directory_the_whole_changelog(
    kafka: str, log: KafkaLog, unique: str, tmp_path: Path
) -> None:
    version = f"v-{unique}"
    worker = AggregatorProcess(kafka, tmp_path).start()
    state = tmp_path / "aggregator" / "ratchet.aggregator" / "worker-0"

    async def counted(number: int) -> None:
        async def equal() -> bool:
            series = (await worker.metrics()).get("ratchet_feedback_total", {})
            return total(series, version=version) == number

        await eventually(equal, f"{number} feedbacks of {version} counted")

    async def tell(first: int, last: int) -> None:
        traces = [f"{unique}-{number}" for number in range(first, last)]
        await send(
            log, INTERACTIONS, *(interaction(t, tenant=unique, version=version) for t in traces)
        )
        await send(
            log, FEEDBACK, *(feedback(f"f-{t}", t, UP, tenant=unique, user=t) for t in traces)
        )

    async def rows() -> float:
        return total((await worker.metrics())["ratchet_aggregator_rows"])

    try:
        await worker.ready(60)
        await tell(0, COUNT)
        await counted(COUNT)
        assert worker.stop() == 0
        await worker.start().ready(60)
        tail = restored(worker)
        await counted(COUNT)
        held = await rows()
        assert held >= COUNT
        assert tail < COUNT / 2, "a stopped worker has all on disk but the last deletions"

        await tell(COUNT, COUNT + 50)
        await counted(COUNT + 50)
        assert worker.stop() == 0
        shutil.rmtree(state)
        await worker.start().ready(90)
        await counted(COUNT + 50)
        assert restored(worker) >= COUNT
        assert await rows() >= held + 50

        assert worker.stop() == 0
        for manifest in state.glob("MANIFEST-*"):
            manifest.write_bytes(b"not a manifest")
        await worker.start().ready(90)
        await counted(COUNT + 50)
        assert restored(worker) >= COUNT
        assert '"state.emptied"' in worker.log_path.read_text()
        sizes = await worker.metrics()
        assert total(sizes["ratchet_disk_size_bytes"]) > total(
            sizes["ratchet_aggregator_state_bytes"]
        )
    finally:
        worker.stop()
