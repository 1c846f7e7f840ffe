"""The Flink twin (docs/flink.md) over the aggregator benchmark's log, on the mini-cluster of deploy/flink.

It computes the aggregator's figures and none of its other outputs, with two slots, so by the clock it may
use two cores. Its progress is what a completed checkpoint holds: the offsets of its group, which Flink
commits then. Checkpoints are taken each second, as the other peers commit. The rate begins at the first
tenth of the log as everyone's, so the start of the JVM and the job's planning are outside it; much of
the JVM's compilation is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import GroupCoordinatorNotAvailableError

from benchmarks.proxies import cpu_seconds
from benchmarks.rates import ProgressMark, Rate, slope
from deploy.local.processes import ROOT
from shared.kafka.log import Record, read_to_end
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection

FOLDER = ROOT / "deploy/flink"
ENVIRONMENT = ROOT / ".venv-flink"
GROUP = "ratchet-flink"
SINKS = tuple(f"ratchet-flink.{name}.v1" for name in ("quality", "feedback", "satisfaction"))
LIMIT_S = 600.0
CHECKPOINT_S = 1
LOOK_S = 0.2
"""Between two looks at the group's offsets."""


@dataclass(frozen=True)
class TwinFigures:
    """How fast the twin was and what it counted; seconds before its first checkpoint with records."""

    rate: Rate
    counts: Counter[str]
    start_s: float
    start_cpu_s: float


def installed() -> bool:
    """Whether `make flink` was run here."""
    return (ENVIRONMENT / "jars").is_dir()


def sink_topics(partitions: int) -> list[NewTopic]:
    """The twin's own topics, compacted."""
    compacted = {"cleanup.policy": "compact"}
    return [NewTopic(name, partitions, 1, topic_configs=compacted) for name in SINKS]


def tables(*, bounded: bool) -> str:
    """`tables.sql` for a client that waits for its job; a `bounded` one ends at the log's present end."""
    starts = "'scan.startup.mode' = 'earliest-offset',"
    text = (FOLDER / "tables.sql").read_text()
    assert text.count(starts) == 2
    if bounded:
        text = text.replace(starts, f"{starts} 'scan.bounded.mode' = 'latest-offset',")
    return f"SET 'table.dml-sync' = 'true';\n{text}"


def sql_command(bootstrap: str, folder: Path, *, ddl: str, statements: str) -> list[str]:
    """What runs statements over tables with this address of the brokers; writes both into a folder."""
    for name, text in (("tables", ddl), ("statements", statements)):
        (folder / f"{name}.sql").write_text(text.replace("kafka:9092", bootstrap))
    script = str(FOLDER / "sql-client.sh")
    return [script, "-i", str(folder / "tables.sql"), "-f", str(folder / "statements.sql")]


def twin_rate(bootstrap: str, records: int, directory: Path) -> TwinFigures | None:
    """What the twin counts a second of a log of so many records; None where it failed, which is printed."""
    folder = directory / "flink"
    folder.mkdir()
    command = sql_command(
        bootstrap,
        folder,
        ddl=f"SET 'execution.checkpointing.interval' = '{CHECKPOINT_S} s';\n{tables(bounded=False)}",
        statements=(FOLDER / "quality.sql").read_text(),
    )
    log = folder / "client.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=output, cwd=folder) as process,
    ):
        try:
            begun_s = time.monotonic()
            marks = asyncio.run(_marks(bootstrap, records, process))
        finally:
            process.kill()
    if not marks or marks[-1].seen < records:
        print(f"flink: {marks[-1:]} of {records}:\n{log.read_text()[-2000:]}", file=sys.stderr)
        return None
    counts = asyncio.run(_counts(bootstrap))
    first = marks[0]
    return TwinFigures(slope(marks, records), counts, first.wall_s - begun_s, first.cpu_s)


async def _marks(
    bootstrap: str, records: int, process: subprocess.Popen[bytes]
) -> list[ProgressMark]:
    """A mark for each change of the committed offsets, until all records, the job's end or the limit."""
    marks: list[ProgressMark] = []
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    deadline = time.monotonic() + LIMIT_S
    try:
        while process.poll() is None and time.monotonic() < deadline:
            seen = await _committed(admin)
            if seen > (marks[-1].seen if marks else 0):
                # It may have ended since the offsets were read.
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    used = cpu_seconds(process.pid)
                    marks.append(ProgressMark(seen, time.monotonic(), used))
            if seen >= records:
                break
            await asyncio.sleep(LOOK_S)
    finally:
        await admin.close()
    return marks


async def _committed(admin: AIOKafkaAdminClient) -> int:
    """Records before the group's offsets; 0 as long as the brokers know no coordinator of it."""
    try:
        offsets: Mapping[Any, Any] = await admin.list_consumer_group_offsets(GROUP)
    except GroupCoordinatorNotAvailableError:
        return 0
    return sum(max(0, one.offset) for one in offsets.values())


async def _counts(bootstrap: str) -> Counter[str]:
    log = KafkaLog(KafkaConnection(bootstrap), source="/ratchet/benchmark")
    await log.start()
    try:
        quality, feedback = [await newest_values(log, topic) for topic in SINKS[:2]]
    finally:
        await log.stop()
    return counts_of(quality, feedback)


async def newest_values(log: KafkaLog, topic: str) -> list[dict[str, Any]]:
    """The newest value of each key of a compacted topic."""
    newest: dict[str, Record] = {}
    for record in await read_to_end(log, topic, timeout_s=60):
        newest[record.key] = record
    return [json.loads(record.value) for record in newest.values() if record.value]


def counts_of(
    quality: Iterable[Mapping[str, Any]], feedback: Iterable[Mapping[str, Any]]
) -> Counter[str]:
    """Interactions by version, and feedback by version and type, of the newest rows of both sinks."""
    counts: Counter[str] = Counter()
    for row in quality:
        if row["window"] == "1d":
            counts[row["version"]] += row["interactions"]
    for row in feedback:
        counts[f"{row['version']}/{row['type']}"] += row["feedback"]
    return counts
