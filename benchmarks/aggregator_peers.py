"""Peers of the aggregator's benchmark: started in their own environment, their rate and what they count."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from benchmarks.rates import ProgressMark, Rate, slope
from benchmarks.stream_peers import OUTPUTS, topic_of
from deploy.local.processes import ROOT
from shared.contracts.topics import INTERACTIONS
from shared.kafka.log import NewRecord

STREAMS = ROOT / ".venv-bench-streams/bin/python"
BROKEN = b"{}"
"""Value of interactions that are none and become dead letters."""
SETTLE_S = 2.0
LIMIT_S = 240


@dataclass(frozen=True)
class PeerFigures:
    """How fast a peer was and what it came to; `written` are its records by OUTPUTS."""

    rate: Rate
    counts: Counter[str]
    written: list[int]


def peer_rate(name: str, bootstrap: str, total: int, directory: Path) -> PeerFigures | None:
    """What another framework folds a second at the same work; None where it is not installed."""
    if not STREAMS.exists():
        return None
    command = [str(STREAMS), "-m", "benchmarks.stream_peers", name]
    command += [bootstrap, str(directory / name), str(total)]
    marks: list[ProgressMark] = []
    counts: Counter[str] = Counter()
    log = directory / f"{name}.log"
    with (
        log.open("wb") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        ended = threading.Timer(LIMIT_S, process.kill)
        ended.start()
        try:
            for line in process.stdout:
                mark, *fields = line.rstrip("\n").split("\t")
                if mark != "seen":
                    continue
                seen, wall_s, cpu_s, said = fields
                marks.append(ProgressMark(int(seen), float(wall_s), float(cpu_s)))
                counts = Counter(json.loads(said))
                if int(seen) >= total:
                    break
            written = asyncio.run(settled(bootstrap, [topic_of(name, one) for one in OUTPUTS]))
        finally:
            ended.cancel()
            process.kill()
    if not marks or marks[-1].seen < total:
        print(f"{name} folded {marks[-1:]} of {total}:\n{log.read_text()[-2000:]}", file=sys.stderr)
        return None
    return PeerFigures(slope(marks, total), counts, written)


async def settled(bootstrap: str, topics: Sequence[str]) -> list[int]:
    """How many records topics have, in their order, once it does not change any more."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap)
    await consumer.start()
    try:
        places = {
            topic: [TopicPartition(topic, one) for one in range(partitions)]
            for topic, partitions in (await _partitions(bootstrap, topics)).items()
        }
        found: list[int] = []
        async with asyncio.timeout(LIMIT_S):
            while True:
                before, found = found, []
                for topic in topics:
                    ends = await consumer.end_offsets(places[topic])
                    found.append(sum(ends.values()))
                if found == before:
                    return found
                await asyncio.sleep(SETTLE_S)
    finally:
        await consumer.stop()


async def _partitions(bootstrap: str, topics: Sequence[str]) -> dict[str, int]:
    """How many partitions topics have; a consumer knows those alone to which it is subscribed."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        described: list[Any] = await admin.describe_topics(list(topics))
    finally:
        await admin.close()
    found = {one["topic"]: len(one["partitions"]) for one in described}
    assert all(found.get(topic) for topic in topics), f"topics are missing: {topics}, {found}"
    return {topic: found[topic] for topic in topics}


def in_log(records: Sequence[NewRecord]) -> Counter[str]:
    """How many interactions by version and feedbacks by version and type the log has."""
    counts: Counter[str] = Counter()
    versions: dict[str, str] = {}
    for record in records:
        event = json.loads(record.value or b"")
        if record.topic == INTERACTIONS:
            version = versions[record.key] = event["version"]
            counts[version] += 1
        else:
            counts[f"{versions[record.key]}/{event['type']}"] += 1
    return counts
