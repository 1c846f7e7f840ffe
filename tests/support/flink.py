"""The Flink twin as a bounded job over a log, and the figures that it and the aggregator wrote."""

from __future__ import annotations

import json
import subprocess
from collections import defaultdict
from datetime import datetime
from pathlib import Path

from deploy.local.processes import ROOT
from services.aggregator.aggregates import FIGURES
from shared.contracts.topics import QUALITY
from shared.kafka.log import Record, read_to_end
from shared.kafka.producer import KafkaLog

FOLDER = ROOT / "deploy" / "flink"
Figures = dict[tuple[str, str, float], tuple[float, ...]]
"""(version, window, start in seconds) -> the figures, in the order of `FIGURES`."""


def run_twin(bootstrap: str, folder: Path, *, timeout_s: float) -> None:
    """Run the twin on a mini-cluster up to the log's present end.

    Raises:
        AssertionError: Flink refused a statement, or the job failed.
    """
    starts = "'scan.startup.mode' = 'earliest-offset',"
    bounded = f"{starts} 'scan.bounded.mode' = 'latest-offset',"
    tables = (FOLDER / "tables.sql").read_text().replace(starts, bounded)
    assert tables.count("scan.bounded.mode") == 2
    run_sql(
        bootstrap,
        folder,
        tables=f"SET 'table.dml-sync' = 'true';\n{tables}",
        statements=(FOLDER / "quality.sql").read_text(),
        timeout_s=timeout_s,
    )


def compare(bootstrap: str, folder: Path, *, timeout_s: float) -> str:
    """What `compare.sql` prints."""
    return run_sql(
        bootstrap,
        folder,
        tables=(FOLDER / "tables.sql").read_text(),
        statements=(FOLDER / "compare.sql").read_text(),
        timeout_s=timeout_s,
    )


def run_sql(bootstrap: str, folder: Path, *, tables: str, statements: str, timeout_s: float) -> str:
    """Run statements over tables with the brokers' address of a test; what the client prints."""
    for name, text in (("tables", tables), ("statements", statements)):
        (folder / f"{name}.sql").write_text(text.replace("kafka:9092", bootstrap))
    done = subprocess.run(
        [
            *(FOLDER / "sql-client.sh", "-i", folder / "tables.sql"),
            *("-f", folder / "statements.sql"),
        ],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-4000:]
    assert "[ERROR]" not in said, said[-4000:]
    return done.stdout


async def newest_values(log: KafkaLog, topic: str) -> list[dict[str, object]]:
    """The newest value of each key of a compacted topic."""
    newest: dict[str, Record] = {}
    for record in await read_to_end(log, topic, timeout_s=60):
        newest[record.key] = record
    return [json.loads(record.value) for record in newest.values() if record.value]


async def twin_figures(log: KafkaLog) -> Figures:
    """What the twin has of each window."""
    return {
        (str(row["version"]), str(row["window"]), _seconds(row["start"])): tuple(
            float(str(row[name])) for name in FIGURES
        )
        for row in await newest_values(log, "ratchet-flink.quality.v1")
    }


async def aggregator_figures(log: KafkaLog) -> Figures:
    """What the aggregator has of each window, summed over partitions."""
    sums: dict[tuple[str, str, float], list[float]] = defaultdict(lambda: [0.0] * len(FIGURES))
    for row in await newest_values(log, QUALITY):
        key = (str(row["version"]), str(row["window"]), _seconds(row["start"]))
        for place, name in enumerate(FIGURES):
            sums[key][place] += float(str(row[name]))
    return {key: tuple(values) for key, values in sums.items()}


def differences(one: Figures, other: Figures) -> list[str]:
    """What two have differently, in words; a window that one lacks counts as zeros."""
    nothing = (0.0,) * len(FIGURES)
    return [
        f"{key} {name}: {mine} and {yours}"
        for key in sorted(one.keys() | other.keys())
        for name, mine, yours in zip(
            FIGURES, one.get(key, nothing), other.get(key, nothing), strict=True
        )
        if mine != yours
    ]


def _seconds(stamp: object) -> float:
    return datetime.fromisoformat(str(stamp)).timestamp()
