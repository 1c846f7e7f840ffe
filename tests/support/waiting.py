"""Waiting for a condition, in place of a sleep that hopes."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE_S = 60.0
"""A loaded machine of two cores is slow; a test that asserts a latency measures it instead."""
_POLL_S = 0.05


def wait_until(condition: Callable[[], T], what: str, timeout_s: float = PATIENCE_S) -> T:
    """Asks until the answer is true and returns it; `AssertionError` naming `what` when it never is."""
    deadline = time.monotonic() + timeout_s
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(_POLL_S)
    return answer


async def eventually(
    condition: Callable[[], T] | Callable[[], Awaitable[T]],
    what: str,
    timeout_s: float = PATIENCE_S,
) -> T:
    """`wait_until` for asynchronous tests; the condition may be a coroutine function."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer: Any = condition()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(_POLL_S)
