"""What operators see beside rollouts, read from the log when they look: nothing is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from heapq import nlargest
from typing import Any, TypeVar

from pydantic import ValidationError

from services.rollout.access import has_letters
from services.rollout.console.quality import daily_figures, targets
from services.rollout.console.week_report import read_week, week_report
from services.rollout.decision_log import DecisionLog
from services.rollout.errors import AuditUnavailable, Unknown
from services.rollout.trained_datasets import carded, summarised, trainings
from shared.clock import Clock
from shared.contracts.events.api_keys import ApiKeyIssued
from shared.contracts.events.dead_letters import DeadLetter
from shared.contracts.events.erasures import ErasureCompleted, ErasureRequested
from shared.contracts.events.quality import QualityWindow
from shared.contracts.topics import ERASURES, QUALITY
from shared.http.problems import InvalidField
from shared.kafka.deadletters import Replays, dead_letters_to_end, place_of
from shared.kafka.log import EventLog, LogUnavailable, Record, read_events, read_to_end
from shared.registry.api_keys import read_keys
from shared.registry.record_differences import differences
from shared.registry.training_jobs import FINAL, read_jobs
from shared.registry.versions import Registry
from shared.reports.weekly import week_of
from shared.reports.weekly_events import WeekEvents
from shared.tenants import OperatorScope
from shared.validation import field_refusal

T = TypeVar("T")
NEWEST = 5_000
"""Records of each partition that one look reads at most."""
SHOWN = 200
"""Rows of one answer at most, the newest."""
READ_S = 15.0
READS_AT_A_TIME = 2
MAX_BODY = 2_000
"""Characters of a dead letter's body that are shown."""
WHOLE_DAY = b'"1d"'
"""In the bytes of a window of one day."""


class OperatorViews:
    """Reads topics on demand, READS_AT_A_TIME at a time and the newest NEWEST records only."""

    def __init__(
        self, event_log: EventLog, registry: Registry, decisions: DecisionLog, clock: Clock
    ) -> None:
        self._log = event_log
        self._registry = registry
        self._decisions = decisions
        self._clock = clock
        self._turn = asyncio.Semaphore(READS_AT_A_TIME)

    async def jobs(self, scope: OperatorScope) -> list[dict[str, Any]]:
        """Training jobs in a key's scope with their newest progress, the newest job first.

        Raises:
            AuditUnavailable: the log was not read in READ_S seconds.

        """
        jobs = await self._read(lambda: read_jobs(self._log, newest=NEWEST))
        seen = [job for job in jobs if scope.has_model(job["model"])]
        return [_training_job(job) for job in seen[::-1][:SHOWN]]

    def datasets(self, scope: OperatorScope) -> list[dict[str, Any]]:
        """Datasets in a key's scope that versions and reward models were trained on, newest first."""
        found: dict[str, dict[str, Any]] = {}
        for one in trainings(self._registry):
            if scope.has_model(one.record.model):
                shown = found.setdefault(one.record.dataset.dataset_id, summarised(one))
                shown["used_by"].append(one.name)
                shown["erased_rows"] = max(shown["erased_rows"], one.erased_rows)
        newest = sorted(found.values(), key=lambda one: one["created_at"], reverse=True)
        return newest[:SHOWN]

    def dataset(self, dataset_id: str, scope: OperatorScope) -> dict[str, Any]:
        """A dataset with its card, splits and filters, and what of a key's scope was trained on it.

        Raises:
            Unknown: nothing was trained on such a dataset.

        """
        found = [
            one
            for one in trainings(self._registry, dataset_id)
            if scope.has_model(one.record.model)
        ]
        if not found:
            raise Unknown(f"dataset {dataset_id[:200]}: unknown; GET /v1/datasets lists them")
        return carded(found)

    async def keys(self, scope: OperatorScope) -> list[dict[str, Any]]:
        """API keys in a key's scope that were not revoked, without their hashes, the newest first.

        Raises:
            AuditUnavailable: the log was not read in READ_S seconds.

        """
        keys = await self._read(lambda: read_keys(self._log))
        seen = [key for key in keys.values() if scope.has_tenant(key.tenant)]
        newest = sorted(seen, key=lambda key: key.issued_at, reverse=True)
        return [self._api_key(key) for key in newest[:SHOWN]]

    async def dead_letters(self, scope: OperatorScope) -> list[dict[str, Any]]:
        """The newest records in a key's scope that could not be read, the newest first.

        Raises:
            AuditUnavailable: the log was not read in READ_S seconds.

        """
        return await self._read(lambda: self._newest_letters(scope))

    async def _newest_letters(self, scope: OperatorScope) -> list[dict[str, Any]]:
        replays = Replays()
        letters = dead_letters_to_end(self._log, newest=NEWEST, replays=replays)
        async with aclosing(letters):
            # A body may have 200,000 characters: it is cut before the next letter is read.
            shown = [
                (
                    letter.at,
                    letter.model_copy(update={"body": letter.body[:MAX_BODY], "headers": {}}),
                )
                async for letter in letters
                if has_letters(scope, letter.source_topic)
            ]
        newest = nlargest(SHOWN, shown, key=lambda one: one[0])
        return [_dead_letter(letter) | replays.shown(letter) for _, letter in newest]

    async def erasures(self, scope: OperatorScope) -> list[dict[str, Any]]:
        """Erasures of people in a key's scope, each with its proof once it is done, the newest first.

        Raises:
            AuditUnavailable: the log was not read in READ_S seconds.

        """
        events = await self._read(
            lambda: read_events(
                self._log,
                (ERASURES,),
                ErasureRequested,
                ErasureCompleted,
                timeout_s=READ_S,
                newest=NEWEST,
            )
        )
        done = {one.erasure_id: one for one in events if isinstance(one, ErasureCompleted)}
        asked = {one.erasure_id: one for one in events if isinstance(one, ErasureRequested)}
        seen = [one for one in asked.values() if scope.has_tenant(one.tenant)]
        newest = sorted(seen, key=lambda one: one.requested_at, reverse=True)[:SHOWN]
        return [_erasure(one, done.get(one.erasure_id)) for one in newest]

    async def quality(self, scope: OperatorScope) -> dict[str, Any]:
        """Figures of versions in a key's scope by day against their targets.

        Raises:
            AuditUnavailable: the log was not read in READ_S seconds.

        """
        days = [
            one
            for one in daily_figures(await self._whole_days())
            if scope.has_model(self._model_of(one["version"]))
        ]
        return {"targets": targets(), "days": days[:SHOWN]}

    async def report(
        self, day: str, model: str, target: int, scope: OperatorScope
    ) -> dict[str, Any]:
        """The report of the week around a day, else of the last seven days; see `Weekly`.

        It is about a model or, empty, all in a key's scope. `whole` is False where the week has
        more records than the newest NEWEST of a partition.

        Raises:
            InvalidField: the text is no day.
            AuditUnavailable: the log was not read in READ_S seconds.

        """
        try:
            start, end = week_of(day, self._clock.now())
        except ValueError:
            raise field_refusal(
                InvalidField, "week", f"{day[:40]!r} is no day", "write it as 2026-11-25"
            ) from None
        week = WeekEvents(start, end, lambda one: model in ("", one) and scope.has_model(one))
        whole = await self._read(
            lambda: read_week(self._log, week, start, timeout_s=READ_S, newest=NEWEST)
        )
        histories = self._decisions.histories(model)
        decisions = [decision for history in histories for decision in history.all()]
        versions = [
            one for one in self._registry.versions(model) if scope.has_model(one.record.model)
        ]
        names = {version.record.version for version in versions}
        days = [one for one in daily_figures(await self._whole_days()) if one["version"] in names]
        now = self._clock.now()
        return {**await week_report(week, decisions, versions, days, target, now), "whole": whole}

    async def _whole_days(self) -> list[QualityWindow]:
        def whole_day(record: Record) -> bool:
            return WHOLE_DAY in (record.value or b"")

        records = await self._read(
            lambda: read_to_end(self._log, QUALITY, timeout_s=READ_S, keep=whole_day, newest=NEWEST)
        )
        windows: list[QualityWindow] = []
        for record in records:
            with suppress(ValidationError):
                windows.append(QualityWindow.model_validate_json(record.value or b""))
        return windows

    def differences(self, first: str, second: str) -> dict[str, Any]:
        """What differs between two versions' records.

        Raises:
            Unknown: there is no such version.

        """
        old, new = (self._record(name) for name in (first, second))
        return {"first": first, "second": second, "differences": differences(old, new)}

    def _model_of(self, name: str) -> str:
        version = self._registry.get(name)
        return version.record.model if version else ""

    def _record(self, name: str) -> dict[str, Any]:
        version = self._registry.get(name)
        if version is None:
            raise Unknown(f"version {name}: unknown; GET /v1/versions lists them")
        return version.record.model_dump(mode="json")

    def _api_key(self, key: ApiKeyIssued) -> dict[str, Any]:
        expired = key.expires_at is not None and key.expires_at <= self._clock.now()
        return {
            **key.model_dump(mode="json", exclude={"sha256"}),
            "state": "expired" if expired else "valid",
        }

    async def _read(self, work: Callable[[], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(READ_S), self._turn:
                return await work()
        except (LogUnavailable, TimeoutError) as error:
            raise AuditUnavailable(
                f"the log could not be read: {error or f'not in {READ_S:g} s'}; try again"
            ) from None


def _training_job(job: dict[str, Any]) -> dict[str, Any]:
    method = job["algorithm"] or job["method"]
    return {**job, "method": method, "cancellable": job["phase"] not in FINAL}


def _dead_letter(letter: DeadLetter) -> dict[str, Any]:
    return {
        **letter.model_dump(mode="json", exclude={"headers"}),
        "place": "/".join(str(part) for part in place_of(letter)),
    }


def _erasure(asked: ErasureRequested, done: ErasureCompleted | None) -> dict[str, Any]:
    proof = (
        done.model_dump(mode="json", include={"completed_at", "traces", "examples", "products"})
        if done
        else {}
    )
    return {
        **asked.model_dump(mode="json", exclude={"subjects"}),
        "subject": asked.subjects[0],
        "state": "completed" if done else "requested",
        "proof": proof,
    }
