"""The aggregator as a process against a real broker: what goes in, what comes out, what it says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from shared.contracts.events.feedback import FeedbackType
from shared.contracts.events.quality import Tick
from shared.contracts.events.votes import Choice
from shared.contracts.topics import (
    DEAD_LETTERS,
    EXAMPLES,
    FEEDBACK,
    INTERACTIONS,
    PREFERENCES,
    QUALITY,
    TICKS,
)
from shared.kafka.envelope import encode
from shared.kafka.log import NewRecord, Record, read_to_end
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from tests.support.aggregator import DOWN, UP, feedback, interaction, vote, withdrawn
from tests.support.aggregator_process import AggregatorProcess, send, total
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(150)


@pytest.fixture
async def log(kafka: str) -> AsyncIterator[KafkaLog]:
    client = KafkaLog(KafkaConnection(kafka), source="/ratchet/test")
    await client.start()
    yield client
    await client.stop()


@pytest.fixture
async def worker(kafka: str, tmp_path: Path) -> AsyncIterator[AggregatorProcess]:
    process = AggregatorProcess(
        kafka, tmp_path, environment={"RATCHET_DATA_DIR": str(tmp_path / "made" / "here")}
    ).start()
    try:
        await process.ready()
        yield process
    finally:
        process.stop()


async def written(log: KafkaLog, topic: str, tenant: str) -> list[tuple[str, dict[str, object]]]:
    """(type, body) of what a topic holds of a tenant, without repeats of an id."""
    found: dict[str, tuple[str, dict[str, object]]] = {}
    for item in await read_to_end(log, topic, timeout_s=60):
        body = orjson.loads(item.value or b"{}")
        if body.get("tenant") == tenant:
            headers = {name: value.decode() for name, value in item.headers}
            found.setdefault(headers["ce_id"], (headers["ce_type"], body))
    return list(found.values())


async def test_both_orders_join_count_and_make_data(
    log: KafkaLog, worker: AggregatorProcess, unique: str
) -> None:
    version = f"v-{unique}"
    early = [feedback("f1", f"{unique}-1", UP, tenant=unique, user="a")]
    shown = [
        interaction(f"{unique}-1", tenant=unique, version=version, completion="Good answer."),
        interaction(f"{unique}-2", tenant=unique, version=version, completion="Bad answer."),
        interaction(f"{unique}-3", tenant=unique, version=version, prompt="Another question?"),
    ]
    late = [
        feedback("f2", f"{unique}-2", DOWN, tenant=unique, user="b"),
        feedback("f2", f"{unique}-2", DOWN, tenant=unique, user="b"),
        feedback(
            "f3",
            f"{unique}-3",
            FeedbackType.text_correction,
            {"corrected": "What a person would write."},
            tenant=unique,
            user="c",
        ),
        vote(f"{unique}-c", Choice.right, tenant=unique, panel="judge"),
    ]
    await send(log, FEEDBACK, *early)
    await eventually(lambda: _pending(worker), "feedback waits for its interaction")
    await send(log, INTERACTIONS, *shown)
    await send(log, FEEDBACK, *late)

    async def counted() -> bool:
        metrics = await worker.metrics()
        return (
            total(metrics["ratchet_feedback_total"], version=version) == 3
            and total(metrics["ratchet_satisfaction_count_total"], version=version) == 3
        )

    await eventually(counted, "three feedbacks of the version counted")
    metrics = await worker.metrics()
    assert total(metrics["ratchet_satisfaction_sum_total"], version=version) == 1.0
    assert total(metrics["ratchet_feedback_total"], version=version, type="thumbs_up") == 1
    for figure, above, below in (
        ("feedback_rate", 3, 3),
        ("positive_ratio", 1, 2),
        ("correction_rate", 1, 3),
        ("satisfaction", 1, 3),
    ):
        labels = {"version": version, "window": "5m", "figure": figure}
        assert total(metrics["ratchet_quality_numerator"], **labels) == above
        assert total(metrics["ratchet_quality_denominator"], **labels) == below

    async def paired() -> list[tuple[str, dict[str, object]]] | None:
        found = await written(log, PREFERENCES, unique)
        sources = {body.get("source") for _, body in found}
        return found if {"vote", "correction", "ratings"} <= sources else None

    products = await eventually(paired, "pairs of votes, corrections and ratings")
    assert products is not None
    pairs = {body["source"]: body for _, body in products if "source" in body}
    assert (pairs["ratings"]["chosen"], pairs["ratings"]["rejected"]) == (
        "Good answer.",
        "Bad answer.",
    )
    assert pairs["vote"]["panel"] == "judge"
    assert pairs["vote"]["chosen"] == "No."
    assert sorted(body["label"] for _, body in products if "label" in body) == [False, True]
    assert len(products) == 5

    examples = await written(log, EXAMPLES, unique)
    assert {body["trace_id"] for _, body in examples} == {f"{unique}-{n}" for n in (1, 2, 3)}


def _pending(worker: AggregatorProcess) -> bool:
    _, text = worker.get("/metrics")
    return any(
        line.startswith("ratchet_feedback_pending{") and not line.endswith(" 0.0")
        for line in text.splitlines()
    )


async def test_edit_and_withdrawal_take_back_data_but_never_counters(
    log: KafkaLog, worker: AggregatorProcess, unique: str
) -> None:
    version = f"v-{unique}"
    await send(log, INTERACTIONS, interaction(unique, tenant=unique, version=version))

    async def shown() -> bool:
        metrics = await worker.metrics()
        labels = {"version": version, "window": "1h", "figure": "feedback_rate"}
        return total(metrics["ratchet_quality_denominator"], **labels) == 1

    # Two topics have no order between them: feedback that waited until its withdrawal makes no data.
    await eventually(shown, "the interaction counted")
    await send(
        log,
        FEEDBACK,
        feedback("f1", unique, FeedbackType.rating, 5, tenant=unique),
        feedback("f1", unique, FeedbackType.rating, 1, tenant=unique, revision=1),
        withdrawn("f1", unique, FeedbackType.rating, tenant=unique, revision=2),
        feedback("f2", unique, UP, tenant=unique, user="u2"),
        withdrawn("f2", unique, UP, tenant=unique),
    )

    async def counted() -> bool:
        metrics = await worker.metrics()
        return total(metrics["ratchet_feedback_total"], version=version) == 2

    await eventually(counted, "two feedbacks counted")
    metrics = await worker.metrics()
    satisfaction = {"version": version, "window": "1h", "figure": "satisfaction"}
    assert total(metrics["ratchet_quality_denominator"], **satisfaction) == 0
    products = await written(log, PREFERENCES, unique)
    assert [kind for kind, _ in products] == [
        "ratchet.preference.unpaired.v1",
        "ratchet.preference.retracted.v1",
    ]
    examples = await written(log, EXAMPLES, unique)
    assert examples[-1][1]["feedback"] == []


async def test_what_cannot_be_read_becomes_a_dead_letter_and_stops_nothing(
    log: KafkaLog, worker: AggregatorProcess, unique: str
) -> None:
    version = f"v-{unique}"
    await log.append(FEEDBACK, key=unique, value=b"{not json", headers=())
    bad = feedback("f0", unique, tenant=unique)
    headers = (("ce_type", bad.ce_type.encode()),)
    await log.append(FEEDBACK, key=unique, value=b'{"feedback_id": 7}', headers=headers)
    await log.append(FEEDBACK, key=unique, value=None, headers=headers)
    null_header: Any = ("traceparent", None)
    await log.append(FEEDBACK, key=unique, value=b"{}", headers=(null_header,))
    await send(log, INTERACTIONS, interaction(unique, tenant=unique, version=version))
    await send(log, FEEDBACK, feedback("f1", unique, UP, tenant=unique))

    async def counted() -> bool:
        metrics = await worker.metrics()
        return total(metrics["ratchet_feedback_total"], version=version) == 1

    await eventually(counted, "the readable feedback is counted")

    # The unreadable ones lie in a partition of their own, at its own pace.
    async def reasons() -> list[str]:
        records = await read_to_end(log, DEAD_LETTERS, timeout_s=60)
        letters = [orjson.loads(item.value or b"{}") for item in records]
        # Marks of replays lie there, too.
        ours = [one["reason"] for one in letters if one.get("source_key") == unique]
        return sorted(ours) if len(ours) >= 4 else []

    found = await eventually(reasons, "four dead letters")
    assert found == ["schema", "schema", "unknown_type", "unknown_type"]


async def test_quality_windows_are_emitted_by_the_interactions_start(
    log: KafkaLog, worker: AggregatorProcess, unique: str
) -> None:
    version = f"v-{unique}"
    await send(
        log,
        INTERACTIONS,
        *(interaction(f"{unique}-{n}", tenant=unique, version=version) for n in range(8)),
    )
    await send(log, FEEDBACK, feedback("f1", f"{unique}-3", UP, tenant=unique))

    async def emitted() -> bool:
        newest: dict[str, dict[str, object]] = {}
        records: list[Record] = await read_to_end(log, QUALITY, timeout_s=60)
        for item in records:
            body = orjson.loads(item.value or b"{}")
            if body["version"] == version and body["window"] == "1d":
                newest[item.key] = body
        return (
            sum(int(str(body["interactions"])) for body in newest.values()) == 8
            and sum(int(str(body["positive"])) for body in newest.values()) == 1
        )

    await eventually(emitted, "the day's window holds eight interactions and a thumb up")


async def test_ticks_of_a_clock_forty_days_ahead_expire_nothing_and_stop_no_figures(
    log: KafkaLog, worker: AggregatorProcess, unique: str
) -> None:
    version = f"v-{unique}"
    await send(log, FEEDBACK, feedback("f1", unique, UP, tenant=unique))
    await eventually(lambda: _pending(worker), "feedback waits for its interaction")
    wrong = datetime.now(UTC) + timedelta(days=40)
    for partition in range(4):
        tick = Tick(at=wrong, partition=partition)
        headers = encode(tick, source="/ratchet/test", event_id=unique, time=wrong)
        await log.append_many(
            [NewRecord(TICKS, str(partition), tick.to_json(), headers, partition=partition)]
        )
    await send(log, INTERACTIONS, interaction(unique, tenant=unique, version=version))

    async def counted() -> bool:
        metrics = await worker.metrics()
        labels = {"version": version, "window": "1m", "figure": "feedback_rate"}
        return (
            total(metrics["ratchet_feedback_total"], version=version) == 1
            and total(metrics["ratchet_quality_denominator"], **labels) == 1
        )

    await eventually(counted, "the waiting feedback joined and the live figures go on")
