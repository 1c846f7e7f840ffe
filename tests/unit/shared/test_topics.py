"""How topics are created: what follows from the replication."""

# pyright: basic
from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.admin import NewTopic

from shared.contracts.topics import FEEDBACK, TICKS, load_topics
from shared.kafka import topics
from shared.kafka.security import KafkaConnection
from shared.kafka.topics import TopicsRefused, apply_topics


class Admin:
    """A cluster that remembers what it was asked to create, and refuses some of it."""

    def __init__(self, refuses: dict[str, tuple[int, str]] | None = None) -> None:
        self.refuses = refuses or {}
        self.created: list[NewTopic] = []

    def __call__(self, **_: Any) -> Admin:
        return self

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def list_topics(self) -> list[str]:
        return []

    async def create_topics(self, new: list[NewTopic]) -> SimpleNamespace:
        self.created += [topic for topic in new if topic.name not in self.refuses]
        answers = {topic.name: self.refuses.get(topic.name, (0, "")) for topic in new}
        return SimpleNamespace(topic_errors=[(name, *answer) for name, answer in answers.items()])

    async def describe_topics(self, names: list[str]) -> list[dict[str, Any]]:
        return [
            {"error_code": 0, "topic": name, "partitions": [{"replicas": [0]}]} for name in names
        ]

    async def describe_configs(self, asked: list[Any]) -> list[SimpleNamespace]:
        return [SimpleNamespace(resources=[(29, "not for you", 2, one.name, [])]) for one in asked]


@pytest.mark.parametrize(("replication", "in_sync"), [(1, None), (2, None), (3, "2"), (5, "2")])
async def test_an_acknowledged_record_is_on_two_brokers_where_there_are_three(
    monkeypatch: pytest.MonkeyPatch, replication: int, in_sync: str | None
) -> None:
    admin = Admin()
    monkeypatch.setattr(topics, "AIOKafkaAdminClient", admin)
    await apply_topics(
        KafkaConnection("nowhere"), tenants=("default",), partitions=4, replication=replication
    )
    assert len(admin.created) == len(load_topics())
    for topic in admin.created:
        assert topic.replication_factor == replication
        assert topic.topic_configs.get("min.insync.replicas") == in_sync
        assert "cleanup.policy" in topic.topic_configs


async def test_what_the_brokers_refuse_is_not_created_and_raises_with_their_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    admin = Admin({FEEDBACK: (38, "only 1 broker is registered"), TICKS: (29, "")})
    monkeypatch.setattr(topics, "AIOKafkaAdminClient", admin)
    with pytest.raises(TopicsRefused, match="only 1 broker is registered") as raised:
        await apply_topics(
            KafkaConnection("nowhere"), tenants=("default",), partitions=4, replication=3
        )
    report = raised.value.report
    assert report.refused[FEEDBACK] == "INVALID_REPLICATION_FACTOR: only 1 broker is registered"
    assert report.refused[TICKS].startswith("TOPIC_AUTHORIZATION_FAILED: ")
    assert report.created == [topic.name for topic in admin.created]
    assert len(report.created) == len(load_topics()) - 2


async def test_a_topic_that_the_answer_leaves_out_counts_as_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Forgetful(Admin):
        async def create_topics(self, new: list[NewTopic]) -> SimpleNamespace:
            return await super().create_topics([one for one in new if one.name != TICKS])

    monkeypatch.setattr(topics, "AIOKafkaAdminClient", Forgetful())
    with pytest.raises(TopicsRefused) as raised:
        await apply_topics(
            KafkaConnection("nowhere"), tenants=("default",), partitions=4, replication=1
        )
    assert raised.value.report.refused.keys() == {TICKS}


async def test_a_topic_that_may_not_be_described_is_refused_and_no_drift(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Someone else created it meanwhile, and this client may not read its configuration.
    monkeypatch.setattr(topics, "AIOKafkaAdminClient", Admin({TICKS: (36, "exists")}))
    with pytest.raises(TopicsRefused) as raised:
        await apply_topics(
            KafkaConnection("nowhere"), tenants=("default",), partitions=4, replication=1
        )
    report = raised.value.report
    assert report.refused == {TICKS: "TOPIC_AUTHORIZATION_FAILED: not for you"}
    assert TICKS not in report.created
    assert not report.drift
