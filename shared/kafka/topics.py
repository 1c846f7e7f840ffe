"""Topic administration: create declared topics on the brokers and report drift."""

# pyright: basic, reportMissingTypeStubs=false
# aiokafka has no types.
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import TopicAlreadyExistsError, for_code

from shared.contracts.topics import Topic, load_topics
from shared.kafka.security import KafkaConnection

ADMIN_TIMEOUT_MS = 15_000
SAFE_REPLICATION = 3
"""Replicas from which on two of them must have a record before it is acknowledged."""
UNANSWERED = -1
"""Kafka's code of an unknown error; also for a topic that an answer leaves out."""


@dataclass(slots=True)
class TopicReport:
    """What `apply_topics` did and found. Drift is reported, never repaired by itself."""

    created: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    drift: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    """The brokers' reason by topic: not created, or not to be described."""


class TopicsRefused(Exception):
    """The brokers refused to create or describe some topics; `report` has all of them."""

    def __init__(self, report: TopicReport) -> None:
        super().__init__("; ".join(f"{name}: {why}" for name, why in report.refused.items()))
        self.report = report


async def apply_topics(
    connection: KafkaConnection,
    *,
    tenants: tuple[str, ...],
    partitions: int,
    replication: int,
    dry_run: bool = False,
) -> TopicReport:
    """Create the topics that are missing and report how the others differ from their files.

    Raises:
        TopicsRefused: the brokers refused topics; the others were created.
        aiokafka.errors.KafkaError: the brokers are unavailable.

    """
    admin = AIOKafkaAdminClient(
        **connection.client_arguments(),
        client_id="ratchet-topics",
        request_timeout_ms=ADMIN_TIMEOUT_MS,
    )
    await connection.start(admin)
    try:
        report = await _apply(admin, tenants, partitions, replication, dry_run=dry_run)
    finally:
        await admin.close()
    if report.refused:
        raise TopicsRefused(report)
    return report


async def _apply(
    admin: AIOKafkaAdminClient,
    tenants: tuple[str, ...],
    partitions: int,
    replication: int,
    *,
    dry_run: bool,
) -> TopicReport:
    wanted = [one for topic in load_topics() for one in topic.for_tenants(tenants)]
    existing = set(await admin.list_topics())
    report = TopicReport()
    missing = [topic for topic in wanted if topic.name not in existing]
    if dry_run:
        report.created = [topic.name for topic in missing]
    elif missing:
        existing |= await _create(admin, missing, partitions, replication, report)
    present = [topic for topic in wanted if topic.name in existing]
    counts, replicas = await _partition_counts(admin, present, report)
    configs = await _configs(admin, present, report)
    present = [topic for topic in present if topic.name not in report.refused]
    for topic in present:
        found = configs[topic.name]
        differences = [
            f"{topic.name}: {name} is {found.get(name)!r}, declared {value!r}"
            for name, value in configuration(topic, replication).items()
            if found.get(name) != value
        ]
        if counts[topic.name] != count(topic, partitions):
            differences.append(
                f"{topic.name}: {counts[topic.name]} partitions, "
                f"declared {count(topic, partitions)}"
            )
        if replicas[topic.name] < replication:
            differences.append(
                f"{topic.name}: {replicas[topic.name]} replicas, declared {replication}"
            )
        if differences:
            report.drift.extend(differences)
        else:
            report.unchanged.append(topic.name)
    return report


def count(topic: Topic, join_partitions: int) -> int:
    """How many partitions a topic has where the join has `join_partitions`."""
    return join_partitions if topic.partitions == "join" else topic.partitions


def configuration(topic: Topic, replication: int) -> dict[str, str]:
    """A topic's configuration where each partition has `replication` replicas.

    From SAFE_REPLICATION on, acknowledged by all means by two replicas at least. With fewer, one
    broker's death would stop every writer, so the brokers' default stands.
    """
    if replication < SAFE_REPLICATION:
        return topic.config
    return {"min.insync.replicas": "2", **topic.config}


async def _create(
    admin: AIOKafkaAdminClient,
    missing: list[Topic],
    partitions: int,
    replication: int,
    report: TopicReport,
) -> set[str]:
    """Create topics and read what the brokers said of each: the client raises for none of them.

    Returns those that someone else created meanwhile.
    """
    response: Any = await admin.create_topics(
        [
            NewTopic(
                topic.name,
                num_partitions=count(topic, partitions),
                replication_factor=replication,
                topic_configs=configuration(topic, replication),
            )
            for topic in missing
        ]
    )
    answers = {name: rest for name, *rest in response.topic_errors}
    exist: set[str] = set()
    for topic in missing:
        code, *message = answers.get(topic.name, [UNANSWERED, "the answer leaves it out"])
        if code == 0:
            report.created.append(topic.name)
        elif code == TopicAlreadyExistsError.errno:
            exist.add(topic.name)
        else:
            report.refused[topic.name] = _reason(code, *message)
    return exist


async def _partition_counts(
    admin: AIOKafkaAdminClient, topics: list[Topic], report: TopicReport
) -> tuple[dict[str, int], dict[str, int]]:
    """Partitions of each topic, and the replicas of its least replicated one."""
    counts: dict[str, int] = {}
    replicas: dict[str, int] = {}
    found = await admin.describe_topics([topic.name for topic in topics]) if topics else []
    for item in found:
        if item["error_code"]:
            report.refused[item["topic"]] = _reason(item["error_code"])
        partitions = item["partitions"]
        counts[item["topic"]] = len(partitions)
        replicas[item["topic"]] = min((len(one["replicas"]) for one in partitions), default=0)
    return counts, replicas


async def _configs(
    admin: AIOKafkaAdminClient, topics: list[Topic], report: TopicReport
) -> dict[str, dict[str, str]]:
    if not topics:
        return {}
    resources = [ConfigResource(ConfigResourceType.TOPIC, topic.name) for topic in topics]
    found: dict[str, dict[str, str]] = {}
    for response in await admin.describe_configs(resources):
        for resource in response.resources:  # pyright: ignore[reportAttributeAccessIssue]
            code, message, _, name, entries = resource[:5]
            if code:
                report.refused[name] = _reason(code, message)
            found[name] = {entry[0]: entry[1] for entry in entries}
    return found


def _reason(code: int, message: str | None = None) -> str:
    """A broker's error: its name, and the broker's own words where it sent any."""
    error = for_code(code)
    return f"{error.message}: {message or error.description}"
