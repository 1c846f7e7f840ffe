"""How topics are created: what follows from the replication."""

# pyright: basic
from __future__ import annotations

from typing import Any

import pytest
from aiokafka.admin import NewTopic

from shared.kafka import topics
from shared.kafka.topics import apply_topics, load_topics


class Admin:
    """A cluster without topics that remembers what it was asked to create."""

    def __init__(self) -> None:
        self.created: list[NewTopic] = []

    def __call__(self, **_: Any) -> Admin:
        return self

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def list_topics(self) -> list[str]:
        return []

    async def create_topics(self, new: list[NewTopic]) -> None:
        self.created += new


@pytest.mark.parametrize(("replication", "in_sync"), [(1, None), (2, None), (3, "2"), (5, "2")])
async def test_an_acknowledged_record_is_on_two_brokers_where_there_are_three(
    monkeypatch: pytest.MonkeyPatch, replication: int, in_sync: str | None
) -> None:
    admin = Admin()
    monkeypatch.setattr(topics, "AIOKafkaAdminClient", admin)
    await apply_topics("nowhere", tenants=("default",), partitions=4, replication=replication)
    assert len(admin.created) == len(load_topics())
    for topic in admin.created:
        assert topic.replication_factor == replication
        assert topic.topic_configs.get("min.insync.replicas") == in_sync
        assert "cleanup.policy" in topic.topic_configs
