"""Kafka as `ratchet doctor` looks at it: topics, consumer lag, keys."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from services.cli.doctor_findings import Finding, guarded
from services.cli.kafka import READ_TIMEOUT_S, run_with_kafka, with_log
from services.cli.settings import CliSettings

if TYPE_CHECKING:
    from shared.contracts.events.api_keys import ApiKeyIssued
    from shared.kafka.log import EventLog
    from shared.kafka.topics import TopicReport

LAG_RECORDS = 10_000
KEY_DAYS = 14
GROUPS = ("ratchet.aggregator", "ratchet.feedback-intake")
"""Consumer groups by the services' defaults; beside them those of engines' bases that have members."""


def look_at_kafka(settings: CliSettings) -> list[Finding]:
    """Topics, lag and keys; where no broker answers, that alone."""
    return [
        *_topics(settings),
        *guarded("lag", _lag, settings),
        *guarded("keys", _keys, settings),
    ]


def _topics(settings: CliSettings) -> list[Finding]:
    import asyncio

    from shared.kafka.security import KafkaConnection
    from shared.kafka.topics import apply_topics

    async def work() -> TopicReport:
        async with asyncio.timeout(READ_TIMEOUT_S):
            return await apply_topics(
                KafkaConnection.of(settings.kafka),
                tenants=settings.tenants,
                partitions=settings.join_partitions,
                replication=settings.replication,
                dry_run=True,
            )

    return topic_findings(run_with_kafka(settings, work), settings.kafka.kafka_bootstrap)


def topic_findings(report: TopicReport, brokers: str) -> list[Finding]:
    """Topics that are missing or differ from their declaration."""
    found = [Finding("kafka", "ok", f"{brokers} answers")]
    if report.created:
        names = ", ".join(report.created)
        found.append(Finding("topics", "wrong", f"missing: {names}", "ratchet topics apply"))
    found += [
        Finding("topics", "look", line, "change it by kafka-configs.sh, or the declaration")
        for line in report.drift
    ]
    if len(found) == 1:
        found.append(Finding("topics", "ok", f"{len(report.unchanged)} as declared"))
    return found


def _lag(settings: CliSettings) -> list[Finding]:
    from aiokafka import AIOKafkaConsumer
    from aiokafka.admin import AIOKafkaAdminClient
    from aiokafka.errors import GroupCoordinatorNotAvailableError

    from shared.kafka.security import KafkaConnection

    async def work() -> dict[str, int]:
        connection = KafkaConnection.of(settings.kafka)
        admin: Any = AIOKafkaAdminClient(**connection.client_arguments())
        consumer: Any = AIOKafkaConsumer(**connection.client_arguments())
        await connection.start(admin)
        await connection.start(consumer)
        try:
            lags: dict[str, int] = {}
            of_bases: list[str] = []
            with contextlib.suppress(GroupCoordinatorNotAvailableError):
                of_bases = await groups_of_bases(admin)
            for group in (*GROUPS, *of_bases):
                try:
                    offsets = await admin.list_consumer_group_offsets(group)
                except GroupCoordinatorNotAvailableError:
                    continue  # a new cluster, in which no group has committed anything
                if offsets:
                    ends = await consumer.end_offsets(list(offsets))
                    behind = (ends[place] - max(0, at.offset) for place, at in offsets.items())
                    lags[group] = sum(max(0, records) for records in behind)
            return lags
        finally:
            await consumer.stop()
            await admin.close()

    return lag_findings(run_with_kafka(settings, work))


async def groups_of_bases(admin: Any) -> list[str]:
    """Groups of the batch workers that consume now: one of a base that none serves stands still."""
    from shared.kafka.acls import GROUP_PREFIXES

    beginnings = tuple(GROUP_PREFIXES.values())
    named = [name for name, *_ in await admin.list_consumer_groups() if name.startswith(beginnings)]
    answers = await admin.describe_consumer_groups(named) if named else []
    described = [group for answer in answers for group in answer.groups]
    return [name for _, name, _, _, _, members, *_ in described if members]


def lag_findings(lags: dict[str, int]) -> list[Finding]:
    """Consumer groups and how many records they are behind."""
    if not lags:
        remedy = "start aggregator and feedback, if they do not run"
        return [Finding("lag", "look", "no consumer group has committed anything yet", remedy)]
    return [
        Finding(
            f"lag of {group}",
            "look" if lag > LAG_RECORDS else "ok",
            f"{lag} records",
            "more replicas, up to the partitions; see RatchetAggregatorLag in docs/runbooks.md"
            if lag > LAG_RECORDS
            else "",
        )
        for group, lag in sorted(lags.items())
    ]


def _keys(settings: CliSettings) -> list[Finding]:
    from shared.contracts.events.api_keys import ApiKeyIssued
    from shared.contracts.topics import API_KEYS
    from shared.kafka.log import read_to_end

    async def work(log: EventLog) -> list[ApiKeyIssued]:
        found: dict[str, ApiKeyIssued] = {}
        for record in await read_to_end(log, API_KEYS, timeout_s=READ_TIMEOUT_S):
            found.pop(record.key, None)
            if record.value is not None:
                found[record.key] = ApiKeyIssued.model_validate_json(record.value)
        return list(found.values())

    return key_findings(with_log(settings, work), settings.kafka.profile, time.time())


def key_findings(keys: Sequence[ApiKeyIssued], profile: str, now_s: float) -> list[Finding]:
    """Whether anybody may ask, and whose key ends soon. `now_s` is seconds since 1970."""
    ends = {
        key.key_id: (key.expires_at.timestamp() - now_s) / 86_400 for key in keys if key.expires_at
    }
    valid = [key for key in keys if ends.get(key.key_id, 1) > 0]
    if not valid:
        local = profile == "local"
        remedy = "" if local else "ratchet keys create --scope infer --scope feedback"
        detail = "none, and the local profile asks for none" if local else "none: nobody may ask"
        return [Finding("keys", "ok" if local else "wrong", detail, remedy)]
    soon = [
        Finding(
            "keys",
            "look",
            f"{key.key_id} ({key.name or key.tenant}) expires in {ends[key.key_id]:.0f} days",
            f"ratchet keys rotate {key.key_id}",
        )
        for key in valid
        if ends.get(key.key_id, KEY_DAYS + 1) < KEY_DAYS
    ]
    return soon or [Finding("keys", "ok", f"{len(valid)} valid")]
