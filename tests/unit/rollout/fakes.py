"""What the controller talks to, in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from redis.exceptions import ConnectionError as RedisConnectionError

from services.rollout.controller import Controller, ControllerPolicy
from services.rollout.counters import COUNTED, REQUESTS, CounterSeries
from services.rollout.daily_scores import DailyScores
from services.rollout.decision_log import DecisionLog
from services.rollout.errors import EvidenceUnavailable
from services.rollout.evaluations import Evaluations
from services.rollout.evidence_store import EvidenceStore
from services.rollout.leadership import DecisionLogFollower, Leadership
from services.rollout.metrics import RolloutMetrics
from services.rollout.shadow_results import ShadowResults
from services.rollout.state import EngineReport, RolloutState
from services.rollout.strategy import Strategy
from services.rollout.strategy_files import parse
from shared.contracts.events.rollouts import Decision
from shared.contracts.events.versions import (
    DatasetRef,
    Fingerprint,
    GateResult,
    VersionRecord,
    record_key,
)
from shared.contracts.topics import ROLLOUT_HOLDS, ROLLOUTS, VERSIONS
from shared.http.reward_scores import ScoredAnswer
from shared.kafka.log import Position
from shared.registry.follow import RegistryFollower
from shared.registry.routing import RoutingState
from shared.testing.clock import ManualClock
from shared.testing.log import MemoryLog
from tests.support.waiting import eventually

STRATEGY = parse(
    {
        "name": "s",
        "steps": [
            {"setWeight": 5, "errorLimit": 0.05},
            {"analysis": {"minimum": {"requests": 10}}},
            {"setWeight": 100},
            {"pause": {"duration": 5}},
        ],
    }
)


class FakeRedis:
    """A lease with an expiry on the test's clock; `away` makes every call fail."""

    def __init__(self, clock: ManualClock) -> None:
        self.away = False
        self._clock = clock
        self._lease: tuple[str, float] = ("", 0.0)

    def flush(self) -> None:
        self._lease = ("", 0.0)

    async def set(self, _: str, value: str, *, nx: bool, px: int) -> bool:
        self._check()
        if self._holder():
            return False
        self._lease = (value, self._clock.monotonic() + px / 1000)
        return True

    def register_script(self, text: str) -> Any:
        async def call(*, keys: list[str], args: list[Any]) -> int:
            self._check()
            if self._holder() != args[0]:
                return 0
            if "PEXPIRE" in text:
                self._lease = (args[0], self._clock.monotonic() + args[1] / 1000)
            else:
                self.flush()
            return 1

        return call

    def _holder(self) -> str:
        holder, until = self._lease
        return holder if self._clock.monotonic() < until else ""

    def _check(self) -> None:
        if self.away:
            raise RedisConnectionError("away")


class FakeView:
    """Keeps what it was told, and checks that it had been written first."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log
        self._read = {ROLLOUTS: 0, ROLLOUT_HOLDS: 0}
        self._written: list[RoutingState] = []
        self.states: list[RoutingState] = []

    async def put(self, state: RoutingState) -> bool:
        for topic in (ROLLOUTS, ROLLOUT_HOLDS):
            records = self._log.all(topic)
            self._written += [
                RoutingState.of(Decision.model_validate_json(record.value))
                for record in records[self._read[topic] :]
                if record.value and b'"kind"' in record.value
            ]
            self._read[topic] = len(records)
        assert state in self._written, "acted before it was written"
        self.states.append(state)
        return True


class FakePrometheus:
    """Series that a test sets; `error` is raised instead."""

    def __init__(self) -> None:
        self.error = ""
        self.series: list[CounterSeries] = []
        self.missing = ""

    async def samples(self, _: str) -> list[CounterSeries]:
        if self.error:
            raise EvidenceUnavailable(self.error)
        return self.series

    async def zeros_missing(self, _: str) -> str:
        if self.error:
            raise EvidenceUnavailable(self.error)
        return self.missing


class FakeAgents:
    """One agent whose report a test sets."""

    def __init__(self) -> None:
        self.report = EngineReport(ready=True, generation=1, candidate_ready=True)
        self.refused: set[str] = set()
        self.served: set[str] = set()

    async def bases(self) -> set[str]:
        return set(self.served)

    async def reports(self, candidate: str) -> dict[str, EngineReport]:
        if candidate in self.refused:
            return {"agent": EngineReport(ready=True, generation=1, refused="another base")}
        return {"agent": self.report}

    async def reports_of(self, candidates: Sequence[str]) -> dict[str, dict[str, EngineReport]]:
        return {candidate: await self.reports(candidate) for candidate in candidates}


class FakeScorer:
    """A reward model that likes short answers; without a name there is none."""

    def __init__(self) -> None:
        self.name = ""

    async def scores(self, model: str, answers: Sequence[ScoredAnswer]) -> tuple[str, list[float]]:
        return self.name, [-float(len(text)) for _, text in answers] if self.name else []


class ControllerHarness:
    """One controller on a log that it may share with others."""

    def __init__(
        self,
        log: MemoryLog,
        redis: FakeRedis,
        clock: ManualClock,
        directory: Path,
        holder: str = "one",
        *,
        auto_start: bool = False,
        strategy: Strategy = STRATEGY,
        view: Any = None,
    ) -> None:
        self.log, self.redis, self.clock = log, redis, clock
        self.decision_log = DecisionLog()
        self.decisions = DecisionLogFollower(log, self.decision_log)
        self.versions = RegistryFollower(log)
        self.scorer = FakeScorer()
        self.evaluations = Evaluations(log, self.versions.registry, self.scorer, clock)
        self.shadow_results = ShadowResults(log, self.evaluations.take)
        self.daily_scores = DailyScores(log)
        self.view = view or FakeView(log)
        self.prometheus = FakePrometheus()
        self.agents = FakeAgents()
        self.leadership = Leadership(log, self.decisions, redis, clock, holder=holder)  # type: ignore[arg-type]
        self.metrics = CollectorRegistry()
        self.controller = Controller(
            policy=ControllerPolicy(strategy, auto_start, 1.0, 4.0, 30.0, 60.0),
            leadership=self.leadership,
            decision_log=self.decision_log,
            registry=self.versions.registry,
            view=self.view,  # type: ignore[arg-type]
            prometheus=self.prometheus,  # type: ignore[arg-type]
            agents=self.agents,  # type: ignore[arg-type]
            shadow_results=self.shadow_results,
            evidence_store=EvidenceStore(directory / holder),
            metrics=RolloutMetrics(self.metrics),
            clock=clock,
        )
        self._tasks = [
            asyncio.create_task(self.decisions.run()),
            asyncio.create_task(self.versions.run()),
            asyncio.create_task(self.shadow_results.run()),
            asyncio.create_task(self.evaluations.run()),
            asyncio.create_task(self.daily_scores.run()),
        ]

    async def caught_up(self) -> None:
        """All that is in the log was folded."""
        for topic in (ROLLOUTS, ROLLOUT_HOLDS):
            end = len(self.log.all(topic)) - 1
            await self.decisions.read_back(Position(topic, 0, end))
        await self.versions.caught_up(5)

    async def round(self, after_s: float = 1.0) -> None:
        """One round of the controller, later on the clock."""
        self.clock.advance(after_s)
        await self.controller.round()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def written(self) -> list[Decision]:
        """Every decision in the log, valid or fenced, by age."""
        found = [
            Decision.model_validate_json(record.value)
            for record in (*self.log.all(ROLLOUTS), *self.log.all(ROLLOUT_HOLDS))
            if record.value and b'"kind"' in record.value
        ]
        return sorted(found, key=lambda decision: decision.order)


async def register(
    log: MemoryLog,
    version: str,
    *,
    released: bool = True,
    base: str = "base",
    base_sha256: str = "",
    tenants: Mapping[str, int] | None = None,
    dataset: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> None:
    """A version as training registers it; `tenants` gave its rows, `dataset` has more fields."""
    record = VersionRecord(
        version=version,
        model="m",
        method="dpo",
        base=base,
        base_sha256=base_sha256,
        adapter_uri="memory://none",
        adapter_sha256="0" * 64,
        fingerprint=Fingerprint(dtype="float32", texts=()),
        dataset=DatasetRef(
            dataset_id="d",
            uri="memory://d",
            sha256="0" * 64,
            rows=sum((tenants or {"": 1}).values()),
            tenants={name: rows for name, rows in (tenants or {}).items() if name},
        ).model_copy(update=dict(dataset or {})),
        metrics=dict(metrics or {}),
        hyperparameters={},
        seed=0,
        code_revision="test",
        gate=GateResult(passed=released),
        job_id="job",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    await log.publish(VERSIONS, key=record_key(version), event=record, event_id=version)


class ControllerBench:
    """Makes controllers that share a log, a Redis and a clock."""

    def __init__(self, directory: Path) -> None:
        self.clock = ManualClock()
        self.log = MemoryLog(
            partitions={ROLLOUTS: 1, ROLLOUT_HOLDS: 1, VERSIONS: 1}, clock=self.clock
        )
        self.redis = FakeRedis(self.clock)
        self._directory = directory
        self._harnesses: list[ControllerHarness] = []

    async def harness(self, holder: str = "one", **more: Any) -> ControllerHarness:
        made = ControllerHarness(self.log, self.redis, self.clock, self._directory, holder, **more)
        self._harnesses.append(made)
        await made.caught_up()
        return made

    async def close(self) -> None:
        for harness in self._harnesses:
            await harness.close()


async def begun(bench: ControllerBench, **more: Any) -> tuple[ControllerHarness, RolloutState]:
    """A leader with v2 at 5 %."""
    await register(bench.log, "v1")
    harness = await bench.harness(**more)
    await harness.round()
    await register(bench.log, "v2")
    await until_known(harness, "v2")
    state = await start(harness)
    await harness.round()
    history = harness.decision_log.get(state.rollout_id)
    assert history is not None
    assert history.state.weight == 500
    return harness, history.state


async def start(
    harness: ControllerHarness,
    candidate: str = "v2",
    *,
    supersede: bool = False,
    again: bool = False,
) -> RolloutState:
    return await harness.controller.start(
        model="m",
        candidate=candidate,
        strategy=None,
        supersede=supersede,
        again=again,
        actor="ann",
        reason="try it",
    )


async def until_known(harness: ControllerHarness, version: str) -> None:
    await eventually(lambda: harness.versions.registry.get(version), f"{version} is known")


def traffic(
    harness: ControllerHarness, state: RolloutState, requests: float, failures: float = 0.0
) -> None:
    """What Prometheus has of the candidate; stable has as many requests and no failure."""
    at = harness.clock.now().timestamp()
    series: list[CounterSeries] = []
    for arm, version, failed in (("candidate", "v2", failures), ("stable", "v1", 0.0)):
        labels = {"rollout": state.rollout_id, "arm": arm, "version": version, "instance": "a"}
        series.append(CounterSeries({**labels, "__name__": COUNTED}, ((at, requests),)))
        outcome = {"__name__": REQUESTS, "outcome": "server_error"}
        series.append(CounterSeries({**labels, **outcome}, ((at, failed),)))
    harness.prometheus.series = series
