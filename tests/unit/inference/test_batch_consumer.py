"""The batch worker's consumer group follows the engine's base."""

from __future__ import annotations

import asyncio

import pytest

from services.inference.batch_consumer import GROUPS, BatchConsumer, group_of
from tests.support.waiting import eventually


class StubLoop:
    """A consumer that reads until it is told to stop, or fails."""

    def __init__(self, group: str, fault: Exception | None = None) -> None:
        self.group = group
        self.fault = fault
        self.ended = False

    def idle_s(self) -> float:
        return 7.0

    async def run(self, stop: asyncio.Event) -> None:
        if self.fault is not None:
            raise self.fault
        await stop.wait()
        self.ended = True


class BaseHarness:
    """An agent's base, and the consumers that were made for it."""

    def __init__(self) -> None:
        self.base = ""
        self.fault: Exception | None = None
        self.made: list[StubLoop] = []
        self.stop = asyncio.Event()
        self._changed = asyncio.Condition()
        self.consumer = BatchConsumer(self._loop, self._other_than)

    def _loop(self, group: str) -> StubLoop:
        self.made.append(StubLoop(group, self.fault))
        return self.made[-1]

    async def _other_than(self, base: str) -> str:
        async with self._changed:
            await self._changed.wait_for(lambda: self.base != base)
        return self.base

    async def becomes(self, base: str) -> None:
        async with self._changed:
            self.base = base
            self._changed.notify_all()


async def test_nothing_is_read_before_the_base_is_known_and_a_change_is_another_group() -> None:
    harness = BaseHarness()
    running = asyncio.create_task(harness.consumer.run(harness.stop))
    await asyncio.sleep(0)
    assert (harness.made, harness.consumer.idle_s()) == ([], 0.0)
    for base in ("old", "new"):
        await harness.becomes(base)
        await eventually(
            lambda base=base: bool(harness.made) and harness.made[-1].group == group_of(base),
            "it is in the base's group",
        )
    assert [one.ended for one in harness.made] == [True, False]
    assert harness.consumer.idle_s() == 7.0
    harness.stop.set()
    await asyncio.wait_for(running, 30)
    assert [one.ended for one in harness.made] == [True, True]


async def test_a_stop_before_the_base_is_known_ends_it() -> None:
    harness = BaseHarness()
    harness.stop.set()
    await asyncio.wait_for(harness.consumer.run(harness.stop), 30)
    assert harness.made == []


async def test_a_consumer_that_fails_is_told_of() -> None:
    harness = BaseHarness()
    harness.fault = RuntimeError("broken")
    await harness.becomes("old")
    with pytest.raises(RuntimeError, match="broken"):
        await asyncio.wait_for(harness.consumer.run(harness.stop), 30)


def test_a_group_is_of_one_base_and_below_the_prefix_that_principals_may_join() -> None:
    groups = {group_of(base) for base in ("qwen", "qwen\0cafe", "qwen\0beef")}
    assert len(groups) == 3
    assert all(one.startswith(f"{GROUPS}.") for one in groups)
