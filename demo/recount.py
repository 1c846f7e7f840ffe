"""A recount of the whole log, sharing no code with the aggregator: plain consumer, plain dicts.

Identity of feedback as design section 4 has it: (tenant, trace, feedback_id); the highest revision
wins, the first in the log where two are equal. What was given once counts once, whatever was
edited or withdrawn later.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from aiokafka import AIOKafkaConsumer

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


async def entries_of(
    bootstrap: str, *topics: str, timeout_s: float = READ_TIMEOUT_S
) -> AsyncIterator[LogEntry]:
    """Every committed record of the topics up to their present ends, in the log's order.

    Raises:
        TimeoutError: for `timeout_s` the brokers handed nothing over.

    """
    consumer = AIOKafkaConsumer(
        *topics,
        bootstrap_servers=bootstrap,
        isolation_level="read_committed",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    try:
        async with asyncio.timeout(timeout_s):
            await consumer.start()
            ends = await consumer.end_offsets(sorted(consumer.assignment()))
            left = {place for place in ends if await consumer.position(place) < ends[place]}
        heard_at = time.monotonic()
        while left:
            batches = await consumer.getmany(*left, timeout_ms=500)
            if batches:
                heard_at = time.monotonic()
            elif time.monotonic() - heard_at > timeout_s:
                raise TimeoutError(f"nothing came of {left} for {timeout_s:g} s")
            for place, records in batches.items():
                for record in records:
                    if record.offset < ends[place]:
                        yield _entry(record)
            left = {place for place in left if await consumer.position(place) < ends[place]}
    finally:
        await consumer.stop()


async def read(bootstrap: str, *topics: str) -> list[LogEntry]:
    """What `entries_of` gives, as a list."""
    return [entry async for entry in entries_of(bootstrap, *topics)]


async def recount(bootstrap: str) -> LogRecount:
    """Counts interactions, feedback and votes from the log's beginning; keeps no texts."""
    counting = _Counting()
    async for entry in entries_of(bootstrap, INTERACTIONS, FEEDBACK):
        counting.add(entry)
    return counting.end()


def count(entries: Iterable[LogEntry]) -> LogRecount:
    """The recount of these records; the order between topics does not matter."""
    counting = _Counting()
    for entry in entries:
        counting.add(entry)
    return counting.end()


class _Counting:
    """A recount under way."""

    def __init__(self) -> None:
        self._found = LogRecount()
        self._versions: dict[tuple[str, str], str] = {}
        """By tenant and trace."""
        self._given: dict[tuple[str, str, str], str] = {}
        """By tenant, trace or comparison, and feedback: its type."""

    def add(self, entry: LogEntry) -> None:
        """Count one record."""
        if entry.topic == INTERACTIONS:
            self._add_interaction(entry.body)
        elif entry.kind == "ratchet.vote.cast.v1":
            body = entry.body
            identity = (body["tenant"], body["comparison_id"], body["comparison_id"])
            if identity not in self._given:
                self._given[identity] = "vote"
                self._found.votes[_verdict(body)] += 1
        elif entry.kind == "ratchet.feedback.submitted.v1":
            body = entry.body
            identity = (body["tenant"], body["trace_id"], body["feedback_id"])
            self._given.setdefault(identity, body["type"])

    def _add_interaction(self, body: dict[str, Any]) -> None:
        found, identity = self._found, (body["tenant"], body["trace_id"])
        if identity in self._versions:
            found.duplicates += 1
            return
        self._versions[identity] = body["version"]
        found.requests[body["version"], body["outcome"]] += 1
        for attempt in body["attempts"]:
            found.attempts[attempt["version"], attempt["outcome"]] += 1
            if attempt["arm"] == "candidate":
                begun = datetime.fromisoformat(body["started_at"]).timestamp()
                found.exposures.setdefault(attempt["version"], []).append(begun)

    def end(self) -> LogRecount:
        """The recount, once all records are counted."""
        found = self._found
        for (tenant, trace_id, _), kind in self._given.items():
            version = self._versions.get((tenant, trace_id))
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
