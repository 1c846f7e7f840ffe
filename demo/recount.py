"""A recount of the whole log, sharing no code with the aggregator: plain consumer, plain dicts.

Identity of feedback as design section 4 has it: (tenant, trace, feedback_id); the highest revision
wins, the first in the log where two are equal. What was given once counts once, whatever was
edited or withdrawn later.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from demo.tally import nested

INTERACTIONS, FEEDBACK = "ratchet.interactions.v1", "ratchet.feedback.v1"
ROLLOUTS, PREFERENCES = "ratchet.rollouts.v1", "ratchet.preferences.v1"
READ_TIMEOUT_S = 60.0


@dataclass
class LogRecount:
    """What the log holds, counted once each."""

    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    attempts: Counter[tuple[str, str]] = field(default_factory=Counter)
    feedback: Counter[tuple[str, str]] = field(default_factory=Counter)
    votes: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    exposures: dict[str, list[float]] = field(default_factory=dict)
    unjoined: int = 0
    duplicates: int = 0

    def as_json(self) -> dict[str, Any]:
        """Nested plain dictionaries, sorted by name."""
        return {
            "requests": nested(self.requests),
            "attempts": nested(self.attempts),
            "feedback": nested(self.feedback),
            "unjoined": self.unjoined,
            "duplicates": self.duplicates,
        }


@dataclass(frozen=True)
class LogEntry:
    """One record of the log, its JSON parsed."""

    topic: str
    kind: str
    key: str
    offset: int
    body: dict[str, Any]


async def read(bootstrap: str, *topics: str, timeout_s: float = READ_TIMEOUT_S) -> list[LogEntry]:
    """Every committed record of the topics up to their present ends, in the log's order.

    Raises:
        TimeoutError: the brokers did not hand everything over in time.

    """
    consumer = AIOKafkaConsumer(
        *topics,
        bootstrap_servers=bootstrap,
        isolation_level="read_committed",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    entries: list[LogEntry] = []
    async with asyncio.timeout(timeout_s):
        await consumer.start()
        try:
            places = sorted(consumer.assignment())
            ends = await consumer.end_offsets(places)
            left: set[TopicPartition] = set()
            for place in places:
                if await consumer.position(place) < ends[place]:
                    left.add(place)
            while left:
                batches = await consumer.getmany(*left, timeout_ms=500)
                for place, records in batches.items():
                    entries += [_entry(record) for record in records if record.offset < ends[place]]
                for place in list(left):
                    if await consumer.position(place) >= ends[place]:
                        left.discard(place)
        finally:
            await consumer.stop()
    return entries


async def recount(bootstrap: str, timeout_s: float = READ_TIMEOUT_S) -> LogRecount:
    """Counts interactions, feedback and votes from the log's beginning."""
    return count(await read(bootstrap, INTERACTIONS, FEEDBACK, timeout_s=timeout_s))


def count(entries: list[LogEntry]) -> LogRecount:
    """The recount of these records; the order between topics does not matter."""
    found = LogRecount()
    versions: dict[tuple[str, str], str] = {}
    for entry in entries:
        if entry.topic != INTERACTIONS:
            continue
        body = entry.body
        identity = (body["tenant"], body["trace_id"])
        if identity in versions:
            found.duplicates += 1
            continue
        versions[identity] = body["version"]
        found.requests[body["version"], body["outcome"]] += 1
        for attempt in body["attempts"]:
            found.attempts[attempt["version"], attempt["outcome"]] += 1
            if attempt["arm"] == "candidate":
                begun = datetime.fromisoformat(body["started_at"]).timestamp()
                found.exposures.setdefault(attempt["version"], []).append(begun)
    given: dict[tuple[str, str, str], str] = {}
    for entry in entries:
        body = entry.body
        if entry.kind == "ratchet.vote.cast.v1":
            identity = (body["tenant"], body["comparison_id"], body["comparison_id"])
            if identity not in given:
                given[identity] = "vote"
                found.votes[_verdict(body)] += 1
        elif entry.kind == "ratchet.feedback.submitted.v1":
            identity = (body["tenant"], body["trace_id"], body["feedback_id"])
            given.setdefault(identity, body["type"])
    for (tenant, trace_id, _), kind in given.items():
        version = versions.get((tenant, trace_id))
        if version is None and kind != "vote":
            found.unjoined += 1
            continue
        found.feedback[version or "", kind] += 1
    return found


def _verdict(body: dict[str, Any]) -> tuple[str, str, str]:
    left, right = body["left"]["version"], body["right"]["version"]
    match body["choice"]:
        case "left":
            return left, right, "chosen"
        case "right":
            return right, left, "chosen"
        case other:
            first, second = sorted((left, right))
            return first, second, other


def _entry(record: Any) -> LogEntry:
    headers = {name: value.decode() for name, value in record.headers}
    body = json.loads(record.value) if record.value else {}
    key = record.key.decode() if record.key else ""
    return LogEntry(record.topic, headers.get("ce_type", ""), key, record.offset, body)
