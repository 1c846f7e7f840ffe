"""Weekly report for the console: a week's events folded as they are read, a bounded number."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from datetime import date, datetime
from typing import Any, get_args

from shared.contracts.events.rollouts import Decision
from shared.contracts.topics import PREFERENCES, TRAINING_JOBS, TRAINING_RUNS
from shared.kafka.envelope import UnreadableRecord, decode, models_by_type
from shared.kafka.log import EventLog, records_to_end
from shared.registry.versions import Version
from shared.reports.weekly import Weekly
from shared.reports.weekly_events import WeekEvent, WeekEvents

MODELS = models_by_type(*get_args(WeekEvent))


async def read_week(
    log: EventLog, week: WeekEvents, start: datetime, *, timeout_s: float, newest: int
) -> bool:
    """Feed a week its pairs and training runs; False where older ones of it were not read.

    Raises:
        LogUnavailable: the topics' end was not reached in time.

    """
    counts, oldest = Counter[tuple[str, int]](), dict[tuple[str, int], int]()
    records = records_to_end(
        log, PREFERENCES, TRAINING_JOBS, TRAINING_RUNS, timeout_s=timeout_s, newest=newest
    )
    async for record in records:
        place = (record.topic, record.partition)
        counts[place] += 1
        oldest.setdefault(place, record.timestamp_ms)
        try:
            week.add(decode(record.headers, record.value, MODELS))
        except UnreadableRecord:
            continue
    since = start.timestamp() * 1000
    return all(counts[place] < newest or oldest[place] < since for place in counts)


async def week_report(
    week: WeekEvents,
    decisions: Iterable[Decision],
    versions: Iterable[Version],
    days: Iterable[Mapping[str, Any]],
    target: int,
    now: datetime,
) -> dict[str, Any]:
    """The report as JSON has it, with next actions; `days` as `daily_figures` gives them."""
    for decision in decisions:
        week.add(decision)
    # Some ten thousand pairs take a second to count, in which the controller must not stand still.
    report = await asyncio.to_thread(week.report, list(versions), target, now)
    report = with_figures(report, days)
    return {**asdict(report), "actions": report.actions()}


def with_figures(report: Weekly, days: Iterable[Mapping[str, Any]]) -> Weekly:
    """With each version's figures of the week's last day that has any."""
    week = [one for one in days if report.start <= date.fromisoformat(one["day"]) < report.end]
    last = max((one["day"] for one in week), default="")
    ended = [one for one in week if one["day"] == last]
    return replace(
        report,
        figures={
            one["version"]: {
                name: value for name, value in one["figures"].items() if value is not None
            }
            for one in ended
        },
        errors={one["version"]: one["errors"] for one in ended if one["errors"] is not None},
    )
