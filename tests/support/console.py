"""Console server: the control API on a port of its own, with a rollout under way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn

from services.rollout.access import Access
from services.rollout.api import RolloutApi
from services.rollout.audit import AuditLog
from services.rollout.console.operator_actions import OperatorActions
from services.rollout.console.operator_views import OperatorViews
from services.rollout.counters import (
    ANSWERS,
    COUNTED,
    REQUESTS,
    SCORE_COUNT,
    SCORE_SUM,
    SLOW,
    CounterSeries,
)
from services.rollout.live_figures import LiveFigures
from services.rollout.registrations import Registrations
from services.rollout.routes import create_app, guarded
from services.rollout.state import RolloutState
from services.rollout.strategy_files import StrategyFolder, parse
from shared.clock import SystemClock
from shared.contracts.topics import ROLLOUTS, VERSIONS
from shared.keys import KeyRing
from shared.pseudonyms import AS_THEY_COME
from shared.tenants import ModelTenants
from shared.testing.clock import ManualClock
from shared.testing.log import MemoryLog
from tests.support.waiting import eventually
from tests.unit.rollout.fakes import ControllerHarness, FakeRedis, register

ARMS = (("candidate", "v2"), ("stable", "v1"))
STRATEGIES = Path("services/rollout/strategies")
SLOW_WAY = parse(
    {
        "name": "slow",
        "steps": [
            {"setWeight": 20, "errorLimit": "5%"},
            {"pause": {"duration": "1h"}},
            {"analysis": {"minimum": {"requests": 100}}},
            {"setWeight": 100},
            {"pause": {"duration": "1h"}},
        ],
    }
)


class ConsoleHarness:
    """The control API on a port of its own, in a thread, with a rollout that is under way."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._loop = asyncio.new_event_loop()
        self._random = np.random.default_rng(9)
        self._totals: dict[tuple[str, str], float] = {}
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.url = ""

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run something in the service's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def start(self) -> None:
        clock = ManualClock()
        log = MemoryLog(partitions={ROLLOUTS: 1, VERSIONS: 1}, clock=clock)
        await register(log, "v1")
        self.harness = ControllerHarness(log, FakeRedis(clock), clock, self._directory)
        await self.harness.caught_up()
        await self.harness.round()
        await register(log, "v2")
        await eventually(lambda: self.harness.versions.registry.get("v2"), "v2 is known")
        self.state = await self.harness.controller.start(
            model="m",
            candidate="v2",
            strategy=SLOW_WAY,
            supersede=False,
            actor="ann",
            reason="week 12",
        )
        await self.harness.round()
        keys = KeyRing(required=False)
        controller, decisions = self.harness.controller, self.harness.decision_log
        registry, audit = self.harness.versions.registry, AuditLog(log)
        registrations = Registrations(log, registry, SystemClock(), self.harness.agents.bases)
        evaluations = self.harness.evaluations
        figures = LiveFigures(
            self.harness.daily_scores, self.harness.prometheus, self.harness.clock
        )
        api = RolloutApi(
            controller,
            decisions,
            registry,
            keys,
            StrategyFolder(STRATEGIES),
            audit,
            registrations,
            evaluations,
            figures,
        )
        views = OperatorViews(log, registry, decisions, clock)
        actions = OperatorActions(log, registry, clock, pseudonym=AS_THEY_COME.of)
        app = create_app(api, views, actions, Access(ModelTenants(), log, registry, decisions))
        config = uvicorn.Config(guarded(app, api), host="127.0.0.1", port=0, log_level="warning")
        self._server = uvicorn.Server(config)
        self._serving = asyncio.create_task(self._server.serve())
        await eventually(lambda: self._server.started, "the console is served")
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/"

    async def go_on(self, rounds: int, *, errors: float, every_s: float = 30.0) -> None:
        """Users go on, and so does the controller."""
        for _ in range(rounds):
            series = self._traffic({"candidate": errors, "stable": 0.01})
            at = self.harness.clock.now().timestamp() + every_s
            self.harness.prometheus.series = [
                CounterSeries(labels, ((at, value),)) for labels, value in series
            ]
            await self.harness.round(every_s)

    def _traffic(self, errors: dict[str, float]) -> Iterator[tuple[dict[str, str], float]]:
        for arm, version in ARMS:
            requests = int(self._random.poisson(60 if arm == "candidate" else 240))
            scores = int(self._random.binomial(requests, 0.2))
            new = {
                COUNTED: requests,
                SLOW: int(self._random.binomial(requests, 0.004)),
                REQUESTS: int(self._random.binomial(requests, errors[arm])),
                SCORE_COUNT: scores,
                SCORE_SUM: int(self._random.binomial(scores, 0.7)),
                ANSWERS: requests,
            }
            labels = {"rollout": self.state.rollout_id, "arm": arm, "version": version}
            more = {
                REQUESTS: {"outcome": "server_error"},
                ANSWERS: {"behaviour": "answered"},
            }
            for name, value in new.items():
                self._totals[name, arm] = self._totals.get((name, arm), 0.0) + value
                named = {**labels, "__name__": name, "router": "aa", **more.get(name, {})}
                yield named, self._totals[name, arm]

    def rollout(self) -> RolloutState:
        """The rollout as the log has it."""
        history = self.harness.decision_log.get(self.state.rollout_id)
        assert history is not None
        return history.state

    def close(self) -> None:
        async def end() -> None:
            self._server.should_exit = True
            await self._serving
            await self.harness.close()

        self.call(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
