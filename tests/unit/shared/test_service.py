"""Background tasks, freshness and catch-up of a service."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from shared.backoff import Backoff
from shared.contracts.topics import USER_KEYS
from shared.http.server import stop_on_signals
from shared.kafka.log import EventLog, LogUnavailable
from shared.kafka.user_keys import UserKeys
from shared.observability.health import Health
from shared.service import background as background_module
from shared.service.background import BackgroundTasks
from shared.service.readiness import KEYS_WITHIN_S, catch_up, follow_user_keys, freshness
from shared.testing.clock import ManualClock
from shared.testing.log import MemoryLog, MemoryTail
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[3]


async def forever() -> None:
    await asyncio.Event().wait()


async def fails() -> None:
    raise ValueError("broken")


async def test_liveness_names_a_task_that_ended() -> None:
    tasks = BackgroundTasks()
    tasks.start("follower", forever())
    tasks.start("worker", fails())
    await asyncio.wait(tasks.tasks, timeout=0.01)
    assert tasks.ended() == "ended: worker; the log says why"
    errors = await tasks.finish(0.01)
    assert [str(error) for error in errors] == ["broken"]
    assert all(task.done() for task in tasks.tasks)


async def test_finish_waits_for_the_named_task_while_the_others_still_run() -> None:
    tasks, stop, seen = BackgroundTasks(), asyncio.Event(), []

    async def leader() -> None:
        await stop.wait()
        seen.append(tasks.tasks[0].done())

    tasks.start("follower", forever())
    tasks.start("leader", leader())
    stop.set()
    assert await tasks.finish(5, wait_for=("leader",)) == []
    assert seen == [False]
    assert tasks.tasks[0].cancelled()


async def test_finish_ends_although_a_task_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_module, "CANCEL_TIMEOUT_S", 0.05)
    release = asyncio.Event()

    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    tasks = BackgroundTasks()
    tasks.start("stubborn", stubborn())
    try:
        await asyncio.wait_for(tasks.finish(0.05), timeout=5)
        assert not tasks.tasks[0].done()
    finally:
        # Else the loop would wait for it for ever.
        release.set()
        await tasks.tasks[0]


def test_a_topic_is_fresh_until_its_limit() -> None:
    age = 15.0
    check = freshness(lambda: age)
    assert check() is None
    age = 15.1
    assert "15 s" in (check() or "")


class HeldLog(MemoryLog):
    """A log whose tails say nothing before `let_go`."""

    def __init__(self) -> None:
        super().__init__(partitions={USER_KEYS: 1})
        self.let_go = asyncio.Event()

    def tail(self, *topics: str, **options: Any) -> MemoryTail:
        tail = super().tail(*topics, **options)
        caught_up = tail.caught_up

        async def later(timeout_s: float) -> None:
            await self.let_go.wait()
            await caught_up(timeout_s)

        tail.caught_up = later
        return tail


async def test_a_service_is_not_ready_before_the_keys_of_texts_are_read() -> None:
    held, health, clock = HeldLog(), Health(), ManualClock()
    keys = UserKeys(cast("EventLog", held), b"s" * 32)
    follow_user_keys(keys, health, clock)
    clock.advance(KEYS_WITHIN_S)
    ready, said = health.readiness()
    assert not ready
    assert said["user_keys"].startswith(f"{USER_KEYS} is not read to its end: 0 records")
    held.let_go.set()
    await eventually(lambda: health.readiness() == (True, {"user_keys": "ok"}), "ready")
    await keys.close()
    assert health.readiness()[0], "an outage later is for the checks of age"


async def test_a_service_waits_for_the_keys_of_texts_so_long_and_then_says_that_it_has_none() -> (
    None
):
    held, health, clock = HeldLog(), Health(), ManualClock()
    keys = UserKeys(cast("EventLog", held), b"s" * 32)
    follow_user_keys(keys, health, clock, within_s=5.0)
    assert not health.readiness()[0]
    clock.advance(5.1)
    with capture_logs() as logs:
        for _ in range(2):
            ready, said = health.readiness()
            assert ready
            assert "texts wait for it" in said["user_keys"]
    assert [(one["event"], one["after_s"]) for one in logs] == [("user_keys.late", 5.0)]
    held.let_go.set()
    await eventually(lambda: health.readiness()[1] == {"user_keys": "ok"}, "the keys are read")
    await keys.close()


def test_texts_that_are_not_encrypted_need_no_keys() -> None:
    health = Health()
    follow_user_keys(None, health, ManualClock())
    assert health.readiness() == (True, {})


def test_every_service_that_writes_texts_waits_for_their_keys() -> None:
    mains = {path: path.read_text() for path in (ROOT / "services").rglob("__main__.py")}
    writers = {path.parent.name for path, text in mains.items() if "= encrypting(" in text}
    assert {path.parent.name for path, text in mains.items() if "follow_user_keys(" in text} == (
        writers
    )
    assert writers == {"feedback", "inference", "intake", "rollout", "router", "training"}


class SlowFollower:
    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls = 0

    async def caught_up(self, timeout_s: float) -> None:
        self.calls += 1
        if self.calls <= self.failures:
            raise LogUnavailable("away")


async def test_catch_up_tries_each_follower_until_it_has_read_its_topic() -> None:
    followers, signs = [SlowFollower(2), SlowFollower(0)], []
    done = await catch_up(
        followers, asyncio.Event(), timeout_s=1, waiting=lambda: signs.append("alive")
    )
    assert done
    assert [one.calls for one in followers] == [3, 1]
    assert signs == ["alive"] * 2


async def test_catch_up_ends_when_the_service_stops() -> None:
    stop, follower = asyncio.Event(), SlowFollower(10)
    assert not await catch_up([follower], stop, timeout_s=1, waiting=stop.set)
    assert follower.calls == 1


def test_a_pause_doubles_up_to_its_limit_and_starts_again() -> None:
    backoff = Backoff(1.0, 5.0)
    assert [backoff.next_s() for _ in range(4)] == [1.0, 2.0, 4.0, 5.0]
    backoff.reset()
    assert backoff.next_s() == 1.0


async def test_the_first_signal_stops_and_the_second_hurries() -> None:
    hurry = asyncio.Event()
    stop = stop_on_signals(hurry)
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(stop.wait(), 60)
        assert not hurry.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(hurry.wait(), 60)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)
