"""Source consumer: Faust's consumer, with the records of the source topics handed on by the batch.

Faust makes an event object, a queue entry and two futures of each record, which costs more than folding
it does. Its group, its assignment and its recovery of the table stay; the changelog's records go its
own way, too.
"""

# pyright: basic, reportMissingTypeStubs=false
# faust has no useful types.
from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from aiokafka import TopicPartition
from faust.transport.drivers.aiokafka import Consumer
from faust.types import TP

from services.aggregator.codec import SourceRecord
from shared.kafka.lag import read_position

Fetched: TypeAlias = Mapping[Any, Sequence[SourceRecord]]
"""(topic, partition) -> its records in the order of their offsets."""


class SourceConsumer(Consumer):
    """See the module.

    Args:
        topics: the source topics.
        fold: takes what was fetched of them; cancelled when the assignment changes.
    """

    def __init__(
        self,
        *args: Any,
        topics: Iterable[str],
        fold: Callable[[Fetched], Awaitable[None]],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._topics = frozenset(topics)
        self._fold = fold
        self._counted: dict[TP, int] = {}
        self.reads = 0
        """How many reads have returned."""

    def read_position(self, place: TP) -> int:
        """The offset that the client below Faust hands out next.

        Raises:
            AssertionError, AttributeError: none, as while the group assigns.
        """
        return read_position(self._thread._ensure_consumer(), TopicPartition(*place))

    def acknowledge(self, partition: int, offsets: Mapping[str, int]) -> None:
        """Commit soon that events of each topic are counted up to these offsets."""
        self._counted.update(
            (TP(topic, partition), offset + 1) for topic, offset in offsets.items()
        )

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Forget what was counted under the assignment before."""
        self._counted.clear()
        await super().on_partitions_assigned(assigned, generation_id)

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Nothing: Faust looks for streams, and `/healthz` for events that are counted."""

    async def _wait_next_records(self, timeout: float) -> tuple[Any, Any]:
        records, active = await super()._wait_next_records(timeout)
        self.reads += 1
        if not records or not self.flow_active or self.should_stop:
            return records, active
        fetched = {place: records[place] for place in records if place.topic in self._topics}
        if fetched:
            await self.wait_first(self._fold(fetched), self.suspend_flow.wait())
        return {place: records[place] for place in records if place not in fetched}, active

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterable[TP]:  # noqa: ARG002
        return list(self._counted)

    def _new_offset(self, tp: TP) -> int | None:
        return self._counted.pop(tp, None)
