"""The rollout console in a browser: what people see of a rollout, and what they can do."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from playwright.sync_api import BrowserContext, Page, expect

from services.rollout.api import RolloutApi
from services.rollout.audit import AuditLog
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
from services.rollout.strategy import parse
from shared.clock import SystemClock
from shared.contracts.topics import ROLLOUTS, VERSIONS
from shared.keys import KeyRing
from shared.testing.clock import ManualClock
from shared.testing.log import MemoryLog
from tests.browser.conftest import SCREENSHOTS
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
        registrations = Registrations(log, registry, SystemClock())
        evaluations = self.harness.evaluations
        figures = LiveFigures(
            self.harness.daily_scores, self.harness.prometheus, self.harness.clock
        )
        api = RolloutApi(
            controller,
            decisions,
            registry,
            keys,
            STRATEGIES,
            audit,
            registrations,
            evaluations,
            figures,
        )
        config = uvicorn.Config(
            guarded(create_app(api), api), host="127.0.0.1", port=0, log_level="warning"
        )
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


@pytest.fixture
def console(tmp_path: Path) -> Iterator[ConsoleHarness]:
    made = ConsoleHarness(tmp_path)
    made.call(made.start())
    yield made
    made.close()


@pytest.fixture
def opened(context: BrowserContext, console: ConsoleHarness) -> Iterator[Page]:
    """The console; anything that the browser complains about fails the test."""
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.set_viewport_size({"width": 1_100, "height": 1_000})
    page.goto(console.url)
    expect(page.locator("#live")).to_contain_text("Live")
    yield page
    assert wrong == []


def picture(page: Page, name: str) -> None:
    """Leave a picture of what a window shows among the artefacts."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def test_people_see_the_difference_with_its_interval_and_every_decision(
    console: ConsoleHarness, opened: Page
) -> None:
    console.call(console.go_on(30, errors=0.01))
    expect(opened.locator("#sentence")).to_contain_text("v2 gets 20 % of the users")
    figures = opened.locator("#intervals figure")
    expect(figures.first).to_contain_text("Error rate")
    expect(figures.nth(1)).to_contain_text("Satisfaction")
    label = figures.first.locator("svg").get_attribute("aria-label") or ""
    assert re.search(r"difference -?\d+\.\d+ %, between -\d", label), label
    expect(opened.locator("#criteria")).to_contain_text("of 1,000")
    expect(opened.locator("#decisions li").first).to_contain_text("v2 went from 0 % to 20 %")
    expect(opened.locator("#versions")).to_contain_text("canary")
    picture(opened, "rollout-console")
    opened.emulate_media(color_scheme="dark")
    picture(opened, "rollout-console-dark")
    opened.set_viewport_size({"width": 390, "height": 844})
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390
    picture(opened, "rollout-console-phone")


def test_a_rollback_shows_without_a_reload(console: ConsoleHarness, opened: Page) -> None:
    expect(opened.locator("#sentence")).to_contain_text("20 %")
    console.call(console.go_on(30, errors=0.06))
    expect(opened.locator("#sentence")).to_contain_text("rolled back; everybody is on stable")
    expect(opened.locator("#decisions li").first).to_contain_text("v2 was taken back from 20 %")
    expect(opened.locator("#criteria .breached").first).to_be_visible()
    expect(opened.get_by_role("button", name="Start again")).to_be_visible()
    picture(opened, "rollout-console-rollback")


def test_a_person_aborts_by_keyboard_and_says_why(console: ConsoleHarness, opened: Page) -> None:
    opened.get_by_role("button", name="Abort").focus()
    opened.keyboard.press("Enter")
    expect(opened.locator("#ask")).to_be_visible()
    opened.keyboard.press("Escape")
    expect(opened.locator("#ask")).not_to_be_visible()
    assert console.rollout().weight == 2_000
    opened.keyboard.press("Enter")
    opened.keyboard.type("<b>wrong</b> data")
    opened.keyboard.press("Enter")
    expect(opened.locator("#sentence")).to_contain_text("aborted by a person")
    expect(opened.locator("#decisions li").first).to_contain_text("<b>wrong</b> data")
    assert console.rollout().weight == 0
