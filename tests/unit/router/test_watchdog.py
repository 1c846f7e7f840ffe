"""One timer for a request: deadlines one after the other, and a client that leaves."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from services.router.watchdog import GRACE_S, Watchdog
from tests.support.waiting import eventually

FOREVER_S = 30.0
SHORT_S = GRACE_S / 2


async def stays() -> MutableMapping[str, Any]:
    """A client that does not leave."""
    await asyncio.sleep(FOREVER_S)
    raise AssertionError


async def leaves() -> MutableMapping[str, Any]:
    """A client that has left."""
    return {"type": "http.disconnect"}


@pytest.mark.parametrize("seconds", [0.0, SHORT_S, GRACE_S * 2])
async def test_what_takes_too_long_is_ended(seconds: float) -> None:
    watchdog = Watchdog()
    began = asyncio.get_running_loop().time()
    with pytest.raises(TimeoutError), watchdog.within(seconds):
        await asyncio.sleep(FOREVER_S)
    assert seconds <= asyncio.get_running_loop().time() - began < FOREVER_S / 2
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    watchdog.close()


async def test_each_wait_has_a_deadline_of_its_own() -> None:
    watchdog = Watchdog()
    with watchdog.within(FOREVER_S):
        await asyncio.sleep(GRACE_S * 2)
    with pytest.raises(TimeoutError), watchdog.within(SHORT_S):
        await asyncio.sleep(FOREVER_S)
    with watchdog.within(FOREVER_S):
        await asyncio.sleep(SHORT_S * 2)
    await asyncio.sleep(GRACE_S)  # outside of them nothing ends it
    watchdog.close()


async def test_a_body_that_fails_keeps_its_own_error() -> None:
    watchdog = Watchdog()
    with pytest.raises(ValueError, match="its own"), watchdog.within(FOREVER_S):
        raise ValueError("its own")
    watchdog.close()


@pytest.mark.parametrize("before_s", [0.0, GRACE_S * 2])
async def test_a_client_that_leaves_ends_the_task(before_s: float) -> None:
    async def serve() -> None:
        watchdog = Watchdog()
        try:
            await asyncio.sleep(before_s)  # its body arrives late
            watchdog.watch(leaves)
            await asyncio.sleep(FOREVER_S)
        except asyncio.CancelledError:
            ended.append(watchdog.gone)
            raise
        finally:
            watchdog.close()

    ended: list[bool] = []
    task = asyncio.create_task(serve())
    await eventually(task.done, "the task is ended")
    assert task.cancelled()
    assert ended == [True]


async def test_a_client_may_leave_once_the_answer_is_there() -> None:
    watchdog = Watchdog()
    watchdog.watch(leaves)
    watchdog.unwatch()
    await asyncio.sleep(GRACE_S * 2)
    assert not watchdog.gone
    watchdog.close()


async def test_the_deadline_holds_while_the_client_is_watched() -> None:
    watchdog = Watchdog()
    watchdog.watch(stays)
    with pytest.raises(TimeoutError), watchdog.within(GRACE_S * 2):
        await asyncio.sleep(FOREVER_S)
    assert not watchdog.gone
    watchdog.close()
    await eventually(lambda: len(asyncio.all_tasks()) == 1, "nothing is left behind")


async def test_a_cancel_from_outside_is_no_deadline() -> None:
    async def serve() -> None:
        watchdog = Watchdog()
        with watchdog.within(FOREVER_S):
            await asyncio.sleep(FOREVER_S)

    task = asyncio.create_task(serve())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
