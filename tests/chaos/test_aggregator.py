"""Feedback counts exactly once, whatever is killed, whenever (invariant 6), on a real broker.

The truth is a recount of the raw topics that shares no code with the aggregator.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

from shared.contracts.events.base import Event
from shared.contracts.events.feedback import FeedbackType
from shared.contracts.topics import FEEDBACK, INTERACTIONS, PREFERENCES
from shared.kafka.log import read_to_end
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from tests.support.aggregator import DOWN, UP, FeedbackRecount, feedback, interaction, withdrawn
from tests.support.aggregator_process import (
    EXIT_FAILED,
    SESSION_S,
    AggregatorProcess,
    Series,
    send,
    total,
)
from tests.support.aggregator_proxy import CoordinatorProxy
from tests.support.servers import Servers
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(420)

STALL_S = 30.0
SETTLE_S = 120
"""A killed worker's partitions wait for its session; a busy machine takes its time after that."""


@pytest.fixture
async def log(kafka: str) -> AsyncIterator[KafkaLog]:
    client = KafkaLog(KafkaConnection(kafka), source="/ratchet/test")
    await client.start()
    yield client
    await client.stop()


def traffic(unique: str, count: int, seed: int) -> list[tuple[str, Event]]:
    """Interactions and feedback in a plausible order: late, early, repeated, edited, withdrawn."""
    rng = random.Random(seed)
    events: list[tuple[float, str, Event]] = []
    for number in range(count):
        trace = f"{unique}-{number}"
        version = f"{unique}-v{rng.randrange(2)}"
        user = f"{unique}-u{rng.randrange(count // 4)}"
        shown = interaction(
            trace, tenant=unique, version=version, user=user, prompt=f"Question {number // 3}?",
            completion=f"Answer {number} of {version}.", rollout=unique,
        )  # fmt: skip
        when = float(number)
        events.append((when, INTERACTIONS, shown))
        if rng.random() < 0.5:
            kind = rng.choice((UP, UP, DOWN, FeedbackType.rating))
            value = rng.randint(1, 5) if kind is FeedbackType.rating else None
            told = feedback(f"f{number}", trace, kind, value, tenant=unique, user=user)
            # Before, right after, or long after its interaction.
            later = when + rng.choice((-5.0, 1.0, 40.0, 200.0))
            events.append((later, FEEDBACK, told))
            if rng.random() < 0.2:
                events.append((later + rng.random() * 20, FEEDBACK, told))
            if rng.random() < 0.1:
                gone = withdrawn(f"f{number}", trace, kind, tenant=unique)
                events.append((later + 30, FEEDBACK, gone))
    events.sort(key=lambda item: item[0])
    return [(topic, event) for _, topic, event in events]


async def play(
    log: KafkaLog, events: list[tuple[str, Event]], pause_s: float, *, timeout_s: float = 30.0
) -> None:
    """Send events in slices, so that the worker is always in the middle of something."""
    for start in range(0, len(events), 50):
        part = events[start : start + 50]
        for topic in (INTERACTIONS, FEEDBACK):
            ours = (event for place, event in part if place == topic)
            await send(log, topic, *ours, timeout_s=timeout_s)
        await asyncio.sleep(pause_s)


async def recount(log: KafkaLog, tenant: str) -> FeedbackRecount:
    def ours(value: bytes) -> bool:
        # Other tests of the session leave records on these topics that nobody can read.
        try:
            body = orjson.loads(value)
        except orjson.JSONDecodeError:
            return False
        return isinstance(body, dict) and body.get("tenant") == tenant

    async def bodies(topic: str) -> list[bytes]:
        records = await read_to_end(log, topic, timeout_s=60)
        return [item.value for item in records if item.value is not None and ours(item.value)]

    return FeedbackRecount.of(await bodies(INTERACTIONS), await bodies(FEEDBACK))


async def agrees(log: KafkaLog, workers: list[AggregatorProcess], tenant: str) -> FeedbackRecount:
    """Wait until the exported counters are the recount's, then see that they stay there."""
    truth = await recount(log, tenant)

    async def counted() -> dict[str, float]:
        found: dict[str, Series] = {}
        for worker in workers:
            if worker.process.poll() == EXIT_FAILED:
                worker.start()
            if worker.alive():
                for name, series in (await worker.metrics()).items():
                    found.setdefault(name, {}).update(series)
        result: dict[str, float] = {}
        for version in (f"{tenant}-v0", f"{tenant}-v1"):
            for kind in ("thumbs_up", "thumbs_down", "rating"):
                series = found.get("ratchet_feedback_total", {})
                result[f"{version} {kind}"] = total(series, version=version, type=kind)
        # Over both versions: which three of a user's scores come first is open between partitions.
        series = found.get("ratchet_satisfaction_count_total", {})
        result["scores"] = total(series, rollout=tenant)
        series = found.get("ratchet_quality_denominator", {})
        result["interactions"] = sum(
            total(series, version=f"{tenant}-v{n}", window="1d", figure="feedback_rate")
            for n in (0, 1)
        )
        return result

    expected = {
        f"{tenant}-v{n} {kind}": float(truth.feedback[f"{tenant}-v{n}", kind])
        for n in (0, 1)
        for kind in ("thumbs_up", "thumbs_down", "rating")
    }
    expected["scores"] = float(truth.scores.total())
    expected["interactions"] = float(truth.interactions)
    seen: dict[str, float] = {}

    async def equal() -> bool:
        seen.update(await counted())
        return seen == expected

    try:
        await eventually(equal, "exported counts equal the recount", SETTLE_S)
    except AssertionError:
        assert seen == expected
    await asyncio.sleep(2.5)  # two more batches: a double count would show now
    assert await counted() == expected
    return truth


async def counts(worker: AggregatorProcess, tenant: str) -> bool:
    """Whether a worker exports feedback of this tenant's versions."""
    series = (await worker.metrics()).get("ratchet_feedback_total", {})
    return any(total(series, version=f"{tenant}-v{n}") > 0 for n in (0, 1))


async def test_killed_under_load_again_and_again(
    kafka: str, log: KafkaLog, unique: str, tmp_path: Path
) -> None:
    events = traffic(unique, 1500, seed=11)
    worker = AggregatorProcess(kafka, tmp_path).start()
    rng = random.Random(5)
    try:
        await worker.ready(60)
        playing = asyncio.create_task(play(log, events, 0.4))
        for _ in range(4):
            await asyncio.sleep(1.0 + 4.0 * rng.random())
            worker.kill()
            worker.start()
            await worker.ready(90)
        await playing
        truth = await agrees(log, [worker], unique)
        assert truth.interactions == 1500
        await _products_are_unique_and_whole(log, unique)
    finally:
        worker.stop()


async def _products_are_unique_and_whole(log: KafkaLog, tenant: str) -> None:
    """One example stands for each thumb that stands, whatever was written twice on the way."""

    async def bodies(topic: str) -> list[dict[str, object]]:
        records = await read_to_end(log, topic, timeout_s=60)
        found = [orjson.loads(item.value) for item in records if item.value]
        return [body for body in found if body.get("tenant") == tenant]

    thumbs: dict[object, object] = {}
    for body in await bodies(FEEDBACK):
        if "context" in body and body["type"] in {"thumbs_up", "thumbs_down"}:
            thumbs[body["feedback_id"]] = body["type"] == "thumbs_up"
    for body in await bodies(FEEDBACK):
        if "context" not in body:
            thumbs.pop(body["feedback_id"], None)
    examples: dict[object, object] = {}
    retracted: set[object] = set()
    for body in await bodies(PREFERENCES):
        if "label" in body:
            assert examples.setdefault(body["pair_id"], body["label"]) == body["label"]
        elif "reason" in body:
            retracted.add(body["pair_id"])
    standing = Counter(label for name, label in examples.items() if name not in retracted)
    assert standing == Counter(thumbs.values())


async def test_killed_between_writes(
    kafka: str, log: KafkaLog, unique: str, tmp_path: Path
) -> None:
    """Outputs, rows, checkpoints, deletions: the process dies after the n-th record of them."""
    events = traffic(unique, 240, seed=12)
    await play(log, events, 0.0)
    for budget in (1, 3, 9, 30, 120, 260, 330):
        module = ("-m", "tests.support.aggregator_runner", "kill", str(budget))
        dying = AggregatorProcess(kafka, tmp_path, module=module).start()
        while (status := await asyncio.to_thread(dying.process.wait, 90)) == EXIT_FAILED:
            dying.start()
        assert status == -signal.SIGKILL, f"budget {budget}: {dying.log_path.read_text()[-2000:]}"
    worker = AggregatorProcess(kafka, tmp_path).start()
    try:
        await worker.ready(90)
        await agrees(log, [worker], unique)
    finally:
        worker.stop()


async def test_a_worker_stopped_past_its_session_writes_nothing_when_it_wakes(
    kafka: str, log: KafkaLog, unique: str, tmp_path: Path
) -> None:
    events = traffic(unique, 900, seed=13)
    first = AggregatorProcess(kafka, tmp_path / "first").start()
    second = AggregatorProcess(kafka, tmp_path / "second")
    try:
        await first.ready(60)
        playing = asyncio.create_task(play(log, events, 0.5))
        await eventually(lambda: counts(first, unique), "the first worker counts")
        first.signal(signal.SIGSTOP)
        second.start()

        async def took_over() -> bool:
            metrics = await second.metrics()
            return total(metrics.get("ratchet_aggregator_partitions", {})) == 4

        await eventually(took_over, "the second worker owns every partition", SESSION_S + 90)
        await eventually(lambda: counts(second, unique), "the second worker counts")
        first.signal(signal.SIGCONT)
        assert await asyncio.to_thread(first.process.wait, 30) == EXIT_FAILED
        await playing
        await agrees(log, [second], unique)
    finally:
        for worker in (first, second):
            if worker.alive():
                worker.stop()


async def test_a_broker_that_stalls_for_thirty_seconds_loses_and_doubles_nothing(
    kafka: str, servers: Servers, log: KafkaLog, unique: str, tmp_path: Path
) -> None:
    events = traffic(unique, 600, seed=14)
    worker = AggregatorProcess(kafka, tmp_path).start()
    try:
        await worker.ready(90)
        half = len(events) // 2
        await play(log, events[:half], 0.0)
        servers.stack.kill("kafka", signal.SIGSTOP)
        try:
            playing = asyncio.create_task(play(log, events[half:], 0.0, timeout_s=STALL_S + 90))
            await asyncio.sleep(STALL_S)
            assert not playing.done(), "the broker answered while it stood still"
        finally:
            servers.stack.kill("kafka", signal.SIGCONT)
        await playing
        await agrees(log, [worker], unique)
    finally:
        worker.stop()


@pytest.mark.parametrize("step", ["checkpoint", "rows"])
async def test_a_worker_cut_off_from_the_coordinator_writes_nothing_beside_its_successor(
    kafka: str, log: KafkaLog, unique: str, tmp_path: Path, step: str
) -> None:
    """It can still fetch and produce. Its late write would come before or after the successor's.

    A late checkpoint after the successor's last one would lose what only the successor counted; late
    rows before the successor's checkpoint would let a repeated feedback count once more.
    """
    held = tmp_path / "held"
    module = ("-m", "tests.support.aggregator_runner", "hold", step, str(held))
    version = f"{unique}-v0"
    shown = interaction(unique, tenant=unique, version=version)
    names = [feedback(f"f{n}", unique, tenant=unique) for n in range(4)]
    second = AggregatorProcess(kafka, tmp_path / "second")

    async def counted(worker: AggregatorProcess) -> float:
        series = (await worker.metrics()).get("ratchet_feedback_total", {})
        return total(series, version=version)

    async def counts_all(worker: AggregatorProcess, number: int) -> None:
        async def equal() -> bool:
            return await counted(worker) == number

        await eventually(equal, f"{number} feedbacks counted", SETTLE_S)

    async with CoordinatorProxy(kafka) as proxy:
        first = AggregatorProcess(proxy.address, tmp_path / "first", module=module).start()
        try:
            await first.ready(60)
            await send(log, INTERACTIONS, shown)
            await send(log, FEEDBACK, names[0])
            await counts_all(first, 1)
            held.touch()
            proxy.cut = True
            second.start()
            await send(log, FEEDBACK, names[1])
            await counts_all(second, 2)
            # Two batches, so that the row no longer says that it holds the third one's effect.
            for number in (2, 3):
                await send(log, FEEDBACK, names[number])
                await counts_all(second, number + 1)
            produced = proxy.produced
            if step == "checkpoint":
                second.kill()
            held.unlink()
            await asyncio.sleep(5.0)  # several checkpoints of a successor that lives
            late = proxy.produced - produced
            if second.alive():
                second.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(first.process.wait, 60)
            status = first.process.poll()
            if status is None:
                first.kill()
            second.start()
            await second.ready(90)
            await send(log, FEEDBACK, *names)
            await asyncio.sleep(5.0)
            await counts_all(second, 4)
            await asyncio.sleep(2.5)
            assert await counted(second) == 4
            assert late == 0
            assert status == EXIT_FAILED
        finally:
            for worker in (first, second):
                if worker.alive():
                    worker.stop()
