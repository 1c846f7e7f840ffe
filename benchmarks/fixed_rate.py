"""Open-loop load: POSTs at a fixed rate, each timed from the moment at which it was due.

A client that sends its next request after an answer sends none while the server stalls, and its
percentiles lack them (coordinated omission). Here a request that finds no free connection waits, and
the wait is part of its latency.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

CONNECTIONS = 128
ANSWER_TIMEOUT_S = 30.0
WARM_UP = 50
"""First requests, which open connections and are not counted."""


@dataclass(slots=True)
class Latencies:
    """What a load at a fixed rate found. Latencies are seconds from when a request was due."""

    expected: bytes
    """Status code of a good answer."""
    seconds: list[float] = field(default_factory=list[float])
    failed: int = 0

    def percentile_ms(self, percent: float) -> float:
        """The latency, in milliseconds, that so many percent of the answers did not exceed."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] * 1000


@dataclass(frozen=True, slots=True)
class Target:
    """Where POSTs go, and the body of each by its number."""

    host: str
    port: int
    path: str
    body: Callable[[int], bytes]

    def request(self, number: int) -> bytes:
        """The bytes of a request."""
        body = self.body(number)
        head = (
            f"POST {self.path} HTTP/1.1\r\nhost: {self.host}:{self.port}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


async def at_fixed_rate(
    target: Target, *, rate: int, seconds: float, expected: int = 202
) -> Latencies:
    """Send `rate` requests a second, whether answers come or not."""
    found = Latencies(str(expected).encode())
    due = asyncio.Queue[tuple[int, float]]()
    senders = [
        asyncio.create_task(_send_each(target, due, found)) for _ in range(min(CONNECTIONS, rate))
    ]
    loop = asyncio.get_running_loop()
    start = loop.time() + 0.1
    for number in range(WARM_UP + round(rate * seconds)):
        moment = start + number / rate
        if (early := moment - loop.time()) > 0:
            await asyncio.sleep(early)
        due.put_nowait((number, moment))
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(due.join(), ANSWER_TIMEOUT_S)
    for sender in senders:
        sender.cancel()
    await asyncio.gather(*senders, return_exceptions=True)
    found.failed = round(rate * seconds) - len(found.seconds)
    return found


async def _send_each(
    target: Target, due: asyncio.Queue[tuple[int, float]], found: Latencies
) -> None:
    """Send what is due over one connection, and over another where that ends."""
    while True:
        number, moment = await due.get()
        try:
            reader, writer = await asyncio.open_connection(target.host, target.port)
        except OSError:
            due.task_done()
            continue
        with contextlib.closing(writer), contextlib.suppress(OSError, EOFError, ValueError):
            while True:
                try:
                    writer.write(target.request(number))
                    status = await _answer(reader)
                finally:
                    due.task_done()
                if number >= WARM_UP and status == found.expected:
                    found.seconds.append(asyncio.get_running_loop().time() - moment)
                number, moment = await due.get()


async def _answer(reader: asyncio.StreamReader) -> bytes:
    """Read one answer; its status code."""
    head = await reader.readuntil(b"\r\n\r\n")
    _, _, length = head.lower().partition(b"\r\ncontent-length:")
    await reader.readexactly(int(length.partition(b"\r\n")[0]))
    return head.split(b" ", 2)[1]
