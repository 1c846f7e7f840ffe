"""Keys find the partitions that every other client of Kafka finds for them."""

from __future__ import annotations

import aiokafka.partitioner
from hypothesis import given
from hypothesis import strategies as st

from shared.kafka.partitions import MANY, murmur2, partition_of, partitions_of


@given(st.binary(max_size=80))
def test_murmur2_is_that_of_aiokafka(key: bytes) -> None:
    assert murmur2(key) == aiokafka.partitioner.murmur2(key)


@given(st.binary(max_size=80), st.integers(1, 200))
def test_a_key_lies_where_aiokafka_puts_it(key: bytes, count: int) -> None:
    assert partition_of(key, count) == aiokafka.partitioner.DefaultPartitioner()(
        key, list(range(count)), []
    )


SAME_LENGTH = st.integers(0, 10).flatmap(
    lambda words: st.lists(st.binary(min_size=4 * words, max_size=4 * words), max_size=3 * MANY)
)


@given(SAME_LENGTH | st.lists(st.binary(max_size=12), max_size=3 * MANY), st.integers(1, 200))
def test_many_keys_lie_where_each_does(keys: list[bytes], count: int) -> None:
    assert partitions_of(keys, count) == [partition_of(key, count) for key in keys]


def test_a_key_of_the_java_client() -> None:
    """One value of Kafka's own UtilsTest, so that both implementations cannot be wrong alike."""
    assert murmur2(b"21") == 0xFFFFFFFF & -973932308
