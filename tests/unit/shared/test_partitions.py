"""Keys find the partitions that every other client of Kafka finds for them."""

from __future__ import annotations

import aiokafka.partitioner
from hypothesis import given
from hypothesis import strategies as st

from shared.kafka.partitions import murmur2, partition_of


@given(st.binary(max_size=80))
def test_murmur2_is_that_of_aiokafka(key: bytes) -> None:
    assert murmur2(key) == aiokafka.partitioner.murmur2(key)


@given(st.binary(max_size=80), st.integers(1, 200))
def test_a_key_lies_where_aiokafka_puts_it(key: bytes, count: int) -> None:
    assert partition_of(key, count) == aiokafka.partitioner.DefaultPartitioner()(
        key, list(range(count)), []
    )


def test_a_key_of_the_java_client() -> None:
    """One value of Kafka's own UtilsTest, so that both implementations cannot be wrong alike."""
    assert murmur2(b"21") == 0xFFFFFFFF & -973932308
