"""The Flink twin as a bounded job over a log, and the figures that it and the aggregator wrote."""

from __future__ import annotations

import subprocess
from collections import defaultdict
from datetime import datetime
from pathlib import Path

from benchmarks.flink_peer import FOLDER, newest_values, sql_command, tables
from services.aggregator.aggregates import FIGURES
from shared.contracts.topics import QUALITY
from shared.kafka.producer import KafkaLog

Figures = dict[tuple[str, str, float], tuple[float, ...]]
"""(version, window, start in seconds) -> the figures, in the order of `FIGURES`."""


def run_twin(bootstrap: str, folder: Path, *, timeout_s: float) -> None:
    """Run the twin on a mini-cluster up to the log's present end.

    Raises:
        AssertionError: Flink refused a statement, or the job failed.
    """
    run_sql(
        bootstrap,
        folder,
        ddl=tables(bounded=True),
        statements=(FOLDER / "quality.sql").read_text(),
        timeout_s=timeout_s,
    )


def compare(bootstrap: str, folder: Path, *, timeout_s: float) -> str:
    """What `compare.sql` prints."""
    return run_sql(
        bootstrap,
        folder,
        ddl=(FOLDER / "tables.sql").read_text(),
        statements=(FOLDER / "compare.sql").read_text(),
        timeout_s=timeout_s,
    )


def run_sql(bootstrap: str, folder: Path, *, ddl: str, statements: str, timeout_s: float) -> str:
    """Run statements over tables with the brokers' address of a test; what the client prints."""
    done = subprocess.run(
        sql_command(bootstrap, folder, ddl=ddl, statements=statements),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-4000:]
    assert "[ERROR]" not in said, said[-4000:]
    return done.stdout


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
