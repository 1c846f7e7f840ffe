"""Weekly report from events: pairs, rollouts, versions and training runs of a week. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime

from shared.contracts.events.base import Event
from shared.contracts.events.preferences import PreferencePair, PreferenceRetracted
from shared.contracts.events.rollouts import Decision
from shared.contracts.events.training import TrainingProgress, TrainingRequested
from shared.contracts.events.versions import SettingsRecord, VersionRecord
from shared.registry.training_jobs import jobs_of
from shared.registry.versions import Version
from shared.reports.weekly import Weekly, count_preferences, forecast_of

WeekEvent = PreferencePair | PreferenceRetracted | TrainingRequested | TrainingProgress | Decision


class WeekEvents:
    """Keeps what the report of a week needs of a log's events about some models."""

    def __init__(self, start: datetime, end: datetime, is_about: Callable[[str], bool]) -> None:
        """`is_about` says whether the report is about a model."""
        self._start = start
        self._end = end
        self._is_about = is_about
        self._pairs: list[PreferencePair] = []
        self._retracted: set[str] = set()
        self._jobs: list[TrainingRequested | TrainingProgress] = []
        self._decisions: list[Decision] = []

    def add(self, event: Event) -> None:
        """Keep an event that concerns the week; those of a topic come in their order."""
        match event:
            case PreferencePair() if self._concerns(event.model, event.created_at):
                self._pairs.append(event)
            case PreferenceRetracted() if event.created_at < self._end:
                self._retracted.add(event.pair_id)
            case TrainingRequested() | TrainingProgress():
                self._jobs.append(event)
            case Decision() if self._concerns(event.model, event.at):
                self._decisions.append(event)
            case _:
                pass

    def report(self, versions: Iterable[Version], target: int, now: datetime) -> Weekly:
        """The report, without figures of live traffic; `versions` are the registry's."""
        registered = [
            version_row(one.record, one.lifecycle.value)
            for one in versions
            if self._concerns(one.record.model, one.record.created_at)
        ]
        counted = count_preferences(self._pairs, self._retracted, self._start)
        under_way = now < self._end
        return Weekly(
            start=self._start.date(),
            end=self._end.date(),
            target=target,
            preferences=counted,
            forecast=forecast_of(counted.total, now - self._start) if under_way else None,
            versions=tuple(registered),
            rollouts=tuple(rollout_rows(self._decisions)),
            trainings=tuple(training_rows(self._jobs, self._start, self._end, self._is_about)),
        )

    def _concerns(self, model: str, at: datetime) -> bool:
        return self._start <= at < self._end and self._is_about(model)


def version_row(record: VersionRecord | SettingsRecord, state: str) -> dict[str, str]:
    """A version of the week as a row."""
    return {
        "version": record.version,
        "model": record.model,
        "parent": record.parent or "–",
        "state": state,
    }


def rollout_rows(decisions: Iterable[Decision]) -> list[dict[str, str]]:
    """Rollouts that the week's decisions are about, by their last word; holds decide nothing."""
    words: dict[str, list[Decision]] = {}
    for decision in decisions:
        if decision.rollout_id and decision.kind != "hold":
            words.setdefault(decision.rollout_id, []).append(decision)
    last = {name: max(all_, key=lambda one: (one.token, one.seq)) for name, all_ in words.items()}
    return [
        {
            "rollout": name,
            "model": one.model,
            "candidate": one.candidate,
            "phase": one.phase.value,
            "decisions": str(len(words[name])),
            "last reason": one.reason,
        }
        for name, one in sorted(last.items(), key=lambda pair: pair[1].at)
    ]


def training_rows(
    events: Iterable[TrainingRequested | TrainingProgress],
    start: datetime,
    end: datetime,
    is_about: Callable[[str], bool],
) -> list[dict[str, str]]:
    """Jobs asked for in the week, oldest first."""
    rows = [
        {
            "job": job["job_id"],
            "model": job["model"],
            "method": job["algorithm"] or job["method"],
            "phase": job["phase"],
            "why": job.get("message") or "–",
            "at": job["requested_at"],
        }
        for job in jobs_of(events)
        if start <= datetime.fromisoformat(job["requested_at"]) < end and is_about(job["model"])
    ]
    return sorted(rows, key=lambda row: row["at"])
