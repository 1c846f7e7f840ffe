"""The consumer below Faust: what it hands on by the batch, and what it commits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from aiokafka import TopicPartition
from aiokafka.consumer.subscription_state import SubscriptionState
from faust.types import TP

from services.aggregator.faust_app import FaustCallbacks, FaustLog, FaustSettings, build_app
from services.aggregator.offset_gaps import ReadPlace
from services.aggregator.source_consumer import Fetched
from shared.contracts.topics import AGGREGATOR_CHANGELOG, FEEDBACK, INTERACTIONS
from shared.kafka.security import KafkaConnection
from tests.support.aggregator import interaction, source_record

OWNED = [TP(topic, 0) for topic in (INTERACTIONS, FEEDBACK, AGGREGATOR_CHANGELOG)]


@asynccontextmanager
async def owning_consumer(tmp_path: Path, folded: list[Fetched]) -> AsyncIterator[Any]:
    """The application's consumer, which owns a partition and is not connected."""

    async def fold(fetched: Fetched) -> None:
        folded.append(fetched)

    async def nothing(*_: Any) -> None:
        pass

    settings = FaustSettings(
        KafkaConnection("127.0.0.1:9"), "ratchet.aggregator", 10.0, tmp_path, state_cache_mib=1
    )
    app, _ = build_app(
        settings,
        FaustCallbacks(fold=fold, revoked=nothing, recovered=nothing),
        store=lambda *_: SimpleNamespace(),
    )
    consumer = app.consumer
    consumer._set_active_tps(set(OWNED))
    consumer.assignment = lambda: set(OWNED)
    consumer.highwater = lambda _: 9
    try:
        yield consumer
    finally:
        consumer._thread.thread_loop.close()


async def test_source_records_are_folded_by_the_batch_and_the_changelogs_go_to_faust(
    tmp_path: Path,
) -> None:
    folded: list[Fetched] = []
    records = {
        place: [source_record(place.topic, 0, offset, interaction()) for offset in (7, 8)]
        for place in OWNED
    }

    async def fetched(**_: Any) -> Mapping[TP, Any]:
        return records

    async with owning_consumer(tmp_path, folded) as consumer:
        consumer._getmany = fetched
        consumer.resume_flow()
        left = [(place.topic, message.offset) async for place, message in consumer.getmany(1.0)]
    assert left == [(AGGREGATOR_CHANGELOG, 7), (AGGREGATOR_CHANGELOG, 8)]
    assert folded == [{place: records[place] for place in OWNED[:2]}]


async def test_what_is_counted_is_committed_once_and_not_before(tmp_path: Path) -> None:
    commits: list[Mapping[TP, int]] = []

    async def commit(offsets: Mapping[TP, int]) -> bool:
        commits.append(dict(offsets))
        return True

    async def flush() -> None:
        pass

    async with owning_consumer(tmp_path, []) as consumer:
        consumer._commit = commit
        consumer.app.producer.flush = flush
        await consumer.commit()
        assert commits == []
        FaustLog(lambda: consumer).acknowledge(0, {INTERACTIONS: 41, FEEDBACK: 6})
        await consumer.commit()
        await consumer.commit()
        assert commits == [{TP(INTERACTIONS, 0): 42, TP(FEEDBACK, 0): 7}]
        # Behind what the group has, as after an assignment that brought a partition back.
        FaustLog(lambda: consumer).acknowledge(0, {INTERACTIONS: 40, FEEDBACK: 7})
        await consumer.commit()
        assert commits[1:] == [{TP(FEEDBACK, 0): 8}]


async def test_a_seek_in_a_partition_that_the_group_has_taken_away_is_none(tmp_path: Path) -> None:
    async with owning_consumer(tmp_path, []) as consumer:
        subscription = SubscriptionState()
        consumer._thread._consumer = SimpleNamespace(
            _subscription=subscription, seek=subscription.seek
        )

        async def call(method: Any, *arguments: Any) -> Any:
            return method(*arguments)

        consumer._thread.call_thread = call
        source = FaustLog(lambda: consumer)
        await source.seek(INTERACTIONS, 0, 3)
        assert source.places() == {}

        subscription.assign_from_user([TopicPartition(INTERACTIONS, 0)])
        await source.seek(FEEDBACK, 0, 3)
        await source.seek(INTERACTIONS, 0, 3)
        assert source.places() == {(INTERACTIONS, 0): ReadPlace(3, 9)}


async def test_reads_are_counted_with_events_or_without(tmp_path: Path) -> None:
    async def nothing(**_: Any) -> Mapping[TP, Any]:
        return {}

    async with owning_consumer(tmp_path, []) as consumer:
        consumer._getmany = nothing
        consumer.resume_flow()
        for reads in (1, 2):
            assert [found async for found in consumer.getmany(1.0)] == []
            assert FaustLog(lambda: consumer).reads() == reads
