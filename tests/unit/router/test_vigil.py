"""One timer for a request: deadlines one after the other, and a client that leaves."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from services.router.vigil import GRACE_S, Vigil
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
    vigil = Vigil()
    began = asyncio.get_running_loop().time()
    with pytest.raises(TimeoutError), vigil.within(seconds):
        await asyncio.sleep(FOREVER_S)
    assert seconds <= asyncio.get_running_loop().time() - began < FOREVER_S / 2
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    vigil.close()


async def test_each_wait_has_a_deadline_of_its_own() -> None:
    vigil = Vigil()
    with vigil.within(FOREVER_S):
        await asyncio.sleep(GRACE_S * 2)
    with pytest.raises(TimeoutError), vigil.within(SHORT_S):
        await asyncio.sleep(FOREVER_S)
    with vigil.within(FOREVER_S):
        await asyncio.sleep(SHORT_S * 2)
    await asyncio.sleep(GRACE_S)  # outside of them nothing ends it
    vigil.close()


async def test_a_body_that_fails_keeps_its_own_error() -> None:
    vigil = Vigil()
    with pytest.raises(ValueError, match="its own"), vigil.within(FOREVER_S):
        raise ValueError("its own")
    vigil.close()


@pytest.mark.parametrize("before_s", [0.0, GRACE_S * 2])
async def test_a_client_that_leaves_ends_the_task(before_s: float) -> None:
    async def serve() -> None:
        vigil = Vigil()
        try:
            await asyncio.sleep(before_s)  # its body arrives late
            vigil.watch(leaves)
            await asyncio.sleep(FOREVER_S)
        except asyncio.CancelledError:
            ended.append(vigil.gone)
            raise
        finally:
            vigil.close()

    ended: list[bool] = []
    task = asyncio.create_task(serve())
    await eventually(task.done, "the task is ended", 5)
    assert task.cancelled()
    assert ended == [True]


async def test_a_client_may_leave_once_the_answer_is_there() -> None:
    vigil = Vigil()
    vigil.watch(leaves)
    vigil.unwatch()
    await asyncio.sleep(GRACE_S * 2)
    assert not vigil.gone
    vigil.close()


async def test_the_deadline_holds_while_the_client_is_watched() -> None:
    vigil = Vigil()
    vigil.watch(stays)
    with pytest.raises(TimeoutError), vigil.within(GRACE_S * 2):
        await asyncio.sleep(FOREVER_S)
    assert not vigil.gone
    vigil.close()
    await eventually(lambda: len(asyncio.all_tasks()) == 1, "nothing is left behind", 5)


async def test_a_cancel_from_outside_is_no_deadline() -> None:
    async def serve() -> None:
        vigil = Vigil()
        with vigil.within(FOREVER_S):
            await asyncio.sleep(FOREVER_S)

    task = asyncio.create_task(serve())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
