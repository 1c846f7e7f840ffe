"""Consumer lag: records of a topic that a group's member has not handled, of the partitions it has.

A member that is gone tells nothing: `ratchet doctor` asks the brokers, who know of every group.
"""

# pyright: basic, reportMissingTypeStubs=false
# aiokafka has no types.
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from aiokafka import AIOKafkaConsumer, TopicPartition
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector


class ConsumerLag(Collector):
    """`ratchet_consumer_lag_records` of a consumer, read at each scrape."""

    def __init__(self, behind: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        """`behind`: records not handled yet, by group and topic, of topics with a partition here."""
        self._behind = behind

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The lag now, as of the newest records that were fetched."""
        lag = GaugeMetricFamily(
            "ratchet_consumer_lag_records",
            "Records that a member of the group has not handled, of the partitions it has.",
            labels=("group", "topic"),
        )
        for place, records in self._behind().items():
            lag.add_metric(place, max(0, records))
        yield lag


def read_position(consumer: AIOKafkaConsumer, partition: TopicPartition) -> int:
    """The offset that a consumer hands out next, without waiting for one.

    Raises:
        AssertionError, AttributeError: none, as while the group assigns.

    """
    # aiokafka's own `position` waits until there is one.
    subscription = consumer._subscription.subscription
    return subscription.assignment.state_value(partition).position
